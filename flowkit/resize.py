"""A flow at another size, sharing its weights: declared again, and every part takes the old one's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowkit.errors import GraphError, ShapeError
from flowkit.graph import Graph, InvertibleNetwork, Node, Wire
from flowkit.graph.files import shapes_of
from flowkit.registry import arguments_of
from flowkit.shapes import Shape, as_shape, listing
from flowkit.storage import default_dtype

if TYPE_CHECKING:
    from flowkit.flow import Flow


def resized(flow: Flow, shapes: Mapping[str, Any]) -> Flow:
    """See `Flow.resized`."""
    from flowkit.flow import Flow

    known = [*flow.input_shapes, *flow.condition_shapes]
    unknown = [name for name in shapes if name not in known]
    if unknown:
        raise GraphError(f"resized: the flow has no input or condition {listing(unknown)}; it has {listing(known)}")
    like = flow.network.reference
    # What is built anew is built where the flow is; moving it there afterwards would move the shared parts, too.
    with torch.random.fork_rng(devices=[]), default_dtype(like.dtype), torch.device(like.device):
        graph = _resized_graph(flow.network.graph, {name: as_shape(shape) for name, shape in shapes.items()})
        names = [flow.network.graph.wires[i].name for i in flow._base_wires]
        network = InvertibleNetwork(graph=graph, also_used=[graph.wire(name) for name in names])
        _share(flow.network, network, "")
        new = Flow(network, base=_resized_base(flow), base_given=names or None)
    new.training = flow.training
    for option in ("backprop", "snapshots", "chunk", "budget"):
        setattr(network, option, getattr(flow.network, option))
    return new


def _resized_base(flow: Flow) -> Any:
    from flowkit.distributions import StandardNormal

    return None if type(flow.base) is StandardNormal else flow.base  # Flow refuses a base of another dimension by name


def _resized_graph(graph: Graph, shapes: Mapping[str, Shape]) -> Graph:
    new = Graph()
    wires: dict[int, Wire] = {}
    for wire in graph.inputs:
        wires[wire.index] = new.input(wire.name, shapes.get(wire.name, wire.shape))
    for wire in graph.conditions:
        wires[wire.index] = new.condition(wire.name, shapes.get(wire.name, wire.shape), wire.dtype)
    parts: dict[int, Any] = {}  # an instance that two nodes share is rebuilt once
    for node in graph.nodes:
        inputs, given = [wires[w.index] for w in node.inputs], [wires[w.index] for w in node.given]
        if node.kind == "features" and node.module is not None:
            # Where its inputs keep their sizes so do its outputs, which a dry run may not be able to tell.
            same = [w.shape for w in inputs] == [w.shape for w in node.inputs]
            made = new.features(node.module, *inputs, name=node.name, shapes=shapes_of(node) if same else None)
            outputs = list(made.values()) if isinstance(made, dict) else made
        else:
            outputs = _add_resized(new, node, inputs, given, parts)
        outputs = [outputs] if isinstance(outputs, Wire) else list(outputs)
        wires.update((old.index, wire) for old, wire in zip(node.outputs, outputs, strict=True))
    for name, wire in graph.outputs.items():
        new.output(name, wires[wire.index])
    return new


def _add_resized(new: Graph, node: Node, inputs: list[Wire], given: list[Wire], parts: dict[int, Any]) -> Any:
    if node.module is None:
        config = dict(node.config)
        if isinstance(config.get("graph"), Graph):
            config["graph"] = _inner(config["graph"], inputs, given)
        return new.add(node.cls, *inputs, given=given, name=node.name, **config)
    if id(node.module) not in parts:
        parts[id(node.module)] = _resized_instance(node, inputs, given)
    return new.add(parts[id(node.module)], *inputs, given=given, name=node.name)


def _inner(graph: Graph, inputs: list[Wire], given: list[Wire]) -> Graph:
    names = [w.name for w in (*graph.inputs, *graph.conditions)]
    return _resized_graph(graph, dict(zip(names, [w.shape for w in (*inputs, *given)], strict=True)))


def _resized_instance(node: Node, inputs: list[Wire], given: list[Wire]) -> Any:
    part: Any = node.module
    in_shapes, conditions = tuple(w.shape for w in inputs), tuple(w.shape for w in given)
    if (in_shapes, conditions) == (part.in_shapes, part.condition_shapes):
        return part
    if isinstance(part, InvertibleNetwork):
        new: Any = InvertibleNetwork(graph=_inner(part.graph, inputs, given))
    else:
        arguments = arguments_of(part)
        if (
            arguments is None
            or len(arguments.args) != len(in_shapes)
            or any(isinstance(a, nn.Module) for a in arguments.args)
        ):
            raise ShapeError(
                f"resized: node '{node.name}' is an instance of {type(part).__name__} for shape {part.in_shapes}, "
                "which "
                f"cannot be built for {in_shapes}: add the class, or register it"
            )
        keywords = {**arguments.kwargs, "given": conditions} if conditions else arguments.kwargs
        new = type(part)(*in_shapes, **keywords)
    _share(part, new, f"{node.name}.")
    return new


def _share(old: nn.Module, new: nn.Module, where: str) -> None:
    """Every parameter and saved buffer of `new` becomes the one of `old`."""
    parts = dict(old.named_modules())
    for path, module in new.named_modules():
        source = parts.get(path)
        if source is module:
            continue
        module.training = module.training if source is None else source.training
        for table in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, table).items():
                if table == "_buffers" and name in module._non_persistent_buffers_set:
                    continue
                mine = getattr(source, table, {}).get(name)
                if (mine is None) != (tensor is None) or (mine is not None and mine.shape != tensor.shape):
                    shapes = [None if t is None else tuple(t.shape) for t in (mine, tensor)]
                    label = f"{where}{path}.{name}".replace("..", ".").removeprefix("nodes.")
                    raise ShapeError(
                        f"resized: '{label}' depends on the size, it is {shapes[0]} and would be {shapes[1]}: "
                        "its weights cannot be shared"
                    )
                getattr(module, table)[name] = mine
