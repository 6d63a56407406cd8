"""A graph as plain data and back: readable JSON, in the order of declaration.

    {"schema": 1,
     "inputs": {"x": [2]},
     "conditions": {"label": [10], "digit": {"shape": [], "dtype": "int64"}},
     "nodes": [{"name": "affine_coupling_1", "op": "flowkit.affine_coupling", "inputs": ["x"], "given": ["label"],
                "config": {"subnet": {"$": "flowkit.mlp", "kwargs": {"hidden": [8]}}}},
               {"name": "twice", "shares": "affine_coupling_1", "inputs": ["affine_coupling_1"], "given": ["label"]}],
     "outputs": {"z": "twice"}}

A node is one of `op` (a class, with `config`), `part` (an instance), `features` (a feature net), `shares` (the part of
another node), each the only one of its kind. Values that JSON lacks are marked with `$`: see `flowkit.encoding`.
"""

from __future__ import annotations

from typing import Any

import torch

from flowkit.encoding import Decoder, Encoder
from flowkit.errors import FlowkitError, GraphError, StorageError
from flowkit.graph.graph import Graph
from flowkit.graph.parts import Node, Wire
from flowkit.registry import lookup

SCHEMA = 1


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """The graph as plain data; what has no written form is kept as its repr, and refused when read."""
    return write_graph(graph, Encoder())


def graph_from_dict(data: Any) -> Graph:
    """The graph that `graph_to_dict` wrote."""
    return read_graph(data, Decoder())


def write_graph(graph: Graph, encoder: Encoder, prefix: str = "") -> dict[str, Any]:
    """The graph, as a part of a file that may hold more; `prefix` says where it stands, for messages."""
    first: dict[int, str] = {}
    return {
        "schema": SCHEMA,
        "inputs": {wire.name: list(wire.shape) for wire in graph.inputs},
        "conditions": {wire.name: _condition(wire) for wire in graph.conditions},
        "nodes": [_write_node(node, encoder, first, prefix) for node in graph.nodes],
        "outputs": {name: wire.name for name, wire in graph.outputs.items()},
    }


def _condition(wire: Wire) -> Any:
    if wire.dtype is None:
        return list(wire.shape)
    return {"shape": list(wire.shape), "dtype": str(wire.dtype).removeprefix("torch.")}


def _write_node(node: Node, encoder: Encoder, first: dict[int, str], prefix: str) -> dict[str, Any]:
    where = f"{prefix}node '{node.name}'"
    written: dict[str, Any] = {"name": node.name}
    if node.module is None:
        name = encoder.name(node.cls, where)
        written["op"] = name if name is not None else {"$repr": repr(node.cls)}
    elif id(node.module) in first:
        written["shares"] = first[id(node.module)]
    else:
        first[id(node.module)] = node.name
        written["features" if node.kind == "features" else "part"] = encoder.encode(node.module, where)
    if node.kind == "features":
        written["feature_shapes"] = shapes_of(node)
    written["inputs"] = [wire.name for wire in node.inputs]
    if node.given:
        written["given"] = [wire.name for wire in node.given]
    if node.config:
        written["config"] = {k: encoder.encode(v, f"{where}, option '{k}'") for k, v in node.config.items()}
    return written


def shapes_of(node: Node) -> Any:
    """The shapes of a feature net's outputs, as `graph.features(..., shapes=)` takes them."""
    shapes = [list(wire.shape) for wire in node.outputs]
    if node.keys == (None,):
        return shapes[0]
    return dict(zip(node.keys, shapes, strict=True)) if isinstance(node.keys[0], str) else shapes


def read_graph(data: Any, decoder: Decoder) -> Graph:
    """The graph, declared again from its description.

    Raises:
        StorageError: not a description of a graph, or of a newer schema.
        GraphError: the described graph cannot be declared.
    """
    _expect(isinstance(data, dict), f"a graph must be a dictionary, got {type(data).__name__}")
    _expect(
        data.get("schema") == SCHEMA,
        f"the graph is written in schema {data.get('schema')!r}; this version of flowkit reads schema {SCHEMA}",
    )
    for key, kind in (("inputs", dict), ("conditions", dict), ("nodes", list), ("outputs", dict)):
        _expect(
            isinstance(data.get(key), kind), f"the graph's '{key}' must be a {kind.__name__}, got {data.get(key)!r}"
        )
    graph = Graph()
    for name, shape in data["inputs"].items():
        graph.input(name, shape)
    for name, condition in data["conditions"].items():
        if isinstance(condition, dict):
            graph.condition(name, condition.get("shape", ()), _dtype(condition.get("dtype")))
        else:
            graph.condition(name, condition)
    for node in data["nodes"]:
        _read_node(graph, node, decoder)
    for name, wire in data["outputs"].items():
        graph.output(name, graph.wire(wire))
    return graph


def _read_node(graph: Graph, written: Any, decoder: Decoder) -> None:
    _expect(
        isinstance(written, dict) and isinstance(written.get("name"), str), f"a node must have a name, got {written!r}"
    )
    name = written["name"]
    try:
        inputs = [graph.wire(wire) for wire in written.get("inputs", ())]
        given = [graph.wire(wire) for wire in written.get("given", ())]
        if "shares" in written:
            part: Any = next((n.module for n in graph.nodes if n.name == written["shares"]), None)
            _expect(part is not None, f"it shares the part of '{written['shares']}', which no node before it has")
        elif "op" in written:
            part = lookup(written["op"]) if isinstance(written["op"], str) else decoder.decode(written["op"])
        else:
            _expect("part" in written or "features" in written, "it has none of op, part, features and shares")
            part = decoder.decode(written.get("part", written.get("features")))
        if "feature_shapes" in written:
            graph.features(part, *inputs, name=name, shapes=written["feature_shapes"])
        else:
            graph.add(part, *inputs, given=given, name=name, **decoder.decode(written.get("config", {})))
    except FlowkitError as error:
        if f"'{name}'" in str(error):
            raise
        raise type(error)(f"node '{name}': {error}") from error
    except (TypeError, ValueError) as error:
        raise GraphError(f"node '{name}' cannot be declared: {error}") from error


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    _expect(isinstance(dtype, torch.dtype), f"{name!r} is not the name of a dtype")
    return dtype  # type: ignore[return-value]


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StorageError(otherwise)
