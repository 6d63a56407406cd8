"""zuko's polynomial maps, continued beyond their interval so that they are bijections, its mixtures, its soft clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flowkit.bijections.activations import Activation
from flowkit.bisection import TOLERANCE, solve_monotone
from flowkit.errors import ConfigError
from flowkit.registry import Example, register
from flowkit.shapes import Shape
from flowkit.univariate import BernsteinPolynomial, SumOfSquaresPolynomial, Univariate
from flowkit.univariate.monotone import check_count, wide

ROOT_2 = math.sqrt(2)
SHRINK = 1 - 1e-6  # zuko's, which keeps the quantile finite
BISECTIONS = 24
ENDS = 2  # increments at each end of a bounded Bernstein polynomial that are fixed


@register("flowkit.bounded_bernstein")
class BoundedBernstein(BernsteinPolynomial):
    """zuko's bounded Bernstein polynomial: of [-bound, bound] onto itself, and the identity beyond.

    forward, its log-derivative, inverse, its log-derivative: those of `fk.BernsteinPolynomial` of degree M = N + 4. The
    first two and the last two increments are 2 bound / M, those between a softmax of the raw numbers over the rest, so
    that value and two derivatives are continuous.

    Parameters: raw increments `(B, N, C, ...)`.

    Args:
        shape: event shape of x.
        numbers: N, at least 1.
        bound: see above.
    """

    def __init__(self, shape: Shape, numbers: int = 13, bound: float = 5.0):
        check_count("BoundedBernstein", "numbers", numbers, 1)
        super().__init__(shape, numbers + 2 * ENDS, bound)
        self.parameter_shapes = ((numbers,),)

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The coefficients `(B, M + 1, C, ...)`, and M / (2 bound) times their increments."""
        (raw,) = parameters
        shares = raw.softmax(1) * (self.degree - 2 * ENDS)
        ends = torch.ones_like(raw[:, :1]).expand(-1, ENDS, *raw.shape[2:])
        derivatives = torch.cat((ends, shares, ends), 1)
        first = torch.full_like(raw[:, :1], -self.bound)
        return torch.cat((first, first + derivatives.cumsum(1) * (2 * self.bound / self.degree)), 1), derivatives


@register("flowkit.plain_sum_of_squares")
class PlainSumOfSquares(SumOfSquaresPolynomial):
    """zuko's sum of squares: the polynomials have no rates, and weight 1 beside the slope.

    forward: y = t + integral from 0 to x of e + sum_k p_k^2 / K; the rest as there. Beyond the bound, where zuko has no
    inverse, it goes on along the tangents.

    Args:
        shape, polynomials, degree, bound, min_derivative: see `fk.SumOfSquaresPolynomial`.
    """

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The coefficients `(B, K, L + 1, C, ...)` and the shift."""
        return parameters[0].unflatten(1, (self.polynomials, self.degree + 1)), parameters[1]

    def inner(self, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the class: the parent's is e + (1 - e) times the mean of the squares."""
        shift = parameters[1]
        value, slope = super().inner(z, parameters)
        least = self.min_derivative
        return shift + (value - shift - least * z) / (1 - least) + least * z, (slope - least) / (1 - least) + least


def _examples() -> list[Example]:
    return [Example((3,)), Example((1, 4), bound=5.0), Example((3, 2, 2), bound=11.0)]


@register("flowkit.soft_clip", examples=_examples)
class SoftClip(Activation):
    """y = x / (1 + abs(x) / bound), elementwise: zuko's map of the line to (-bound, bound).

    forward: y as above, log-det the sum of -2 log(1 + abs(x) / bound).
    inverse: x = y / (1 - abs(y) / bound), log-det minus that, the sum of -2 log(1 - abs(y) / bound).

    Shapes: x `(B, ...)`, log_det `(B,)`.

    Args:
        shape: event shape.
        bound: positive.

    Raises:
        ConfigError: a bound that is not positive and finite.
        InputError: in eager mode, values outside (-bound, bound) in the inverse.
    """

    def __init__(self, shape: int | Sequence[int], bound: float = 11.0):
        super().__init__(shape)
        if not 0 < bound < math.inf:
            raise ConfigError(f"SoftClip: bound must be positive and finite, got {bound!r}")
        self.bound = float(bound)
        self.image = (-self.bound, self.bound)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        part = x.abs() / self.bound
        return x / (1 + part), -2 * torch.log1p(part)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        part = y.abs() / self.bound
        return y / (1 - part), -2 * torch.log1p(-part)


@register("flowkit.normal_mixture")
class NormalMixture(Univariate):
    """zuko's gaussianization: the distribution function of a mixture of normals, then the normal quantile.

    With z_k = exp(a_k) x + b_k, Phi the normal distribution function, and c = 1 - 1e-6:

    forward: y = sqrt(2) erfinv(c mean_k erf(z_k / sqrt(2))). its log-derivative: log(c mean_k exp(a_k) phi(z_k)) -
    log phi(y), phi the normal density.
    inverse: by bisection and Newton's method between the smallest and largest of the components' own roots; its
    log-derivative minus the above at x.

    Its image ends at +-4.9, where c does: beyond, the inverse finds the outermost root. Parameters: b and a
    `(B, K, C, ...)`.

    Args:
        shape: event shape of x.
        components: K, at least 1.
    """

    iterative: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE

    def __init__(self, shape: Shape, components: int = 8):
        check_count("NormalMixture", "components", components, 1)
        self.parameter_shapes = ((components,), (components,))
        super().__init__(shape)
        self.components = components

    def _map(self, x: Tensor, shift: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        z = x.unsqueeze(1) * log_slope.exp() + shift
        y = torch.erfinv(torch.erf(z / ROOT_2).mean(1) * SHRINK) * ROOT_2
        log_density = (log_slope - z.square() / 2).logsumexp(1) - math.log(self.components)
        return y, log_density + y.square() / 2 + math.log(SHRINK)

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, values = wide(x, parameters)
        return self._map(x, *values)

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, (shift, log_slope) = wide(y, parameters)
        with torch.no_grad():
            most = 1 - torch.finfo(y.dtype).eps
            own = torch.erfinv((torch.erf(y / ROOT_2) / SHRINK).clamp(-most, most)) * ROOT_2
            roots = (own.unsqueeze(1) - shift) / log_slope.exp()
            low, high = roots.amin(1), roots.amax(1)
            margin = (high - low) * 0.01 + 1e-6

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_derivative = self._map(x, shift, log_slope)
            return value, log_derivative.exp()

        x = solve_monotone(function, y, low - margin, high + margin, BISECTIONS)
        return x, -self._map(x, shift, log_slope)[1]
