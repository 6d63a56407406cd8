"""In which order the nodes run, forward and inverse: found once, when a network is built, with all that is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowkit.errors import GraphError
from flowkit.graph.parts import Node, Wire, describe
from flowkit.shapes import listing

if TYPE_CHECKING:
    from flowkit.graph.graph import Graph


@dataclass(frozen=True)
class Step:
    """One node's turn: wires by index. `drops` are the data wires that nothing needs afterwards."""

    name: str
    features: bool
    takes: tuple[int, ...]
    given: tuple[int, ...]
    gives: tuple[int, ...]
    keys: tuple[str | int | None, ...]
    drops: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """`conditions`: the feature nets that see conditions alone; `forward` and `inverse`: the rest, each way."""

    conditions: tuple[Step, ...]
    forward: tuple[Step, ...]
    inverse: tuple[Step, ...]
    pure: frozenset[int]  # condition wires that depend on no data


def check(graph: Graph, also_used: tuple[Wire, ...] = ()) -> None:
    """Refuse a graph that cannot be built; `also_used` are condition wires that the base distribution takes."""
    make_schedule(graph, also_used)


def make_schedule(graph: Graph, also_used: tuple[Wire, ...] = ()) -> Schedule:
    """Both orders, after every check of the whole graph.

    Raises:
        GraphError: no input or output, something unused, or an inverse that would need what it does not know yet.
    """
    _check_all_used(graph, also_used)
    pure = _pure_conditions(graph)
    first = [n for n in graph.nodes if n.kind == "features" and all(w.index in pure for w in n.inputs)]
    rest = [n for n in graph.nodes if n not in first]
    keep = {wire.index for wire in graph.outputs.values()}
    forward = _steps(rest, keep, inverse=False)
    keep = {wire.index for wire in graph.inputs}
    inverse = _steps(_inverse_order(graph, rest, pure), keep, inverse=True)
    return Schedule(_steps(first, pure, inverse=False), forward, inverse, frozenset(pure))


def _check_all_used(graph: Graph, also_used: tuple[Wire, ...]) -> None:
    if not graph.inputs:
        raise GraphError("the graph has no input: declare one with graph.input(name, shape)")
    if not graph.outputs:
        raise GraphError("the graph has no output: declare one with graph.output(name, wire)")
    for wire in graph.wires:
        if wire.kind == "data" and wire.index not in graph.consumers:
            maker = next((f"made by node '{n.name}'" for n in graph.nodes if wire in n.outputs), "an input")
            raise GraphError(
                f"the data wire '{wire.name}' {wire.shape}, {maker}, is never used: give it to a node or make it "
                "an output"
            )
    used = {wire.index for wire in also_used}
    for node in graph.nodes:
        used |= {wire.index for wire in (*node.given, *(node.inputs if node.kind == "features" else ()))}
    for wire in graph.conditions:
        if wire.index not in used:
            raise GraphError(f"the condition '{wire.name}' {wire.shape} is never used: pass it to a node by given=")
    for node in graph.nodes:
        if node.kind == "features" and not any(wire.index in used for wire in node.outputs):
            raise GraphError(
                f"no output of the features '{node.name}' is used: pass {describe(node.outputs)} to a node by given="
            )


def _pure_conditions(graph: Graph) -> set[int]:
    pure = {wire.index for wire in graph.conditions}
    for node in graph.nodes:
        if node.kind == "features" and all(wire.index in pure for wire in node.inputs):
            pure |= {wire.index for wire in node.outputs}
    return pure


def _inverse_order(graph: Graph, nodes: list[Node], pure: set[int]) -> list[Node]:
    """From the outputs back: a node runs when its outputs and conditions are known, the last declared first."""
    known = pure | {wire.index for wire in graph.outputs.values()}
    waiting, order = list(nodes), []
    while waiting:
        ready = [node for node in reversed(waiting) if all(w.index in known for w in _needs(node))]
        if not ready:
            raise GraphError(_why_stuck(graph, waiting, known))
        # Feature nets first: another node may be waiting for what they give, and they cost no data wire.
        node = next((n for n in ready if n.kind == "features"), ready[0])
        known |= {w.index for w in (node.outputs if node.kind == "features" else node.inputs)}
        order.append(node)
        waiting.remove(node)
    return order


def _needs(node: Node) -> tuple[Wire, ...]:
    return node.inputs if node.kind == "features" else (*node.outputs, *node.given)


def _why_stuck(graph: Graph, waiting: list[Node], known: set[int]) -> str:
    """Name the node whose condition comes too late in the inverse, and the node that would make it known."""
    finders = {wire.index: node for node in graph.nodes if node.kind == "bijection" for wire in node.inputs}
    makers = {wire.index: node for node in graph.nodes for wire in node.outputs}
    for node in reversed(waiting):
        if node.kind == "features" or not all(w.index in known for w in node.outputs):
            continue
        wire = next(w for w in node.given if w.index not in known)
        chain, at = f"its condition '{wire.name}' {wire.shape}", wire
        while at.kind == "condition":  # a feature of a data wire that is not known
            net = makers[at.index]
            at = next(w for w in net.inputs if w.index not in known)
            chain += f", computed by the features '{net.name}' from '{at.name}' {at.shape},"
        finder = finders[at.index]
        whose = "this very node" if finder is node else f"node '{finder.name}'"
        return (
            f"the inverse cannot run: node '{node.name}' needs {chain} before it can be inverted, but the inverse "
            "knows "
            f"'{at.name}' only after it has inverted {whose}"
        )
    return f"the inverse cannot run: the nodes {listing([n.name for n in waiting])} wait for each other"


def _steps(nodes: list[Node], keep: set[int], *, inverse: bool) -> tuple[Step, ...]:
    """Steps, with the data wires that are needed no more after each, so that their memory is free."""
    needed, steps = set(keep), []
    for node in reversed(nodes):
        back = inverse and node.kind == "bijection"
        takes, gives = (node.outputs, node.inputs) if back else (node.inputs, node.outputs)
        reads = [wire.index for wire in (*takes, *node.given)]
        drops = tuple(dict.fromkeys(i for i in reads if i not in needed))
        needed |= set(reads)
        steps.append(
            Step(
                node.name,
                node.kind == "features",
                tuple(w.index for w in takes),
                tuple(w.index for w in node.given),
                tuple(w.index for w in gives),
                node.keys,
                drops,
            )
        )
    return tuple(reversed(steps))
