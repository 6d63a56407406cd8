"""The piecewise-cubic spline."""

from __future__ import annotations

import functools
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flowkit.bisection import TOLERANCE, solve_monotone
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.knots import find, knots, pick, sizes, within_unit
from flowkit.univariate.linear_spline import TailedSpline

STEPS = 22  # next to a flat end each step of Newton's halves the distance, no more: slopes differ by a million


class Bin(NamedTuple):
    """The bin of each element: its corner, its size, and the derivatives at its two ends."""

    left: Tensor
    bottom: Tensor
    width: Tensor
    slope: Tensor
    start: Tensor
    end: Tensor


@register("flowkit.cubic_spline")
class CubicSpline(TailedSpline):
    """A monotone piecewise-cubic spline on [-bound, bound], the identity outside; its bins are predicted.

    On [0, 1], with a bin of width w from a, height h from b, slope s = h / w, derivatives d0 and d1 at its ends, and
    t = (x - a) / w:

    forward: y = b + w (d0 t + (3 s - 2 d0 - d1) t^2 + (d0 + d1 - 2 s) t^3).
    its log-derivative: log(d0 + 2 (3 s - 2 d0 - d1) t + 3 (d0 + d1 - 2 s) t^2).
    inverse: t is the root in [0, 1], by safeguarded Newton steps to rounding, with exact gradients; x = a + w t.
    its log-derivative: minus the above at t.

    Widths and heights are softmaxes of what is predicted. Inner derivatives follow from the slopes by Steffen's method,
    which keeps every bin monotone; those at both ends are between 0 and 3 slopes, by sigmoids: so the derivative is
    continuous but at the bounds. Zero parameters are the identity.

    Parameters: widths and heights `(B, K, C, ...)`, the two ends `(B, C, ...)`; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2.
        bound: the spline is on [-bound, bound].
        min_bin: the smallest width and height of a bin, as a part of 2 bound; K times this must be below 1.
        min_end: an end's derivative, in thirds of its steepest, is between this and one minus this; at least 0, which
            is nflows', and below 1/3.

    Raises:
        ConfigError: bins below 2, a bound or minimum out of range.

    Source: Durkan et al., Cubic-spline flows, 2019; Steffen, A simple method for monotonic interpolation, 1990.

    >>> spline = CubicSpline((3,), bins=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = spline(x, *spline.split(torch.zeros(1, 3 * spline.numbers_per_element)))
    >>> torch.allclose(y, x, atol=1e-6), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    iterative: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE

    def __init__(self, shape: Shape, bins: int = 8, bound: float = 3.0, min_bin: float = 1e-3, min_end: float = 1e-3):
        if not 0 <= min_end < 1 / 3:
            raise ConfigError(f"CubicSpline: min_end must be at least 0 and below 1/3, got {min_end!r}")
        self.parameter_shapes = ((bins,), (bins,), (), ())
        super().__init__(shape, bins, bound, min_bin)
        self.min_end = float(min_end)
        third = (1 / 3 - self.min_end) / (1 - 2 * self.min_end)
        self.offset = math.log(third / (1 - third))  # the sigmoid of it makes the end as steep as its bin

    def _find(self, u: Tensor, values: tuple[Tensor, ...], by_height: bool) -> Bin:
        widths, heights = sizes(values[0], self.min_bin), sizes(values[1], self.min_bin)
        slopes = heights / widths
        before, after, w0, w1 = slopes[:, :-1], slopes[:, 1:], widths[:, :-1], widths[:, 1:]
        parabola = (w1 * before + w0 * after) / (w0 + w1)
        inner = torch.minimum(2 * torch.minimum(before, after), parabola)
        first, last = (
            3 * end * (self.min_end + (1 - 2 * self.min_end) * torch.sigmoid(raw.unsqueeze(1) + self.offset))
            for end, raw in ((slopes[:, :1], values[2]), (slopes[:, -1:], values[3]))
        )
        derivatives = torch.cat((first, inner, last), 1)
        lefts, bottoms = knots(widths), knots(heights)
        index = find(u, bottoms if by_height else lefts)
        left, bottom, width, slope = (pick(each, index) for each in (lefts, bottoms, widths, slopes))
        return Bin(left, bottom, width, slope, pick(derivatives, index), pick(derivatives, index + 1))

    def _inner(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        bin = self._find(u, values, by_height=False)
        rise, derivative = _rise(bin, within_unit((u - bin.left) / bin.width))
        return bin.bottom + bin.width * rise, derivative.log()

    def _inner_inverse(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        bin = self._find(u, values, by_height=True)
        target = (u - bin.bottom) / bin.width  # 0 or more, since no bin begins above u
        zero = torch.zeros_like(target)
        on_chord = (target / bin.slope).detach().clamp(0, 1)
        t = solve_monotone(functools.partial(_rise, bin), target, zero, zero + 1, STEPS, on_chord)
        return bin.left + bin.width * t, _rise(bin, t)[1].log()


def _rise(bin: Bin, t: Tensor) -> tuple[Tensor, Tensor]:
    """How far above its corner the curve is, in widths of the bin; and its derivative, in both."""
    square = 3 * bin.slope - 2 * bin.start - bin.end
    cube = bin.start + bin.end - 2 * bin.slope
    return t * (bin.start + t * (square + t * cube)), bin.start + t * (2 * square + 3 * t * cube)
