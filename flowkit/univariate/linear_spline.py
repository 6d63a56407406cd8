"""The piecewise-linear spline."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.knots import between, check_bins, find, knots, pick, sizes, wide, within_unit
from flowkit.univariate.univariate import Univariate


class TailedSpline(Univariate):
    """A spline on [-bound, bound] and the identity outside: what linear, quadratic and cubic ones share.

    They are written for [0, 1]: `_inner` and `_inner_inverse` get u within it, and return their image in it and the
    log-derivative.
    """

    def __init__(self, shape: Shape, bins: int, bound: float, min_bin: float):
        name = type(self).__name__
        check_bins(name, bins, min_bin)
        if not 0 < bound < math.inf:
            raise ConfigError(f"{name}: bound must be positive and finite, got {bound!r}")
        super().__init__(shape)
        self.bins, self.bound, self.min_bin = bins, float(bound), float(min_bin)

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, values = wide(x, parameters)
        u = (between(x, -self.bound, self.bound) / self.bound + 1) / 2
        return self._with_tails(x, *self._inner(u, *values))

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, values = wide(y, parameters)
        u = (between(y, -self.bound, self.bound) / self.bound + 1) / 2
        x, log_derivative = self._inner_inverse(u, *values)
        return self._with_tails(y, x, -log_derivative)

    def _inner(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no _inner")

    def _inner_inverse(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse, and the log-derivative of the forward map there."""
        raise NotImplementedError(f"{type(self).__name__} has no _inner_inverse")

    def _with_tails(self, x: Tensor, image: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        outside = x.abs() > self.bound
        inner = (2 * within_unit(image) - 1) * self.bound  # rounded beyond the bound, it would come back as a tail
        return torch.where(outside, x, inner), torch.where(outside, 0.0, log_derivative)


@register("flowkit.linear_spline")
class LinearSpline(TailedSpline):
    """A monotone piecewise-linear spline on [-bound, bound], the identity outside; its K slopes are predicted.

    On [0, 1] in K equal bins, the k-th from k / K, with heights p_k that sum to 1 and c_k = p_0 + ... + p_(k-1):

    forward: y = c_k + p_k (K x - k). its log-derivative: log(K p_k).
    inverse: x = (k + (y - c_k) / p_k) / K. its log-derivative: -log(K p_k).

    Its density jumps at the knots and at the bounds, and its log-derivative has no gradient in x: the smoother splines
    fit better. At a knot its derivative is the one to the right, at a bound the one within. Zero parameters are the
    identity.

    Parameters: heights `(B, K, C, ...)`, whose softmax no bin has below `min_bin`; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2.
        bound: the spline is on [-bound, bound].
        min_bin: the smallest height of a bin, as a part of 2 bound; K times this must be below 1.

    Raises:
        ConfigError: bins below 2, a bound or minimum out of range.

    Source: Müller et al., Neural importance sampling, 2019, section 4.1.

    >>> spline = LinearSpline((3,), bins=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = spline(x, *spline.split(torch.zeros(1, 3 * spline.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    def __init__(self, shape: Shape, bins: int = 8, bound: float = 3.0, min_bin: float = 1e-3):
        self.parameter_shapes = ((bins,),)
        super().__init__(shape, bins, bound, min_bin)

    def _inner(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        heights = sizes(values[0], self.min_bin)
        index = (u.unsqueeze(1) * self.bins).floor().clamp(0, self.bins - 1).nan_to_num()
        bottom, height = pick(knots(heights), index.long()), pick(heights, index.long())
        return bottom + height * (u * self.bins - index.squeeze(1)), (height * self.bins).log()

    def _inner_inverse(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        heights = sizes(values[0], self.min_bin)
        places = knots(heights)
        index = find(u, places)
        height = pick(heights, index)
        place = within_unit((u - pick(places, index)) / height)
        return (index.squeeze(1) + place) / self.bins, (height * self.bins).log()
