"""What a graph is made of: wires and nodes. Plain data; no tensor is computed here."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from flowkit.registry import picklable
from flowkit.shapes import Shape

if TYPE_CHECKING:
    from flowkit.graph.graph import Graph


@dataclass(eq=False)
class Wire:
    """A symbolic tensor in a graph under construction: a name and an event shape.

    Attributes:
        graph: the graph that made it; a wire belongs to one graph.
        index: its number among the graph's wires, in declaration order.
        name: an input's, condition's or node's name; `node.0`, `node.1` where a node has several outputs.
        shape: the event shape, without batch.
        kind: `"data"`, consumed exactly once, or `"condition"`, used any number of times.
        dtype: of an integer condition; None for floating point.
    """

    graph: Graph = field(repr=False)
    index: int
    name: str
    shape: Shape
    kind: Literal["data", "condition"]
    dtype: torch.dtype | None = None

    def __repr__(self) -> str:
        dtype = f" {self.dtype}" if self.dtype is not None else ""
        return f"<{self.kind} wire '{self.name}' {self.shape}{dtype}>"


@dataclass(eq=False)
class Node:
    """A bijection or a feature net in a graph.

    Attributes:
        name: unique in the graph, an identifier.
        kind: `"bijection"` or `"features"`.
        cls: the class of the part.
        module: the part itself, shared by all Flows of the graph; None for a class, of which every Flow builds its own.
        config: what the class is constructed with, besides shapes.
        inputs: data wires of a bijection; any known wires of a feature net.
        given: the conditions of a bijection.
        outputs: the wires that it makes.
        keys: for a feature net, how each output is found in what it returns: None, a position, or a dictionary's key.
    """

    name: str
    kind: Literal["bijection", "features"]
    cls: type
    module: nn.Module | None
    config: dict[str, Any]
    inputs: tuple[Wire, ...]
    given: tuple[Wire, ...]
    outputs: tuple[Wire, ...]
    keys: tuple[str | int | None, ...] = ()

    def __deepcopy__(self, memo: dict) -> Node:
        new = memo[id(self)] = object.__new__(type(self))
        new.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return new

    def __getstate__(self) -> dict[str, Any]:
        # A lambda among the options must not make the flow unpicklable: a pickle keeps its text.
        return {**self.__dict__, "config": {key: picklable(value) for key, value in self.config.items()}}


def describe(wires: tuple[Wire, ...] | list[Wire]) -> str:
    """Wires as an error message holds them: `'x' (2, 8, 8) and 'label' (10,)`."""
    each = [f"'{wire.name}' {wire.shape}" for wire in wires]
    if len(each) < 2:
        return "".join(each) or "none"
    return ", ".join(each[:-1]) + " and " + each[-1]
