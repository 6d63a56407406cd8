"""A graph, and the base beside it, as somebody writes them by hand in a TOML file.

    [inputs]
    x = 2

    [conditions]
    label = 10

    [[nodes]]
    repeat = 4

      [[nodes.nodes]]
      type = "affine_coupling"
      given = "label"
      subnet = { type = "mlp", hidden = [128, 128] }

      [[nodes.nodes]]
      type = "permute"

A node takes what the node before it gives, is named after its type, and what is left over at the end is the output `z`,
wherever the file does not say otherwise. A table with a `type` among the options is a registered thing with these
options. Types without a prefix are flowkit's own.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowkit.arguments import is_int
from flowkit.bijection import Bijection
from flowkit.encoding import DTYPES_BY_NAME
from flowkit.errors import FlowkitError, GraphError, StorageError
from flowkit.graph.graph import Graph
from flowkit.graph.parts import Wire, describe
from flowkit.registry import lookup
from flowkit.shapes import listing
from flowkit.strict_json import check, in_one_line, shown
from flowkit.univariate import Univariate

TABLES = ("inputs", "conditions", "nodes", "outputs", "base")
NODE_WORDS = ("type", "name", "inputs", "given", "config", "outputs")
BLOCK_WORDS = ("repeat", "nodes")
MOST_NODES = 10_000  # that repetition may make


def read_toml(path: str | os.PathLike) -> tuple[Graph, Callable[..., nn.Module] | None, list[str]]:
    """The graph in a TOML file, what makes its base from the latent's size, and the names of the base's conditions.

    Raises:
        StorageError: no such file, no TOML, or a table that is not what it must be; the message names it.
        GraphError: the described graph cannot be declared.
        RegistryError: a type that is not registered; the message names the plugin that would have it.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"'{path}' is no TOML: {in_one_line(str(error))}") from error
    try:
        check(data, "it")
        return _Reader(data).read()
    except FlowkitError as error:
        raise type(error)(f"'{path}': {error}") from error


class _Reader:
    def __init__(self, data: dict[str, Any]):
        _known(data, TABLES, "the file")
        self.data, self.graph, self.made = data, Graph(), 0
        self.last: tuple[Wire, ...] = ()

    def read(self) -> tuple[Graph, Callable[..., nn.Module] | None, list[str]]:
        for name, shape in _table(self.data, "inputs").items():
            _within("[inputs]", partial(self.graph.input, name, _shape(shape, f"[inputs] {name}")))
        for name, written in _table(self.data, "conditions").items():
            _within("[conditions]", partial(self._condition, name, written))
        if not self.graph.inputs:
            raise StorageError("[inputs] must name at least one input with its shape, such as x = 2")
        self.last = tuple(self.graph.inputs)
        self._nodes(self.data.get("nodes", []), "nodes")
        self._outputs(_table(self.data, "outputs"))
        base = _table(self.data, "base")
        return self.graph, *(self._base(base) if base else (None, []))

    def _condition(self, name: str, written: Any) -> None:
        dtype: torch.dtype | None = None
        if isinstance(written, dict):
            _known(written, ("shape", "dtype"), f"[conditions] {name}")
            if "dtype" in written:
                dtype = DTYPES_BY_NAME.get(str(written["dtype"]))
                if dtype is None:
                    raise StorageError(f"[conditions] {name}: {shown(written['dtype'])} is not the name of a dtype")
            written = written.get("shape", [])
        self.graph.condition(name, _shape(written, f"[conditions] {name}"), dtype)

    def _nodes(self, written: Any, where: str) -> None:
        if not isinstance(written, list) or not all(isinstance(node, dict) for node in written):
            raise StorageError(f"[[{where}]] must be tables in double brackets, got {shown(written)}")
        for number, node in enumerate(written, 1):
            here = f"[[{where}]] number {number}"
            if "nodes" in node:
                _known(node, BLOCK_WORDS, here)
                repeat = node.get("repeat", 1)
                if not is_int(repeat) or repeat < 1:
                    raise StorageError(f"{here}: repeat must be an int of at least 1, got {shown(repeat)}")
                for _ in range(repeat):
                    self._nodes(node["nodes"], f"{where}.nodes")
                    if not node["nodes"]:
                        break
            else:
                _within(here, partial(self._node, node))

    def _node(self, node: dict[str, Any]) -> None:
        self.made += 1
        if self.made > MOST_NODES:
            raise StorageError(f"a graph has at most {MOST_NODES:,} nodes")
        if "type" not in node:
            raise StorageError(f"it needs a type, or nodes to repeat; it has {listing([*node])}")
        part = _look_up(node["type"])
        config = node.get("config", {})
        if not isinstance(config, dict):
            raise StorageError(f"config must be a table of options, got {shown(config)}")
        options = {key: value for key, value in node.items() if key not in NODE_WORDS}
        if both := [key for key in options if key in config]:
            raise StorageError(f"the option '{both[0]}' is there twice, in config and beside it")
        options = {key: _value(value) for key, value in {**options, **config}.items()}
        inputs, given = self._wires(node, "inputs"), self._wires(node, "given")
        name = node.get("name")
        if inspect.isclass(part) and issubclass(part, nn.Module) and not issubclass(part, Bijection):
            self._features(part, inputs, given, name, options, node)
            return
        made = self.graph.add(part, *(inputs or self.last), given=given, name=name, **options)
        self.last = made if isinstance(made, tuple) else (made,)
        for label, wire in zip(self._names(node, len(self.last)), self.last, strict=True):
            if label:
                self.graph.output(label, wire)
        self.last = tuple(wire for wire in self.last if wire.index not in self.graph.consumers)

    def _features(
        self, cls: Any, inputs: list[Wire], given: list[Wire], name: Any, options: dict[str, Any], node: dict[str, Any]
    ) -> None:
        if given or "outputs" in node:
            raise StorageError(f"{cls.__name__} is a feature net: its conditions are its inputs")
        if not inputs and len(self.graph.conditions) != 1:
            known = listing([wire.name for wire in self.graph.conditions])
            raise StorageError(f"{cls.__name__} is a feature net and needs inputs; the conditions are {known}")
        try:
            net = cls(**options)
        except TypeError as error:
            raise GraphError(f"{cls.__name__} cannot be constructed: {error}") from error
        self.graph.features(net, *(inputs or self.graph.conditions), name=name)

    def _wires(self, node: dict[str, Any], key: str) -> list[Wire]:
        names = node.get(key, [])
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise StorageError(f"{key} must be a wire's name or a list of them, got {shown(names)}")
        return [self.graph.wire(name) for name in names]

    def _names(self, node: dict[str, Any], count: int) -> list[str]:
        names = node.get("outputs", [""] * count)
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
            raise StorageError(
                f'outputs must be {count} names, one for each wire that the node gives, "" for one that goes on, '
                f"got {shown(names)}"
            )
        return names

    def _outputs(self, written: dict[str, Any]) -> None:
        for name, wire in written.items():
            if not isinstance(wire, str):
                raise StorageError(f"[outputs] {name} must be the name of a wire, got {shown(wire)}")
            _within("[outputs]", partial(self._output, name, wire))
        left = [w for w in self.graph.wires if w.kind == "data" and w.index not in self.graph.consumers]
        if len(left) == 1 and "z" not in self.graph.outputs:
            self.graph.output("z", left[0])
        elif left:
            raise GraphError(f"[outputs] must name what is left over: {describe(left)}")

    def _output(self, name: str, wire: str) -> None:
        self.graph.output(name, self.graph.wire(wire))

    def _base(self, written: dict[str, Any]) -> tuple[Callable[..., nn.Module], list[str]]:
        if "type" not in written:
            raise StorageError(f"[base] needs a type; it has {listing([*written])}")
        cls = _within("[base]", partial(_look_up, written["type"]))
        options = {key: _value(value) for key, value in written.items() if key not in ("type", "given")}
        names = [wire.name for wire in _within("[base]", partial(self._wires, written, "given"))]
        return partial(cls, **options), names


