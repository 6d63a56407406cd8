"""Continuous flows: a vector field, followed for a while."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, zero_log_det
from flowkit.bijections.conditioning import check_conditions
from flowkit.bijections.linear import full_precision
from flowkit.bijections.residual import EXACT_UP_TO, LOG_DETS
from flowkit.errors import ConfigError, ShapeError
from flowkit.first_order import first_order
from flowkit.jacobian_net import JacobianNet, Linearized
from flowkit.ode import ADAPTIVE, FIXED, State, adaptive_steps, fixed_steps, torchdiffeq
from flowkit.registry import Example, register
from flowkit.shapes import numel

STEP_SHARE = 0.01  # of the tolerance that is promised, which each step of an adaptive solver may miss by
MOST_STEPS = 1000


def _examples() -> list[Example]:
    fixed, exact = {"solver": "rk4", "steps": 4, "tolerance": 1e-4}, {"tolerance": 1e-6}
    return [
        Example((1,), hidden=4, **fixed),
        Example((3,), given=((2,), (1,)), hidden=(5, 4), **exact),
        Example((2, 3), given=((1, 3),), hidden=3, activation="softplus", **fixed),
        Example((1, 2, 2), hidden=4, activation="silu", adjoint=True, **exact),
        Example((3,), given=(2,), hidden=5, log_det="estimate", adjoint=True, **exact),
        Example((3, 2, 1), hidden=3, log_det="estimate", **fixed),
    ]


@register("flowkit.continuous_flow", examples=_examples)
class ContinuousFlow(Bijection):
    """y = x(T), where dx/dt = f(t, x, c) and x(0) = x: the flow of a vector field that a net gives.

    forward: from time 0 to T, log-det the integral of tr(df/dx) over that way.
    inverse: from time T to 0 along the same field, log-det the integral of the trace over the way back.

    f is layers W a(h) + b + t v: the time moves every layer's bias, the conditions are added to the first. The last
    layer starts at zero, the flow as the identity. The trace is exact, one pass of the net with D tangents, or
    Hutchinson's unbiased estimate with one vector of random signs, drawn once a call, for which the flow is
    `stochastic`.

    A solver's map is not quite that of the field, so the inverse, the log-det and the gradients are judged by
    `tolerance` (`iterative`). With `solver="dopri5"`, `"dopri8"`, `"bosh3"` or `"adaptive_heun"` torchdiffeq chooses
    the steps so that each misses by a hundredth of the tolerance at most (`adaptive`); the rows of a batch share their
    steps. With `"rk4"` or `"midpoint"` there are `steps` of them, whatever the data: these compile and export, and
    `steps` must be chosen for the tolerance, which nothing checks. In float32 the tolerance is 4e-4 at best.

    Backward goes through every step, whose memory grows with their number; `adjoint=True` keeps none and solves the
    adjoint equation instead, with an adaptive solver, for first derivatives of that solver's accuracy; the second are
    refused.

    Shapes: x `(B, C)` or `(B, C, ...)` with up to three spatial dimensions, conditions `(B, C', ...)` of the same
    spatial size, log_det `(B,)`. Autocast is off within the flow. A row with NaN or infinity gives NaN.

    Args:
        shape: event shape.
        given: shapes of the conditions.
        hidden: widths of the hidden layers.
        activation: tanh, softplus, silu, elu or lipswish.
        kernel: an odd kernel size, for maps.
        time: T.
        log_det: `"exact"`, `"estimate"`, or `"auto"`, exact up to `exact_up_to` elements.
        exact_up_to: see `log_det`.
        solver: see above.
        tolerance: of the inverse and the log-det.
        steps: of a solver with fixed steps; the most of an adaptive one, 1000 by default.
        adjoint: see above.

    Raises:
        ShapeError: a scalar or more than three spatial dimensions; a condition that does not fit.
        ConfigError: a number out of its range; an unknown activation, solver or `log_det`; fixed steps without `steps`,
            or with `adjoint`.
        MissingDependencyError: an adaptive solver, and torchdiffeq is not installed.
        ConvergenceError: an adaptive solver needs more steps.
        BackpropError: in backward, a second derivative with `adjoint`.

    Source: Chen et al., Neural ordinary differential equations, 2018, theorem 1; Grathwohl et al., FFJORD: Free-form
        continuous dynamics for scalable reversible generative models, 2019, section 3.

    >>> flow = ContinuousFlow((3,), given=(2,), hidden=(16,), solver="rk4", steps=4)
    >>> y, log_det = flow(torch.ones(5, 3), torch.zeros(5, 2))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    iterative = True

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "tanh",
        kernel: int = 3,
        time: float = 1.0,
        log_det: str = "auto",
        exact_up_to: int = EXACT_UP_TO,
        solver: str = "dopri5",
        tolerance: float = 1e-3,
        steps: int | None = None,
        adjoint: bool = False,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        if not 1 <= len(shape) <= 4 or not numel(shape):
            raise ShapeError(f"ContinuousFlow needs vectors (D,) or maps, (C, ...) to (C, D, H, W), got shape {shape}")
        if log_det not in LOG_DETS:
            raise ConfigError(f"ContinuousFlow: log_det must be one of {', '.join(LOG_DETS)}, got {log_det!r}")
        if solver not in (*ADAPTIVE, *FIXED):
            known = ", ".join((*ADAPTIVE, *FIXED))
            raise ConfigError(f"ContinuousFlow: solver must be one of {known}, got {solver!r}")
        for name, value in (("time", time), ("tolerance", tolerance)):
            if not 0 < value < math.inf:
                raise ConfigError(f"ContinuousFlow: {name} must be a positive number, got {value!r}")
        if not is_int(exact_up_to) or exact_up_to < 0:
            raise ConfigError(f"ContinuousFlow: exact_up_to must be an int of at least 0, got {exact_up_to!r}")
        self.adaptive = solver in ADAPTIVE
        if steps is None and not self.adaptive:
            raise ConfigError(f"ContinuousFlow: solver={solver!r} takes fixed steps, and needs their number as steps=")
        steps = MOST_STEPS if steps is None else steps
        if not is_int(steps) or steps < 1:
            raise ConfigError(f"ContinuousFlow: steps must be an int of at least 1, got {steps!r}")
        if adjoint and not self.adaptive:
            raise ConfigError(
                f"ContinuousFlow: adjoint=True needs an adaptive solver, got {solver!r}: with fixed steps, save memory "
                "with fk.Flow(..., backprop='checkpoint')"
            )
        if self.adaptive:
            torchdiffeq(f"ContinuousFlow with solver={solver!r}")
        c_condition = check_conditions("ContinuousFlow", shape, self.condition_shapes)
        self.net = JacobianNet("ContinuousFlow", shape, c_condition, hidden, activation, kernel, timed=True)
        self.time, self.solver, self.steps, self.adjoint = float(time), solver, steps, adjoint
        self.tolerance = tolerance
        self.exact = log_det == "exact" or (log_det == "auto" and numel(shape) <= exact_up_to)
        self.stochastic = not self.exact

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """What the conditions add to the first layer; None without conditions."""
        if not conditions:
            return None
        with full_precision(conditions[0]):
            return (self.net.prepare(*conditions),)

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x(T), log_det)`; `given` is the conditions or one `fk.Prepared`."""
        return self._follow(x, given, 0.0, self.time)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x(0), log_det)` from x(T) = y."""
        return self._follow(y, given, self.time, 0.0)

    def inverse_only(self, y: Tensor, *given: Any) -> Tensor:
        """The inverse, with no trace."""
        return self._follow(y, given, self.time, 0.0, traced=False)[0]

    def _follow(
        self, x: Tensor, given: Sequence, start: float, end: float, traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        if self.adaptive and not x.shape[0]:
            return x.clone(), zero_log_det(x)  # there is no error to choose a step by
        with full_precision(x):
            weights, prepared = self.net.weights(), self.net.given(given)
            signs = None if self.exact or not traced else 2 * torch.bernoulli(torch.full_like(x, 0.5)) - 1
            # Backward by the adjoint equation runs f again, when `torch.func.functional_call` has put others in place.
            parameters: dict[str, Tensor] | None = dict(self.net.named_parameters()) if self.adjoint else None

            def field(t: Tensor | float, state: State) -> State:
                with full_precision(x):
                    arguments = (state[0], weights, prepared, t)
                    if parameters is None:
                        f = self.net.at(*arguments)
                    else:
                        f = torch.func.functional_call(self.net, parameters, arguments)
                    return (f.value, _trace(f, signs)) if traced else (f.value,)

            state: State = (x, zero_log_det(x)) if traced else (x,)
            if not self.adaptive:
                state = fixed_steps(self.solver, field, state, start, end, self.steps)
                return state[0], state[-1]
            bad = ~x.isfinite().flatten(1).all(1)  # one such row would spoil the steps of all
            clean = torch.where(bad.reshape(-1, *[1] * (x.dim() - 1)), torch.zeros_like(x), x)
            kept = None
            if parameters is not None:
                # Each once: the weights and what was prepared stand for the parameters that they come from.
                others = [p for name, p in parameters.items() if not name.endswith(("weight", "condition"))]
                kept = [t for t in (*weights, *others, prepared) if t is not None and t.requires_grad]
            tolerance = STEP_SHARE * self.tolerance
            state = adaptive_steps(
                "ContinuousFlow", self.solver, field, (clean, *state[1:]), start, end, tolerance, self.steps, kept
            )
            if self.adjoint:
                state = first_order("the adjoint equation: use adjoint=False", *state)
            state = tuple(v.masked_fill(bad.reshape(-1, *[1] * (v.dim() - 1)), math.nan) for v in state)
            return state[0], state[-1]

    def extra_repr(self) -> str:
        """The event shape, the solver, and how the log-det is found."""
        return f"{self.in_shapes[0]}, solver={self.solver!r}, log_det={'exact' if self.exact else 'estimate'}"


def _trace(f: Linearized, signs: Tensor | None) -> Tensor:
    if signs is None:
        return f.jacobian().diagonal(dim1=1, dim2=2).sum(1)
    return (f.push(signs.unsqueeze(0))[0] * signs).flatten(1).sum(1)
