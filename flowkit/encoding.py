"""Values as plain data that JSON holds, and back: options of a graph's parts, feature nets, recipes and bases."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from flowkit.errors import FlowkitError, StorageError
from flowkit.registry import Unwritable, arguments_of, lookup, name_of
from flowkit.strict_json import in_one_line, shown
from flowkit.univariate.univariate import UnivariateRecipe, later_settings

# How values that JSON lacks are marked: one key each, alone in its dictionary but for args and kwargs.
INSTANCE, SAME, NAMED, GRAPH, DTYPE, FLOAT, MAPPING, TEXT = (
    "$",
    "$same",
    "$named",
    "$graph",
    "$dtype",
    "$float",
    "$dict",
    "$repr",
)
DTYPES_BY_NAME = {
    str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)
}
FLOATS = ("nan", "inf", "-inf")  # what repr writes of those that JSON lacks
MARKS = (INSTANCE, SAME, NAMED, GRAPH, DTYPE, FLOAT, MAPPING, TEXT)


class Encoder:
    """Encodes values of one file; a module met a second time is written as the same one.

    Attributes:
        unwritable: where a value without a written form stands, and its repr.
        prefixes: of the registered names used: the plugins that a reader needs.
    """

    def __init__(self) -> None:
        self.unwritable: dict[str, str] = {}
        self.prefixes: set[str] = set()
        self._modules: dict[int, int] = {}
        self._held: list[nn.Module] = []

    def name(self, thing: Any, where: str) -> str | None:
        """The registered name of a class or function; None, and noted, when it has none."""
        name = name_of(thing)
        if name is None:
            self.unwritable[where] = repr(thing)
            return None
        self.prefixes.add(name.split(".")[0])
        return name

    def encode(self, value: Any, where: str) -> Any:
        """The value as plain data; `where` says in words where it stands."""
        from flowkit.graph.graph import Graph

        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {FLOAT: repr(value)}
        if isinstance(value, list | tuple):
            return [self.encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            plain = {k: self.encode(v, f"{where}[{k!r}]") for k, v in value.items()}
            return {MAPPING: plain} if any(k in MARKS for k in plain) else plain
        if isinstance(value, torch.dtype):
            return {DTYPE: str(value).removeprefix("torch.")}
        if isinstance(value, Graph):
            return {GRAPH: value_to_graph_dict(value, self, where)}
        if isinstance(value, Unwritable):
            return self._text(value, where)
        if (inspect.isclass(value) or inspect.isroutine(value)) and name_of(value):
            named: Any = value
            later = later_settings(named, at_present=True)
            return self._instance(named.recipe(), where) if later else {NAMED: self.name(named, where)}
        return self._instance(value, where)

    def _instance(self, value: Any, where: str) -> Any:
        if isinstance(value, UnivariateRecipe) and later_settings(value.univariate, at_present=True):
            config = {k: self.encode(v, f"{where}[{k!r}]") for k, v in value.config.items()}
            named = {NAMED: self.name(value.univariate, where)}
            return {INSTANCE: self.name(value, where), "args": [named], "kwargs": config}
        arguments = arguments_of(value)
        if arguments is None:
            return self._text(value, where)
        if isinstance(value, nn.Module):
            if id(value) in self._modules:
                return {SAME: self._modules[id(value)]}
            self._modules[id(value)] = len(self._modules)
            self._held.append(value)
        written: dict[str, Any] = {INSTANCE: self.name(value, where)}
        if arguments.args:
            written["args"] = [self.encode(v, f"{where}[{i}]") for i, v in enumerate(arguments.args)]
        if arguments.kwargs:
            written["kwargs"] = {k: self.encode(v, f"{where}[{k!r}]") for k, v in arguments.kwargs.items()}
        return written

    def _text(self, value: Any, where: str) -> dict[str, str]:
        self.unwritable[where] = repr(value)
        return {TEXT: repr(value)}


class Decoder:
    """Decodes what one Encoder wrote."""

    def __init__(self) -> None:
        self._modules: list[nn.Module | None] = []

    def decode(self, value: Any) -> Any:
        """The value; lists come back as tuples.

        Raises:
            StorageError: the value had no written form, or is malformed.
            RegistryError: it needs a registered name that is missing.
        """
        if isinstance(value, list):
            return tuple(self.decode(v) for v in value)
        if not isinstance(value, dict):
            return value
        mark = next((m for m in MARKS if m in value), None)
        if mark is None:
            return {k: self.decode(v) for k, v in value.items()}
        beside = [key for key in value if key != mark and not (mark == INSTANCE and key in ("args", "kwargs"))]
        if beside:
            raise StorageError(f"'{mark}' must stand alone, got {shown(beside[0])} beside it")
        content = value[mark]
        try:
            return self._marked(mark, content, value)
        except FlowkitError:
            raise
        except Exception as error:  # a stranger's arguments can make a constructor raise anything
            reason = f"{type(error).__name__}: {in_one_line(str(error))}"
            raise StorageError(f"{{'{mark}': {shown(content)}}} cannot be read: {reason}") from error

    def _marked(self, mark: str, content: Any, value: dict) -> Any:
        if mark == TEXT:
            text = in_one_line(str(content), 200)
            raise StorageError(f"{text} has no written form: register its class or function with fk.register")
        if mark == SAME:
            return self._same(content)
        if mark == DTYPE:
            if not isinstance(content, str) or content not in DTYPES_BY_NAME:
                raise StorageError(f"{shown(content)} is not the name of a dtype")
            return DTYPES_BY_NAME[content]
        if mark == FLOAT:
            if content not in FLOATS:
                raise StorageError(f"'{FLOAT}' must be one of {', '.join(FLOATS)}, got {shown(content)}")
            return float(content)
        if mark == MAPPING:
            return {k: self.decode(v) for k, v in content.items()}
        if mark == GRAPH:
            from flowkit.graph.files import read_graph

            return read_graph(content, self)
        if not isinstance(content, str):
            raise StorageError(f"'{mark}' must be a registered name, got {shown(content)}")
        if mark == INSTANCE:
            return self._built(content, value)
        named = lookup(content)
        before = later_settings(named, at_present=False)
        return named.recipe(**before) if before else named

    def _same(self, place: Any) -> nn.Module:
        known = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(self._modules)
        module = self._modules[place] if known else None
        if module is None:
            raise StorageError(f"'{SAME}' must be the number of a part before it, got {shown(place)}")
        return module

    def _built(self, name: str, value: dict) -> Any:
        cls = lookup(name)
        if not inspect.isclass(cls):
            raise StorageError(f"'{name}' is no class, so nothing can be built of it")
        place = len(self._modules)
        if issubclass(cls, nn.Module):
            self._modules.append(None)  # numbered before its arguments, as they were when it was written
        args, kwargs = self.decode(value.get("args", [])), self.decode(value.get("kwargs", {}))
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise StorageError(f"the arguments of '{name}' must be a list and a dictionary")
        if cls is UnivariateRecipe and args and isinstance(args[0], UnivariateRecipe):  # of a class with later settings
            args, kwargs = (args[0].univariate, *args[1:]), {**args[0].config, **kwargs}
        built = cls(*args, **kwargs)
        if isinstance(built, nn.Module):
            self._modules[place] = built
        return built


def value_to_graph_dict(graph: Any, encoder: Encoder, where: str) -> dict[str, Any]:
    """A graph inside a value: a nested network's."""
    from flowkit.graph.files import write_graph

    return write_graph(graph, encoder, f"{where}: ")