def _value(written: Any) -> Any:
    """An option's value: lists are tuples, and a table with a type is the registered thing that it describes."""
    if isinstance(written, list):
        return tuple(_value(each) for each in written)
    if not isinstance(written, dict):
        return written
    options = {key: _value(value) for key, value in written.items() if key != "type"}
    if "type" not in written:
        return options
    thing = _look_up(written["type"])
    if inspect.isclass(thing) and issubclass(thing, Univariate):
        return thing.recipe(**options)
    if not inspect.isclass(thing):
        if options:
            raise StorageError(f"'{written['type']}' is a function and takes no options, got {listing([*options])}")
        return thing
    try:
        return thing(**options)
    except TypeError as error:
        raise StorageError(f"'{written['type']}' cannot be made: {in_one_line(str(error))}") from error


def _look_up(name: Any) -> Any:
    if not isinstance(name, str):
        raise StorageError(f"a type must be the name of a registered part, got {shown(name)}")
    return lookup(name if "." in name else f"flowkit.{name}")


def _shape(written: Any, where: str) -> Any:
    sizes = written if isinstance(written, list) else [written]
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise StorageError(f"{where} must be a shape, an int or a list of ints, got {shown(written)}")
    return tuple(sizes)


def _table(data: dict[str, Any], name: str) -> dict[str, Any]:
    written = data.get(name, {})
    if not isinstance(written, dict):
        raise StorageError(f"[{name}] must be a table, got {shown(written)}")
    return written


def _known(table: dict[str, Any], words: tuple[str, ...], where: str) -> None:
    if unknown := [key for key in table if key not in words]:
        raise StorageError(f"{where} has the unknown key {shown(unknown[0])}; its keys are {listing(words)}")


def _within(where: str, do: Callable[[], Any]) -> Any:
    """What `do` returns; the table's name stands before whatever it refuses."""
    try:
        return do()
    except FlowkitError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise GraphError(f"{where} cannot be declared: {in_one_line(str(error))}") from error
