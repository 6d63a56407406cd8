"""What a Flow is assembled from: the graph of a single bijection, the wires that a base takes, and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flowkit.bijection import Bijection
from flowkit.distributions import StandardNormal
from flowkit.errors import ConditionError, ConfigError, GraphError, ShapeError
from flowkit.graph import Graph, InvertibleNetwork, Wire
from flowkit.shapes import Shape, listing


def graph_of(part: Any) -> Graph:
    """A bijection as a graph of one node: inputs x, conditions y, outputs z, numbered where there are several."""
    if isinstance(part, InvertibleNetwork):
        return part.graph
    if not isinstance(part, Bijection):
        hint = " (build an instance first)" if isinstance(part, type) else ""
        if isinstance(part, list | tuple | nn.Sequential | nn.ModuleList):
            hint = ": graph.add takes one bijection after the other"
        raise GraphError(
            f"a Flow is made from a Graph or a Bijection, got {getattr(part, '__name__', type(part).__name__)}{hint}"
        )
    graph = Graph()
    dtype = torch.int64 if part.integer_conditions else None
    conditions = [graph.condition(n, s, dtype) for n, s in _numbered("y", part.condition_shapes)]
    inputs = [graph.input(n, s) for n, s in _numbered("x", part.in_shapes)]
    outputs = graph.add(part, *inputs, given=conditions)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for (name, _), wire in zip(_numbered("z", part.out_shapes), outputs, strict=True):
        graph.output(name, wire)
    return graph


def _numbered(letter: str, shapes: Sequence[Shape]) -> list[tuple[str, Shape]]:
    return [(letter if len(shapes) == 1 else f"{letter}{i + 1}", shape) for i, shape in enumerate(shapes)]


def find_base_wires(graph: Graph, base_given: Any) -> list[Wire]:
    """The condition wires that a base takes, given as wires or names; they must depend on no data."""
    if base_given is None:
        return []
    wires = []
    for each in base_given if isinstance(base_given, Sequence) and not isinstance(base_given, str) else [base_given]:
        wire = graph.wire(each) if isinstance(each, str) else each
        if not isinstance(wire, Wire) or all(wire is not known for known in graph.wires):
            raise GraphError(f"base_given: a condition wire of this graph or its name is needed, got {each!r}")
        if wire.kind != "condition" or not _depends_on_conditions_alone(graph, wire):
            raise GraphError(
                f"base_given: '{wire.name}' {wire.shape} depends on data; the base's conditions must be known before"
            )
        wires.append(wire)
    return wires


def _depends_on_conditions_alone(graph: Graph, wire: Wire) -> bool:
    if wire.kind == "data":
        return False
    makers = [node for node in graph.nodes if wire in node.outputs]
    return all(_depends_on_conditions_alone(graph, w) for node in makers for w in node.inputs)


def make_base(base: Any, dim: int, given: tuple[Shape, ...], latents: Mapping[str, int] | None = None) -> Any:
    """The base of D dimensions with these conditions: as it is, made by a callable, or standard normal.

    One that is made of parts for the outputs compares their names and dimensions, `latents`, with its own.
    """
    if base is None:
        if given:
            raise ConditionError("base_given needs a conditional base, such as base=fk.DiagonalNormal; none was given")
        return StandardNormal(dim)
    if not isinstance(base, nn.Module):
        if not callable(base):
            raise ConfigError(f"base must be a distribution module, or a callable that makes one from D, got {base!r}")
        base = base(dim, given=given) if given else base(dim)
    for method in ("log_prob", "sample"):
        if not callable(getattr(base, method, None)):
            raise ConfigError(
                "base must have log_prob(z, *conditions) and sample(shape, *conditions, temperature), "
                f"{type(base).__name__} has no {method}"
            )
    if getattr(base, "dim", dim) != dim:
        raise ShapeError(f"the base {type(base).__name__} has {base.dim} dimensions, the latent has {dim}")
    if latents is not None and hasattr(base, "check_latents"):
        base.check_latents(latents)
    shapes = tuple(getattr(base, "condition_shapes", given))
    if shapes != given:
        names = listing([str(s) for s in shapes])
        raise ShapeError(
            f"the base {type(base).__name__} takes conditions of shape {names}, base_given has "
            f"{listing([str(s) for s in given])}"
        )
    return base
