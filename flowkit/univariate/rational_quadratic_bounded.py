"""Rational-quadratic splines of an interval onto itself, and of a circle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit.domain import check_domain
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.knots import wide
from flowkit.univariate.rational_quadratic import RationalQuadratic

OUTSIDE = ("refuse", "keep")


def _interval(owner: str, low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{owner} needs finite bounds with low < high, got {low!r} and {high!r}")
    return float(low), float(high)


@register("flowkit.bounded_rational_quadratic_spline")
class BoundedRationalQuadraticSpline(RationalQuadratic):
    """A monotone spline of rational quadratics of [low, high] onto itself, free in its derivatives at both ends.

    forward, its log-derivative, inverse, its log-derivative: those of `fk.RationalQuadraticSpline`, on [low, high].
    Zero parameters are the identity. For data that lies in a box, with a base such as `fk.Uniform` on it.

    Parameters: widths and heights `(B, K, C, ...)`, derivatives at all knots `(B, K + 1, C, ...)`; computed in float32
    or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2.
        low, high: the interval, whose ends belong to it.
        min_bin, min_derivative: see `fk.RationalQuadraticSpline`; K times min_bin must be below 1.
        outside: `"refuse"` values outside, in eager mode and both directions; or `"keep"` them, with log-derivative 0:
            then the density may jump at the ends.

    Raises:
        ConfigError: bounds that are not finite and in order, bins below 2, a minimum out of range, another `outside`.
        InputError: a value outside, with its index.

    Source: Durkan et al., Neural spline flows, 2019, section 3.1.

    >>> spline = BoundedRationalQuadraticSpline((3,), bins=4)
    >>> x = torch.tensor([[0.0, 0.3, 1.0]])
    >>> y, log_derivative = spline(x, *spline.split(torch.zeros(1, 3 * spline.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    def __init__(
        self,
        shape: Shape,
        bins: int = 8,
        low: float = 0.0,
        high: float = 1.0,
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
        outside: str = "refuse",
    ):
        name = type(self).__name__
        if outside not in OUTSIDE:
            raise ConfigError(f"{name}: outside must be 'refuse' or 'keep', got {outside!r}")
        super().__init__(shape, _interval(name, low, high), bins, min_bin, min_derivative, bins + 1)
        self.outside = outside
        self.domain = self.interval if outside == "refuse" else None

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        y, log_derivative = self._spline(self._checked(x), parameters, inverse=False)
        return self._within(y), log_derivative

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        x, log_derivative = self._spline(self._checked(y), parameters, inverse=True)
        return self._within(x), log_derivative

    def _within(self, image: Tensor) -> Tensor:
        """What rounding took beyond an end is put back on it: the way back would refuse it."""
        if self.outside != "refuse":
            return image
        return image + (image.clamp(*self.interval) - image).detach()

    def _checked(self, x: Tensor) -> Tensor:
        if self.outside == "refuse":
            check_domain(type(self).__name__, x, *self.interval, closed=True)
        return x

    def _with_ends(self, raw: Tensor) -> Tensor:
        return raw


@register("flowkit.circular_rational_quadratic_spline")
class CircularRationalQuadraticSpline(RationalQuadratic):
    """A monotone spline of rational quadratics of a circle, [low, high) with its ends joined, and a rotation.

    With f the spline of `fk.BoundedRationalQuadraticSpline` whose derivatives at both ends are equal, and
    wrap(x) = low + (x - low) mod (high - low):

    forward: y = wrap(f(wrap(x)) + r). its log-derivative: log f'(wrap(x)).
    inverse: x = f^-1(wrap(y - r)). its log-derivative: minus the above at x.

    Every real number is a point of the circle, its remainder; results lie in [low, high). The rotation r is predicted,
    and not bounded. Zero parameters are the identity. The density of a flow of these on a torus is continuous.

    Parameters: widths, heights and derivatives `(B, K, C, ...)`, the rotation `(B, C, ...)`; computed in float32 or
    wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2.
        low, high: the interval, by default [-pi, pi).
        min_bin, min_derivative: see `fk.RationalQuadraticSpline`; K times min_bin must be below 1.

    Raises:
        ConfigError: bounds that are not finite and in order, bins below 2, a minimum out of range.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, section 2.1.3.

    >>> spline = CircularRationalQuadraticSpline((1,), bins=4)
    >>> x = torch.tensor([[math.pi / 2 + 2 * math.pi]])
    >>> y, _ = spline(x, *spline.split(torch.zeros(1, spline.numbers_per_element)))
    >>> torch.allclose(y, x - 2 * math.pi, atol=1e-5)
    True
    """

    def __init__(
        self,
        shape: Shape,
        bins: int = 8,
        low: float = -math.pi,
        high: float = math.pi,
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
    ):
        super().__init__(shape, _interval(type(self).__name__, low, high), bins, min_bin, min_derivative, bins)
        self.parameter_shapes = (*self.parameter_shapes, ())
        self.domain = self.interval

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, values = wide(x, parameters)
        y, log_derivative = self._spline(self._wrap(x), values[:3], inverse=False)
        return self._wrap(y + values[3]), log_derivative

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, values = wide(y, parameters)
        return self._spline(self._wrap(y - values[3]), values[:3], inverse=True)

    def _wrap(self, x: Tensor) -> Tensor:
        low, high = self.interval
        return low + torch.remainder(x - low, high - low)

    def _with_ends(self, raw: Tensor) -> Tensor:
        return torch.cat((raw, raw[:, :1]), 1)
