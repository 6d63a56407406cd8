"""The declaration of a flow: inputs, conditions, feature nets, bijections and outputs, as plain data."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flowkit import dry_run
from flowkit.bijection import Bijection
from flowkit.errors import FlowkitError, GraphError
from flowkit.graph.construct import check_instance, probe
from flowkit.graph.parts import Node, Wire, describe
from flowkit.registry import frozen
from flowkit.shapes import Shape, as_shape, listing

Given = Wire | Sequence[Wire] | Mapping[str, Wire] | None


class Graph:
    """The declaration of a flow, from data to latent; `fk.Flow(graph)` builds it.

    Data wires are linear: each is consumed exactly once, by a node or as an output. Condition wires may be used any
    number of times. A data wire that is known by then may condition other nodes, too. Shapes are checked as the
    graph is declared, the whole when it is built. Bijections added as a class are new in every Flow of the graph;
    instances and feature nets are shared.

    Raises:
        GraphError: anything wrong with names, wires or parts; `ShapeError`, a kind of it, where shapes do not fit.

    >>> import flowkit as fk
    >>> graph = fk.Graph()
    >>> label, x = graph.condition("label", (10,)), graph.input("x", (2,))
    >>> graph.output("z", graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=8)))
    >>> fk.Flow(graph).latents
    {'z': (slice(0, 2, None), (2,))}
    """

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.nodes: list[Node] = []
        self.inputs: list[Wire] = []
        self.conditions: list[Wire] = []
        self.outputs: dict[str, Wire] = {}
        self.consumers: dict[int, str] = {}  # data wire -> "node 'n'" or "output 'z'"

    # ------------------------------------------------------------------ declaring

    def input(self, name: str, shape: int | Sequence[int]) -> Wire:
        """A data input of this event shape."""
        self._check_name(name)
        wire = self._new_wire(name, as_shape(shape), "data")
        self.inputs.append(wire)
        return wire

    def condition(self, name: str, shape: int | Sequence[int], dtype: torch.dtype | None = None) -> Wire:
        """A condition of this event shape; an integer dtype for labels, which `fk.OneHot` turns into vectors."""
        self._check_name(name)
        if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype.is_complex):
            raise GraphError(
                f"condition '{name}': dtype must be a torch.dtype of integers or real numbers, got {dtype!r}"
            )
        floating = dtype is None or dtype.is_floating_point
        wire = self._new_wire(name, as_shape(shape), "condition", None if floating else dtype)
        self.conditions.append(wire)
        return wire

    def features(
        self,
        net: nn.Module,
        *wires: Wire,
        name: str | None = None,
        shapes: Shape | Sequence[Shape] | Mapping[str, Shape] | None = None,
    ) -> Any:
        """Condition wires computed by an ordinary feed-forward net, on conditions or on data wires known by then.

        Its output shapes are found by a run on the meta device in eval mode; where that fails, once on zeros.

        Args:
            net: shared by all Flows of the graph.
            wires: its arguments.
            name: by default counted per class, `conv_net_1`.
            shapes: of its outputs, where it cannot be run beforehand: one, a list, or a dictionary as it returns.

        Returns:
            One wire for a tensor, a tuple of wires for a tuple or list, a dictionary for a dictionary.
        """
        name = self._node_name(name, type(net))
        if not isinstance(net, nn.Module) and hasattr(net, "build"):
            raise GraphError(f"features '{name}': {net!r} is a recipe, make a net of it: {net!r}(c_in, c_out)")
        if not isinstance(net, nn.Module):
            raise GraphError(f"features '{name}': an nn.Module is needed, got {type(net).__name__}")
        self._check_wires(f"features '{name}'", wires)
        found = _declared_shapes(shapes) if shapes is not None else self._dry_run(net, name, wires)
        outputs = tuple(
            self._new_wire(name if key is None else f"{name}.{key}", shape, "condition") for key, shape in found.items()
        )
        self.nodes.append(Node(name, "features", type(net), net, {}, wires, (), outputs, tuple(found)))
        if None in found:
            return outputs[0]
        if all(isinstance(key, int) for key in found):
            return outputs
        return dict(zip(found, outputs, strict=True))

    def add(self, part: Any, *wires: Wire, given: Given = None, name: str | None = None, **config: Any) -> Any:
        """A bijection on these data wires.

        Args:
            part: a `Bijection` class, constructed with the wires' shapes (new weights in every Flow); an instance,
                shared by all Flows; or a `Graph`, nested.
            wires: the data wires that it consumes.
            given: its conditions: a wire, a list of wires, or, for a nested network, a dictionary by its condition
                names.
            name: by default counted per class, `affine_coupling_1`.
            config: options of the class.

        Returns:
            Its output wire, or a tuple of them.
        """
        if isinstance(part, Graph):
            from flowkit.graph.network import InvertibleNetwork

            part, config = InvertibleNetwork, {"graph": part, **config}
        config = {key: frozen(value) for key, value in config.items()}
        if isinstance(part, Wire):
            raise GraphError(f"add takes the part first, then its wires: graph.add(fk.AffineCoupling, {part.name})")
        cls = part if inspect.isclass(part) else type(part)
        name = self._node_name(name, cls)
        if not issubclass(cls, Bijection):
            hint = ": feed-forward nets are declared by graph.features" if issubclass(cls, nn.Module) else ""
            raise GraphError(
                f"node '{name}': a Bijection, an instance of one or a Graph is needed, got {cls.__name__}{hint}"
            )
        self._check_wires(f"node '{name}'", wires)
        self._check_linear(name, wires)
        conditions = self._conditions_of(name, part, given, config)
        if part is cls:
            shaped = probe(cls, name, wires, conditions, config)
        else:
            check_instance(part, name, wires, conditions, config)
            shaped = part
        self._check_condition_dtypes(name, cls, shaped, conditions)
        for wire in wires:
            self.consumers[wire.index] = f"node '{name}'"
        count = len(shaped.out_shapes)
        outputs = tuple(
            self._new_wire(name if count == 1 else f"{name}.{i}", shape, "data")
            for i, shape in enumerate(shaped.out_shapes)
        )
        self.nodes.append(
            Node(name, "bijection", cls, None if part is cls else part, config, wires, conditions, outputs)
        )
        return outputs[0] if count == 1 else outputs

    def output(self, name: str, wire: Wire) -> None:
        """Make a data wire a named output: a part of the latent."""
        _check_identifier(name)
        if name in self.outputs:
            raise GraphError(f"there is already an output '{name}'")
        self._check_wires(f"output '{name}'", (wire,))
        if wire.kind == "condition":
            raise GraphError(f"output '{name}': '{wire.name}' is a condition; an output is a data wire")
        if wire.index in self.consumers:
            raise GraphError(
                f"output '{name}' uses the data wire '{wire.name}' {wire.shape}, which {self.consumers[wire.index]} "
                "has used already: a data wire is used exactly once"
            )
        self.consumers[wire.index] = f"output '{name}'"
        self.outputs[name] = wire

    # ------------------------------------------------------------------ looking at it

    def wire(self, name: str) -> Wire:
        """The wire of that name.

        Raises:
            GraphError: there is none.
        """
        for wire in self.wires:
            if wire.name == name:
                return wire
        raise GraphError(f"the graph has no wire '{name}'; it has {listing([w.name for w in self.wires])}")

    def check(self, also_used: Iterable[Wire] = ()) -> None:
        """Refuse a graph that cannot be built: wires or conditions unused, no output, an inverse that cannot run."""
        from flowkit.graph.schedule import check

        check(self, tuple(also_used))

    def draw(self, form: str = "text") -> str:
        """The graph as `"text"`, `"mermaid"` or `"svg"`: nodes, shapes, conditions and parameter counts."""
        from flowkit.graph.draw import draw

        return draw(self, form)

    def to_dict(self) -> dict[str, Any]:
        """The graph as plain data that JSON holds; what cannot be written is kept as its repr."""
        from flowkit.graph.files import graph_to_dict

        return graph_to_dict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Graph:
        """The graph that `to_dict` wrote.

        Raises:
            StorageError: not such a dictionary, or one that holds what could not be written.
            GraphError: the described graph cannot be declared.
            RegistryError: it needs a plugin that is missing.
        """
        from flowkit.graph.files import graph_from_dict

        return graph_from_dict(data)

    @staticmethod
    def from_toml(path: str | os.PathLike) -> Graph:
        """The graph that somebody wrote by hand in a TOML file: see `docs/files.md`.

        Raises:
            StorageError: no such file, or a table in it that is not what it must be; the message names it.
            GraphError: the described graph cannot be declared, or stands beside a base: `fk.Flow.from_toml` reads both.
            RegistryError: it needs a plugin that is missing.
        """
        from flowkit.graph.toml import read_toml

        graph, base, _ = read_toml(path)
        if base is not None:
            raise GraphError(f"'{path}' has a [base], which no graph has: fk.Flow.from_toml reads both")
        return graph

    def snapshot(self) -> Graph:
        """A copy that declarations made later do not change; wires, nodes and parts are the same objects."""
        copy = Graph()
        copy.wires, copy.nodes = list(self.wires), list(self.nodes)
        copy.inputs, copy.conditions = list(self.inputs), list(self.conditions)
        copy.outputs, copy.consumers = dict(self.outputs), dict(self.consumers)
        return copy

    def __repr__(self) -> str:
        from flowkit.graph.draw import summary

        return summary(self, "Graph")

    # ------------------------------------------------------------------ checks of one declaration

    def _new_wire(self, name: str, shape: Shape, kind: Any, dtype: torch.dtype | None = None) -> Wire:
        wire = Wire(self, len(self.wires), name, shape, kind, dtype)
        self.wires.append(wire)
        return wire

    def _check_name(self, name: str) -> None:
        _check_identifier(name)
        things: list[Wire | Node] = [*self.inputs, *self.conditions, *self.nodes]
        for thing in things:
            if thing.name == name:
                what = f"node '{name}'" if isinstance(thing, Node) else f"'{name}' {thing.shape}"
                raise GraphError(f"the name '{name}' is taken already, by {what}")

    def _node_name(self, name: str | None, cls: type) -> str:
        if name is not None:
            self._check_name(name)
            return name
        taken = {wire.name for wire in (*self.inputs, *self.conditions)} | {node.name for node in self.nodes}
        base, number = snake_case(cls.__name__), 1
        while f"{base}_{number}" in taken:
            number += 1
        return f"{base}_{number}"

    def _check_wires(self, who: str, wires: Sequence[Any]) -> None:
        if not wires:
            raise GraphError(f"{who}: at least one wire is needed")
        for wire in wires:
            if not isinstance(wire, Wire):
                hint = " (unpack it with *)" if isinstance(wire, tuple | list) else ""
                raise GraphError(f"{who}: a wire is needed, got {type(wire).__name__}{hint}")
            if wire.graph is not self:
                raise GraphError(f"{who}: the wire '{wire.name}' {wire.shape} belongs to another graph")

    def _check_linear(self, name: str, wires: tuple[Wire, ...]) -> None:
        for position, wire in enumerate(wires):
            if wire.kind == "condition":
                raise GraphError(f"node '{name}': '{wire.name}' {wire.shape} is a condition: pass it by given=")
            user = f"node '{name}' itself" if wire in wires[:position] else self.consumers.get(wire.index)
            if user is not None:
                raise GraphError(
                    f"node '{name}' uses the data wire '{wire.name}' {wire.shape}, which {user} has used already: "
                    "a data wire is used exactly once"
                )

    def _conditions_of(self, name: str, part: Any, given: Given, config: dict) -> tuple[Wire, ...]:
        if given is None:
            wires: list[Any] = []
        elif isinstance(given, Mapping):
            wires = self._by_name(name, part, given, config)
        else:
            wires = list(given) if isinstance(given, list | tuple) else [given]
        if wires:
            self._check_wires(f"node '{name}' given", wires)
        return tuple(wires)

    def _by_name(self, name: str, part: Any, given: Mapping[str, Any], config: dict) -> list[Any]:
        inner = config.get("graph") if inspect.isclass(part) else getattr(part, "graph", None)
        if not isinstance(inner, Graph):
            raise GraphError(
                f"node '{name}': only a nested network names its conditions; pass given as a list of wires"
            )
        names = [wire.name for wire in inner.conditions]
        missing, unknown = [n for n in names if n not in given], [n for n in given if n not in names]
        if missing or unknown:
            problems = [f"missing {listing(missing)}"] * bool(missing) + [f"not known {listing(unknown)}"] * bool(
                unknown
            )
            raise GraphError(f"node '{name}' needs the conditions {listing(names)}: {', '.join(problems)}")
        return [given[n] for n in names]

    def _check_condition_dtypes(
        self, name: str, cls: type[Bijection], part: Bijection, conditions: tuple[Wire, ...]
    ) -> None:
        inner = getattr(part, "graph", None)
        wanted = [w.dtype for w in inner.conditions] if isinstance(inner, Graph) else [None] * len(conditions)
        for wire, dtype in zip(conditions, wanted, strict=True):
            if wire.dtype is not None and dtype is None and not cls.integer_conditions:
                raise GraphError(
                    f"node '{name}': {cls.__name__} cannot take the integer condition '{wire.name}' {wire.shape}: "
                    f"make it a vector with graph.features(fk.OneHot(n), {wire.name})"
                )
            if dtype is not None and wire.dtype is None:
                raise GraphError(
                    f"node '{name}': {cls.__name__} needs a condition of integers ({dtype}), '{wire.name}' "
                    f"{wire.shape} is "
                    f"not: declare it with graph.condition('{wire.name}', {wire.shape}, dtype={dtype})"
                )

    def _dry_run(self, net: nn.Module, name: str, wires: tuple[Wire, ...]) -> dict[str | int | None, Shape]:
        try:
            return dry_run.output_shapes(net, [(wire.shape, wire.dtype) for wire in wires])
        except FlowkitError as error:
            raise GraphError(
                f"features '{name}' ({type(net).__name__}) on {describe(wires)}: {error}; pass shapes= to say "
                "what it returns"
            ) from error


def snake_case(name: str) -> str:
    """A class name as a node name.

    >>> snake_case("AffineCoupling"), snake_case("MLP"), snake_case("LULinear"), snake_case("Conv1x1")
    ('affine_coupling', 'mlp', 'lu_linear', 'conv1x1')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().strip("_")


def _check_identifier(name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise GraphError(f"{name!r:.80} is no name: letters, digits and underscores are needed, the first no digit")


def _declared_shapes(shapes: Any) -> dict[str | int | None, Shape]:
    if isinstance(shapes, int):
        return {None: as_shape(shapes)}
    if isinstance(shapes, Mapping):
        return {key: as_shape(shape) for key, shape in shapes.items()}
    if all(isinstance(size, int) for size in shapes):
        return {None: as_shape(shapes)}
    return {i: as_shape(shape) for i, shape in enumerate(shapes)}
