"""The monotone rational-quadratic spline with linear tails."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.bijection import HALF
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.univariate import Univariate


class Bin(NamedTuple):
    """The bin of each element, all of x's shape: its corner, its size, and the derivatives at its two ends."""

    left: Tensor
    bottom: Tensor
    width: Tensor
    height: Tensor
    start: Tensor
    end: Tensor


@register("flowkit.rational_quadratic_spline")
class RationalQuadraticSpline(Univariate):
    """A monotone spline of rational quadratics on [-bound, bound], the identity outside; its bins are predicted.

    With a bin of width w, height h, slope s = h / w, derivatives d0 and d1 at its ends, corner (a, b), and
    t = (x - a) / w:

    forward: y = b + h (s t^2 + d0 t (1 - t)) / q(t), q(t) = s + (d0 + d1 - 2 s) t (1 - t).
    its log-derivative: log(s^2 (d1 t^2 + 2 s t (1 - t) + d0 (1 - t)^2)) - 2 log q(t), and 0 in the tails.
    inverse: t is the root in [0, 1] of a quadratic equation, in the form that does not cancel; x = a + w t.
    its log-derivative: minus the above at t.

    Widths and heights are softmaxes of what is predicted, no bin smaller than `min_bin` of the whole; inner derivatives
    are softplus + `min_derivative`, and 1 at the ends, so value and derivative are continuous everywhere. Zero
    parameters are the identity. Values at +-1e6 pass unchanged; where they are not finite, so is the result.

    Parameters: widths and heights `(B, K, C, ...)`, inner derivatives `(B, K - 1, C, ...)`; computed in float32 or
    wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2: one bin between derivatives of 1 is the identity, whatever is predicted.
        bound: the spline is on [-bound, bound].
        min_bin: the smallest width and height of a bin, as a part of 2 bound; K times this must be below 1.
        min_derivative: the smallest derivative at an inner knot, above 0 and below 1.

    Raises:
        ConfigError: bins below 2, a bound or minimum out of range.

    Source: Durkan et al., Neural spline flows, 2019, section 3.1 and appendix A.

    >>> spline = RationalQuadraticSpline((3,), bins=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = spline(x, *spline.split(torch.zeros(1, 3 * spline.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    def __init__(
        self, shape: Shape, bins: int = 8, bound: float = 3.0, min_bin: float = 1e-3, min_derivative: float = 1e-3
    ):
        name = "RationalQuadraticSpline"
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise ConfigError(f"{name}: bins must be an int of at least 2, got {bins!r}")  # one is always the identity
        if not 0 < bound < math.inf:
            raise ConfigError(f"{name}: bound must be positive and finite, got {bound!r}")
        if not 0 < min_bin * bins < 1:
            raise ConfigError(f"{name}: min_bin must be above 0 and below 1 / bins = {1 / bins:.4g}, got {min_bin!r}")
        if not 0 < min_derivative < 1:
            raise ConfigError(f"{name}: min_derivative must be above 0 and below 1, got {min_derivative!r}")
        self.parameter_shapes = ((bins,), (bins,), (bins - 1,))
        super().__init__(shape)
        self.bins, self.bound = bins, float(bound)
        self.min_bin, self.min_derivative = float(min_bin), float(min_derivative)
        self.offset = math.log(math.expm1(1 - min_derivative))  # softplus of it is 1 - min_derivative

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, parameters = _wide(x, parameters)
        at = x.clamp(-self.bound, self.bound)
        bin = self._find(at, parameters, by_height=False)
        t = ((at - bin.left) / bin.width).clamp(0, 1)
        slope, rest = bin.height / bin.width, t * (1 - t)
        denominator = slope + (bin.start + bin.end - 2 * slope) * rest
        y = bin.bottom + bin.height * (slope * t * t + bin.start * rest) / denominator
        return self._with_tails(x, y, _log_derivative(bin, slope, t, denominator))

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, parameters = _wide(y, parameters)
        at = y.clamp(-self.bound, self.bound)
        bin = self._find(at, parameters, by_height=True)
        slope, up = bin.height / bin.width, at - bin.bottom
        bend = bin.start + bin.end - 2 * slope
        a = bin.height * (slope - bin.start) + up * bend
        b = bin.height * bin.start - up * bend
        c = -slope * up
        root = (b * b - 4 * a * c).clamp_min(0).sqrt()  # rounding can take it below zero
        t = (2 * c / (-b - root)).clamp(0, 1)
        denominator = slope + bend * t * (1 - t)
        return self._with_tails(y, bin.left + bin.width * t, -_log_derivative(bin, slope, t, denominator))

    def _with_tails(self, x: Tensor, inner: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        outside = x.abs() > self.bound
        return torch.where(outside, x, inner), log_derivative.masked_fill(outside, 0.0)

    def _knots(self, raw: Tensor) -> Tensor:
        """The knots `(B, K + 1, C, ...)`, from -bound to bound exactly."""
        sizes = self.min_bin + (1 - self.min_bin * self.bins) * raw.softmax(1)
        inner = 2 * self.bound * sizes.cumsum(1)[:, :-1] - self.bound
        edge = torch.full_like(raw[:, :1], self.bound)
        return torch.cat((-edge, inner, edge), 1)

    def _find(self, at: Tensor, parameters: tuple[Tensor, ...], by_height: bool) -> Bin:
        lefts, bottoms = self._knots(parameters[0]), self._knots(parameters[1])
        one = torch.ones_like(lefts[:, :1])
        inner = F.softplus(parameters[2] + self.offset) + self.min_derivative
        derivatives = torch.cat((one, inner, one), 1)
        at = at.unsqueeze(1)
        knots = bottoms if by_height else lefts
        index = (at >= knots[:, 1:-1]).sum(1, keepdim=True)  # how many inner knots lie to the left
        low = [each.gather(1, index).squeeze(1) for each in (lefts, bottoms, derivatives)]
        high = [each.gather(1, index + 1).squeeze(1) for each in (lefts, bottoms, derivatives)]
        return Bin(low[0], low[1], high[0] - low[0], high[1] - low[1], low[2], high[2])


def _log_derivative(bin: Bin, slope: Tensor, t: Tensor, denominator: Tensor) -> Tensor:
    curve = bin.end * t * t + 2 * slope * t * (1 - t) + bin.start * (1 - t) * (1 - t)
    return 2 * slope.log() + curve.log() - 2 * denominator.log()


def _wide(x: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    x = x.float() if x.dtype in HALF else x
    return x, tuple(each.to(x.dtype) for each in parameters)
