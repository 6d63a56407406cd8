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
from torch import nn

from flowkit.encoding import DTYPES_BY_NAME, Decoder, Encoder
from flowkit.errors import FlowkitError, GraphError, StorageError
from flowkit.graph.graph import Graph
from flowkit.graph.parts import Node, Wire
from flowkit.registry import lookup
from flowkit.shapes import as_shape
from flowkit.strict_json import check, in_one_line, shown

SCHEMA = 1
KEYS: dict[str, type] = {"inputs": dict, "conditions": dict, "nodes": list, "outputs": dict}
NODE_KINDS = ("op", "part", "features", "shares")
NODE_KEYS = ("name", *NODE_KINDS, "feature_shapes", "inputs", "given", "config")


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """The graph as plain data; what has no written form is kept as its repr, and refused when read."""
    return write_graph(graph, Encoder())


def graph_from_dict(data: Any) -> Graph:
    """The graph that `graph_to_dict` wrote."""
    check(data, "the graph")
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
        data.get("schema") == SCHEMA and not isinstance(data["schema"], bool),
        f"the graph is written in schema {shown(data.get('schema'))}; this version of flowkit reads schema {SCHEMA}",
    )
    for key, kind in KEYS.items():
        held = data.get(key)
        _expect(isinstance(held, kind), f"the graph's '{key}' must be a {kind.__name__}, got {shown(held)}")
    _expect_keys(data, ("schema", *KEYS), "the graph")
    graph = Graph()
    for name, shape in data["inputs"].items():
        graph.input(name, _shape(shape, f"the input {shown(name)}"))
    for name, condition in data["conditions"].items():
        if isinstance(condition, dict):
            _expect_keys(condition, ("shape", "dtype"), f"the condition {shown(name)}")
            shape = _shape(condition.get("shape"), f"the condition {shown(name)}")
            graph.condition(name, shape, _dtype(condition.get("dtype")))
        else:
            graph.condition(name, _shape(condition, f"the condition {shown(name)}"))
    for node in data["nodes"]:
        _read_node(graph, node, decoder)
    for name, wire in data["outputs"].items():
        graph.output(name, graph.wire(wire))
    return graph


def _read_node(graph: Graph, written: Any, decoder: Decoder) -> None:
    _expect(
        isinstance(written, dict) and isinstance(written.get("name"), str),
        f"a node must have a name, got {shown(written)}",
    )
    name = written["name"]
    try:
        _expect_keys(written, NODE_KEYS, "it")
        kinds = [kind for kind in NODE_KINDS if kind in written]
        _expect(bool(kinds), "it has none of op, part, features and shares")
        _expect(len(kinds) == 1, f"it has {' and '.join(kinds)}, of which one is needed")
        inputs, given = _wires(graph, written, "inputs"), _wires(graph, written, "given")
        if "shares" in written:
            part: Any = next((n.module for n in graph.nodes if n.name == written["shares"]), None)
            _expect(part is not None, f"it shares the part of {shown(written['shares'])}, which no node before it has")
        elif "op" in written:
            part = lookup(written["op"]) if isinstance(written["op"], str) else decoder.decode(written["op"])
        else:
            part = decoder.decode(written[kinds[0]])
            _expect(isinstance(part, nn.Module), f"its part is no module, got {shown(written[kinds[0]])}")
        config = decoder.decode(written.get("config", {}))
        _expect(isinstance(config, dict), f"its config must be a dictionary, got {shown(written.get('config'))}")
        if "feature_shapes" in written:
            _expect(not given and not config, "a feature net takes neither given nor config")
            shapes = written["feature_shapes"]
            _expect(isinstance(shapes, list | tuple | dict), f"its feature_shapes must be lists, got {shown(shapes)}")
            keys = list(shapes) if isinstance(shapes, dict) else []
            _expect(all(key.isprintable() for key in keys), f"a name of its outputs is not printable: {shown(keys)}")
            graph.features(part, *inputs, name=name, shapes=shapes)
        else:
            _expect("features" not in written, "a feature net needs its feature_shapes")
            graph.add(part, *inputs, given=given, name=name, **config)
    except FlowkitError as error:
        if f"'{name}'" in str(error):
            raise
        raise type(error)(f"node {shown(name)}: {error}") from error
    except (TypeError, ValueError) as error:
        raise GraphError(f"node {shown(name)} cannot be declared: {in_one_line(str(error))}") from error


def _wires(graph: Graph, written: dict, key: str) -> list[Wire]:
    names = written.get(key, [])
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    _expect(named, f"its {key} must be a list of wires' names, got {shown(names)}")
    return [graph.wire(name) for name in names]


def _shape(written: Any, owner: str) -> tuple[int, ...]:
    _expect(isinstance(written, list | tuple), f"{owner} must have a list of ints for its shape, got {shown(written)}")
    return as_shape(written)


def _dtype(name: Any) -> torch.dtype:
    dtype = DTYPES_BY_NAME.get(name) if isinstance(name, str) else None
    _expect(dtype is not None, f"{shown(name)} is not the name of a dtype")
    return dtype  # type: ignore[return-value]


def _expect_keys(data: dict, known: tuple[str, ...], owner: str) -> None:
    unknown = [key for key in data if key not in known]
    if unknown:
        raise StorageError(f"{owner} has the unknown key {shown(unknown[0])}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StorageError(otherwise)
