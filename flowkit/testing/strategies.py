"""Hypothesis strategies: shapes, registered bijections at other sizes, and random graphs with data.

hypothesis is imported here and nowhere else in flowkit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import flowkit as fk
from flowkit.registry import Example
from flowkit.testing.case import Case, cases
from flowkit.testing.check import subjects_of
from flowkit.testing.random_graph import GraphBuilder
from flowkit.testing.subject import Subject, isolated, redraw_weights

try:
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover (the tests have it)
    raise fk.MissingDependencyError(
        "flowkit.testing.strategies needs hypothesis: python -m pip install hypothesis"
    ) from error

Shape = tuple[int, ...]


@st.composite
def shapes(draw: st.DrawFn, min_rank: int = 1, max_rank: int = 4, max_side: int = 4, max_elements: int = 24) -> Shape:
    """Event shapes `(C, ...)`, small enough for Jacobians; odd channel counts and single channels are common.

    Args:
        draw: hypothesis's.
        min_rank: 0 has the scalar `()` among them.
        max_rank: dimensions at most.
        max_side: of each dimension.
        max_elements: of the whole.
    """
    rank = draw(st.integers(min_rank, max_rank))
    shape: list[int] = []
    for _ in range(rank):
        room = max_elements // math.prod(shape)
        shape.append(draw(st.integers(1, max(1, min(max_side, room)))))
    return tuple(shape)


@st.composite
def bijections(draw: st.DrawFn, prefix: str | None = None, resized: bool = True) -> Subject:
    """A registered bijection as a `Subject` of the kit, with one of its examples, other weights, often another size.

    The laws are tried with `flowkit.testing.check.run_law`. A size that the bijection refuses, when the subject's
    `original` is built, is refused with a `fk.FlowkitError`; any other error is a fault.

    Args:
        draw: hypothesis's.
        prefix: of one plugin; None is flowkit and all installed plugins.
        resized: whether shapes may differ from the example's.
    """
    case: Case = draw(st.sampled_from(_cases(prefix)))
    options = {"seed": draw(st.integers(0, 2**16)), "rows": draw(st.integers(1, 4))}
    if not resized or not draw(st.booleans()):
        index = [c.example is case.example for c in _cases(prefix) if c.name == case.name].index(True)
        return subjects_of(case.name, None, options)[index]
    return subjects_of(case.cls, draw(_resized(case.example)), options)[0]


_found: dict[str | None, list[Case]] = {}


def _cases(prefix: str | None) -> list[Case]:
    if prefix not in _found:
        _found[prefix] = cases(prefix)
    return _found[prefix]


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(v, int) for v in value)


@st.composite
def _resized(draw: st.DrawFn, example: Example) -> Example:
    """The example with other channel counts, other sides, and sometimes one more spatial dimension."""
    sides: dict[int, int] = {}
    deeper = draw(st.booleans())
    channels = draw(st.integers(1, 5))

    def change(shape: Any, first: bool) -> Any:
        if not _is_shape(shape):
            return shape
        for side in shape[1:]:
            sides.setdefault(side, draw(st.integers(1, 4)))
        tail = tuple(sides[side] for side in shape[1:])
        extra = (2,) if deeper and 1 < len(shape) < 4 else ()
        return (channels if first else shape[0], *tail, *extra)

    config = copy.deepcopy(example.config)
    given = config.get("given")
    if _is_shape(given):
        config["given"] = change(given, first=False)
    elif isinstance(given, tuple | list):
        config["given"] = tuple(change(shape, first=False) for shape in given)
    return Example(*(change(shape, first=i == 0) for i, shape in enumerate(example.in_shapes)), **config)


class GraphCase:
    """A random graph, and data for it.

    Attributes:
        graph: built by public calls only.
        calls: those calls, as text: what a failing test prints.
        seed: of weights and data.
        inputs: tensors `(rows, *shape)` by name, float64.
        conditions: likewise.
    """

    def __init__(self, graph: fk.Graph, calls: Sequence[str], seed: int, rows: int) -> None:
        self.graph, self.calls, self.seed = graph, tuple(calls), seed
        generator = torch.Generator().manual_seed(seed)

        def normal(shape: Shape) -> Tensor:
            return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

        self.inputs = {wire.name: normal(wire.shape) for wire in graph.inputs}
        self.conditions = {wire.name: normal(wire.shape) for wire in graph.conditions}

    def __repr__(self) -> str:
        return "\n".join(["graph = fk.Graph()", *self.calls, f"# seed {self.seed}"])

    def flow(self) -> fk.Flow:
        """A float64 flow of the graph in eval mode, its weights redrawn; the graph's own instances stay as they are."""
        with isolated(self.seed, torch.float64):
            flow = copy.deepcopy(fk.Flow(self.graph)).double().eval()
            redraw_weights(flow.network, self.seed)
        return flow

    @property
    def x(self) -> Any:
        """The inputs as a flow takes them."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else self.inputs

    @property
    def given(self) -> dict[str, Tensor] | None:
        """The conditions as a flow takes them."""
        return self.conditions or None


@st.composite
def graphs(
    draw: st.DrawFn, max_nodes: int = 8, max_inputs: int = 2, max_conditions: int = 3, rows: int = 3
) -> GraphCase:
    """Random graphs: splits, merges, nested graphs, shared instances, several inputs and outputs, conditions at several
    scales, feature nets, and already-known data wires as conditions.

    Args:
        draw: hypothesis's.
        max_nodes: bijections besides those that conditions left over need.
        max_inputs: data inputs.
        max_conditions: declared conditions.
        rows: of the data.
    """
    seed = draw(st.integers(0, 2**16))

    def pick(choices: Sequence[Any]) -> Any:
        return draw(st.sampled_from(list(choices)))

    with isolated(seed, torch.float64):
        builder = GraphBuilder(pick)
        builder.declare(pick(range(1, max_inputs + 1)), pick(range(max_conditions + 1)))
        builder.grow(draw(st.integers(0, max_nodes)))
        graph = builder.finish()
    return GraphCase(graph, builder.calls, seed, rows)
