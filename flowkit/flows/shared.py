"""What the ready flows share: counts, conditions, and a chain of couplings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowkit.arguments import is_int
from flowkit.errors import ConfigError
from flowkit.features import Resize, ToMap
from flowkit.flow import Flow
from flowkit.graph import Graph, Wire
from flowkit.shapes import Shape, as_shape
from flowkit.strict_json import shown
from flowkit.subnets import MLP, ConvNet

Condition = int | Sequence[int] | Mapping[str, int | Sequence[int]] | None
SIDES = ("second", "first")


def coupling_chain(
    name: str,
    coupling: type,
    features: int | Sequence[int],
    condition: Condition,
    layers: int,
    hidden: int | Sequence[int],
    config: dict[str, Any],
    end: Callable[[Graph, Wire], Wire] | None = None,
    between: Callable[[Graph, Wire], Wire] | None = None,
) -> Flow:
    """Couplings whose halves take turns, with what lies between them and at their end."""
    check_count(name, "layers", layers)
    shape = as_shape(features)
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    subnet = MLP(hidden=widths) if len(shape) == 1 else ConvNet(hidden=widths)
    graph = Graph()
    wires = declare_conditions(graph, condition)
    x = graph.input("x", shape)
    given = given_of([at_size(graph, wire, shape) for wire in wires])
    for layer in range(layers):
        if between is not None:
            x = between(graph, x)
        x = graph.add(coupling, x, subnet=subnet, active=SIDES[layer % 2], **given, **config)
    graph.output("z", x if end is None else end(graph, x))
    return Flow(graph)


def check_count(name: str, what: str, count: int) -> None:
    """Refuse a count that is no int of at least 1."""
    if not is_int(count) or count < 1:
        raise ConfigError(f"{name}: {what} must be an int of at least 1, got {shown(count)}")


def declare_conditions(graph: Graph, condition: Condition) -> list[Wire]:
    """The condition wires that the caller's `condition` asks for."""
    if condition is None:
        return []
    named = condition if isinstance(condition, Mapping) else {"y": condition}
    return [graph.condition(name, as_shape(shape)) for name, shape in named.items()]


def given_of(wires: list[Wire]) -> dict[str, Any]:
    """The keyword for `graph.add`, left out where there are no conditions."""
    return {"given": wires} if wires else {}


def at_size(graph: Graph, wire: Wire, shape: Shape) -> Wire:
    """The condition at the data's spatial size, where an adaptor can bring it there; else the coupling refuses it."""
    if len(wire.shape) == 1 and len(shape) > 1:
        return graph.features(ToMap(shape[1:]), wire)
    if len(wire.shape) == len(shape) > 1 and wire.shape[1:] != shape[1:]:
        return graph.features(Resize(shape[1:]), wire)
    return wire
