"""What univariate maps without a closed inverse share: linear tails, the iteration, and a start that is not stuck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import HALF
from flowkit.bisection import TOLERANCE, solve_monotone
from flowkit.errors import ConfigError
from flowkit.shapes import Shape
from flowkit.univariate.univariate import Univariate

# Steps of the inverse at most, as many as make it converge whatever is predicted, within 1e4; sigmoidal slopes have no
# upper bound, and the root may lie in the one steep part of a bracket of millions.
STEPS_WITH_TAILS = 24
STEPS_OF_MIXTURE = 40
STEPS_OF_SIGMOIDAL = 56
MARGIN = 1.05
RATES = (0.5, 1.5)


class LinearTails(Univariate):
    """A monotone map F on [-bound, bound], continued beyond with the slopes of its ends: onto the whole real line.

    With z = x clamped to [-bound, bound]:

    forward: y = F(z) + F'(z) (x - z), log-derivative log F'(z).
    inverse: the root of that, by safeguarded Newton steps; its log-derivative is minus log F'(z) there.

    Value and derivative are continuous, and 1e6 costs no more than float32's rounding. A subclass gives `inner`.
    """

    iterative: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE
    steps: ClassVar[int] = STEPS_WITH_TAILS

    def __init__(self, shape: Shape, bound: float):
        if not 0 < bound < math.inf:
            raise ConfigError(f"{type(self).__name__}: bound must be positive and finite, got {bound!r}")
        super().__init__(shape)
        self.bound = float(bound)

    def inner(self, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """`(F(z), F'(z))` for z within the bound."""
        raise NotImplementedError(f"{type(self).__name__} has no inner map")

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """What `inner` takes, of what was predicted; done once where the inverse calls `inner` many times."""
        return parameters

    def slope(self, z: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """`F'(z)` for z within the bound; override where it costs less than `inner`."""
        return self.inner(z, parameters)[1]

    def bracket(self, y: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Two points that the root lies between, and one that is near it: on the tangents, or on the chord."""
        edge = torch.full_like(y, self.bound)
        bottom, start = self.inner(-edge, parameters)
        top, end = self.inner(edge, parameters)
        below, above = (bottom - y).clamp_min(0) / start, (y - top).clamp_min(0) / end
        near = self.bound * (2 * ((y - bottom) / (top - bottom)).clamp(0, 1) - 1) - below + above
        # Further than the linear tails say: next to an end of the bracket Newton's steps would leave it.
        return -MARGIN * edge - 2 * below, MARGIN * edge + 2 * above, near

    def _within(self, x: Tensor) -> Tensor:
        return x.clamp(-self.bound, self.bound)

    def _with_tails(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        z = self._within(x)
        value, derivative = self.inner(z, parameters)
        return value + derivative * (x - z), derivative

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, parameters = wide(x, parameters)
        y, derivative = self._with_tails(x, self.constrain(parameters))
        return y, derivative.log()

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, parameters = wide(y, parameters)
        constrained = self.constrain(parameters)
        with torch.no_grad():
            low, high, near = self.bracket(y, constrained)
        x = solve_monotone(lambda at: self._with_tails(at, constrained), y, low, high, self.steps, near)
        return x, -self.slope(self._within(x), constrained).log()


def wide(x: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x and the parameters in one dtype, float32 or wider."""
    x = x.float() if x.dtype in HALF else x
    return x, tuple(each.to(x.dtype) for each in parameters)


def rates(count: int, shape: Shape) -> Tensor:
    """A factor for each of K components' numbers, `(K, 1, ...)`, from 1/2 to 3/2, in float64.

    Components that start equal get equal gradients, and would stay equal for ever; with rates they part at the first
    step, while zero parameters can still be the identity.
    """
    between = torch.linspace(*RATES, count, dtype=torch.float64) if count > 1 else torch.ones(1, dtype=torch.float64)
    return along(between, shape)


def along(values: Tensor, shape: Shape) -> Tensor:
    """A vector `(K,)` as `(K, 1, ...)`, which broadcasts against parameters `(B, K, C, ...)` of that event shape."""
    return values.reshape(-1, *[1] * len(shape))


def powers_of(u: Tensor, most: int) -> Tensor:
    """The powers 0 to `most` of u `(B, ...)`, `(B, most + 1, ...)`.

    By multiplications: the second derivative of torch's power of 0 is not a number, and 0 is every end of an interval.
    """
    found = [torch.ones_like(u)]
    for _ in range(most):
        found.append(found[-1] * u)
    return torch.stack(found, 1)


def soft_clamp(raw: Tensor, limit: float) -> Tensor:
    """Raw numbers kept within `limit`, with slope 1 at 0."""
    return raw / (1 + raw.abs() / limit)


def check_count(owner: str, what: str, count: Any, least: int) -> None:
    """Refuse a count that is no int of at least `least`."""
    if not is_int(count) or count < least:
        raise ConfigError(f"{owner}: {what} must be an int of at least {least}, got {count!r}")


def check_part(owner: str, what: str, value: float) -> None:
    """Refuse a smallest derivative or slope that is not between 0 and 1."""
    if not 0 < value < 1:
        raise ConfigError(f"{owner}: {what} must be above 0 and below 1, got {value!r}")


def check_limit(owner: str, limit: float) -> None:
    """Refuse a bound on log-scales that is not positive and finite."""
    if not 0 < limit < math.inf:
        raise ConfigError(f"{owner}: limit, the bound on the log-scales, must be positive and finite, got {limit!r}")
