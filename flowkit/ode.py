"""Solvers of dx/dt = f(t, x): fixed steps of our own, which compile, and torchdiffeq's adaptive ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.errors import ConvergenceError, MissingDependencyError

State = tuple[Tensor, ...]
Field = Callable[[Tensor | float, State], State]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
ROUNDINGS = 32  # an adaptive solver asked for less than so many roundings would take ever smaller steps


def _moved(state: State, slopes: Sequence[State], weights: Sequence[float]) -> State:
    """The state plus a weighted sum of slopes."""
    moved = []
    for i, value in enumerate(state):
        for slope, weight in zip(slopes, weights, strict=True):
            value = value + weight * slope[i]
        moved.append(value)
    return tuple(moved)


def _rk4(field: Field, t: float, state: State, h: float) -> State:
    """Kutta's 3/8 rule, of order four, as torchdiffeq's rk4."""
    k1 = field(t, state)
    k2 = field(t + h / 3, _moved(state, (k1,), (h / 3,)))
    k3 = field(t + 2 * h / 3, _moved(state, (k1, k2), (-h / 3, h)))
    k4 = field(t + h, _moved(state, (k1, k2, k3), (h, -h, h)))
    return _moved(state, (k1, k2, k3, k4), (h / 8, 3 * h / 8, 3 * h / 8, h / 8))


def _midpoint(field: Field, t: float, state: State, h: float) -> State:
    """Of order two."""
    half = _moved(state, (field(t, state),), (h / 2,))
    return _moved(state, (field(t + h / 2, half),), (h,))


FIXED: dict[str, Callable[[Field, float, State, float], State]] = {"rk4": _rk4, "midpoint": _midpoint}


def fixed_steps(solver: str, field: Field, state: State, start: float, end: float, steps: int) -> State:
    """The state at time `end`, by so many steps of one size: every operation is recorded.

    >>> (x,) = fixed_steps("rk4", lambda t, state: state, (torch.ones(1),), 0.0, 1.0, 8)
    >>> round(x.item(), 4)
    2.7183
    """
    h = (end - start) / steps
    for step in range(steps):
        state = FIXED[solver](field, start + step * h, state, h)
    return state


def adaptive_steps(
    owner: str,
    solver: str,
    field: Field,
    state: State,
    start: float,
    end: float,
    tolerance: float,
    most: int,
    adjoint: Sequence[Tensor] | None = None,
) -> State:
    """The state at time `end`, by steps whose size torchdiffeq chooses, with the tolerance both relative and absolute.

    Args:
        owner: the bijection, for messages.
        solver: one of `ADAPTIVE`.
        field: f.
        state: at `start`, tensors with a batch dimension.
        start, end: times, in either order.
        tolerance: of a step's error, a mean square over the whole state.
        most: steps.
        adjoint: what f depends on besides the state; backward then solves the adjoint equation and keeps no step. None
            records every step.

    Raises:
        MissingDependencyError: torchdiffeq is not installed.
        ConvergenceError: too many steps, or too small ones.
    """
    library = torchdiffeq(f"{owner} with solver={solver!r}")
    x = state[0]
    times = torch.tensor([start, end], dtype=x.dtype, device=x.device)
    tolerance = max(tolerance, ROUNDINGS * torch.finfo(x.dtype).eps)
    settings: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "method": solver}
    # A step ends at the end: torchdiffeq else steps beyond it and interpolates, less exactly than it steps.
    settings["options"] = {"max_num_steps": most, "step_t": times[-1:]}
    try:
        if adjoint is None:
            solved = library.odeint(field, state, times, **settings)
        else:
            settings["adjoint_params"] = tuple(adjoint)
            settings["adjoint_options"] = {"max_num_steps": most, "step_t": times[:1]}
            solved = library.odeint_adjoint(field, state, times, **settings)
    except AssertionError as error:
        raise ConvergenceError(
            f"{owner}: {solver} did not reach its tolerance of {tolerance:g} in {most} steps ({error}): allow a larger "
            "tolerance, or more steps"
        ) from error
    return tuple(values[-1] for values in solved)


def torchdiffeq(what: str) -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed; `what` needs it.
    """
    try:
        with torch.device("cpu"):  # a graph is built on the meta device, where the solvers' constants would be lost
            import torchdiffeq as library
    except ImportError as error:
        raise MissingDependencyError(f"{what} needs torchdiffeq: python -m pip install 'flowkit[ode]'") from error
    return library
