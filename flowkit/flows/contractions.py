"""Residual flows, and continuous ones: nets that are invertible without a coupling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowkit.arguments import checked
from flowkit.bijections import ActNorm, ContinuousFlow, ResidualBlock
from flowkit.flow import Flow
from flowkit.flows.shared import Condition, at_size, check_count, declare_conditions, given_of
from flowkit.graph import Graph, Wire
from flowkit.shapes import as_shape


@checked
def residual_flow(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 8,
    hidden: int | Sequence[int] = (64, 64),
    coeff: float = 0.9,
    log_det: str = "auto",
) -> Flow:
    """A residual flow: blocks x + g(x), with an ActNorm before each, since a block stretches by less than 2.

    Call `flow.initialize(x)` once before training: ActNorm takes its start from data. Up to 32 elements the log-det is
    exact; beyond, an unbiased estimate, and `flow.exact` is False.

    Args:
        features: D, or a shape `(C, ...)` of a map; maps take convolutions of as many layers as `hidden` has widths,
            and one.
        condition: see the module.
        layers: residual blocks.
        hidden: the widths of each block's hidden layers.
        coeff, log_det: the bound on each block's Lipschitz constant, and how its log-det is found, see
            `fk.ResidualBlock`.

    Raises:
        ShapeError: a scalar; a condition that does not fit.
        ConfigError: fewer than one layer; see `fk.ResidualBlock`.

    Source: Chen et al., Residual flows for invertible generative modeling, 2019.

    >>> residual_flow(2, condition={"label": 10}, layers=2).condition_shapes
    {'label': (10,)}
    """

    def block(graph: Graph, x: Wire, given: dict[str, Any]) -> Wire:
        x = graph.add(ActNorm, x)
        return graph.add(ResidualBlock, x, hidden=hidden, coeff=coeff, log_det=log_det, **given)

    return _chain("residual_flow", features, condition, layers, block)


@checked
def ffjord(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 1,
    hidden: int | Sequence[int] = (64, 64),
    solver: str = "dopri5",
    steps: int | None = None,
    tolerance: float = 1e-3,
    log_det: str = "auto",
    adjoint: bool = False,
) -> Flow:
    """FFJORD: the flow of a vector field that a net gives, or several after each other.

    The default solver needs torchdiffeq, `pip install 'flowkit[ode]'`; `solver="rk4"` with `steps` needs nothing, and
    compiles. Up to 32 elements the trace is exact; beyond, an unbiased estimate, and `flow.exact` is False.

    Args:
        features: D, or a shape `(C, ...)` of a map; maps take convolutions of as many layers as `hidden` has widths,
            and one.
        condition: see the module.
        layers: fields.
        hidden: the widths of each field's hidden layers.
        solver, steps, tolerance, log_det, adjoint: see `fk.ContinuousFlow`.

    Raises:
        ShapeError: a scalar; a condition that does not fit.
        ConfigError: fewer than one layer; see `fk.ContinuousFlow`.
        MissingDependencyError: an adaptive solver, and torchdiffeq is not installed.

    Source: Grathwohl et al., FFJORD: Free-form continuous dynamics for scalable reversible generative models, 2019.

    >>> import torch
    >>> flow = ffjord(2, condition=3, hidden=(16,), solver="rk4", steps=4)
    >>> flow.sample((5,), given=torch.zeros(3)).shape
    torch.Size([5, 2])
    """
    config: dict[str, Any] = {
        "solver": solver,
        "steps": steps,
        "tolerance": tolerance,
        "log_det": log_det,
        "adjoint": adjoint,
    }

    def block(graph: Graph, x: Wire, given: dict[str, Any]) -> Wire:
        return graph.add(ContinuousFlow, x, hidden=hidden, **given, **config)

    return _chain("ffjord", features, condition, layers, block)


def _chain(
    name: str,
    features: int | Sequence[int],
    condition: Condition,
    layers: int,
    block: Callable[[Graph, Wire, dict[str, Any]], Wire],
) -> Flow:
    check_count(name, "layers", layers)
    shape = as_shape(features)
    graph = Graph()
    wires = declare_conditions(graph, condition)
    x = graph.input("x", shape)
    given = given_of([at_size(graph, wire, shape) for wire in wires])
    for _ in range(layers):
        x = block(graph, x, given)
    graph.output("z", x)
    return Flow(graph)
