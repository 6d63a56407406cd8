"""The piecewise-quadratic spline."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.knots import find, knots, pick, sizes, within_unit
from flowkit.univariate.linear_spline import TailedSpline


@register("flowkit.quadratic_spline")
class QuadraticSpline(TailedSpline):
    """A monotone piecewise-quadratic spline on [-bound, bound], the identity outside: its density is a polygon.

    On [0, 1], with a bin of width w from a, derivatives d0 and d1 at its ends, b its image, and t = (x - a) / w:

    forward: y = b + w (d0 t + (d1 - d0) t^2 / 2). its log-derivative: log(d0 + (d1 - d0) t).
    inverse: t is the root in [0, 1] of a quadratic equation, in the form that does not cancel; x = a + w t.
    its log-derivative: minus the above at t.

    Widths are a softmax of what is predicted, no bin smaller than `min_bin`; inner derivatives are softplus + 0.001,
    those at the ends such that they become 1 when all are divided by the area; then mixed with 1 by `min_derivative`.
    So value and derivative are continuous everywhere. Zero parameters are the identity.

    Parameters: widths `(B, K, C, ...)`, inner derivatives `(B, K - 1, C, ...)`; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2.
        bound: the spline is on [-bound, bound].
        min_bin: the smallest width of a bin, as a part of 2 bound; K times this must be below 1.
        min_derivative: the smallest derivative, above 0 and below 1.

    Raises:
        ConfigError: bins below 2, a bound or minimum out of range.

    Source: Müller et al., Neural importance sampling, 2019, section 4.2; the ends are nflows'.

    >>> spline = QuadraticSpline((3,), bins=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = spline(x, *spline.split(torch.zeros(1, 3 * spline.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    def __init__(
        self, shape: Shape, bins: int = 8, bound: float = 3.0, min_bin: float = 1e-3, min_derivative: float = 1e-3
    ):
        if not 0 < min_derivative < 1:
            raise ConfigError(f"QuadraticSpline: min_derivative must be above 0 and below 1, got {min_derivative!r}")
        self.parameter_shapes = ((bins,), (bins - 1,)) if isinstance(bins, int) else ()
        super().__init__(shape, bins, bound, min_bin)
        self.min_derivative = float(min_derivative)
        self.offset = math.log(math.expm1(1.0))  # softplus of it is 1

    def _parts(self, widths: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Widths, derivatives at K + 1 knots, the knots and their images."""
        widths = sizes(widths, self.min_bin)
        inner = F.softplus(inner + self.offset) + 1e-3
        first, last = widths[:, :1], widths[:, -1:]
        between = ((inner[:, :-1] + inner[:, 1:]) * widths[:, 1:-1]).sum(1, keepdim=True) / 2
        # The ends e solve e = area, for the area is between + (first (e + inner_1) + last (e + inner_-1)) / 2.
        ends = (between + (first * inner[:, :1] + last * inner[:, -1:]) / 2) / (1 - (first + last) / 2)
        least = self.min_derivative
        derivatives = least + (1 - least) * torch.cat((torch.ones_like(ends), inner / ends, torch.ones_like(ends)), 1)
        return widths, derivatives, knots(widths), knots(widths * (derivatives[:, :-1] + derivatives[:, 1:]) / 2)

    def _inner(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        widths, derivatives, lefts, bottoms = self._parts(*values)
        index = find(u, lefts)
        start, end, width = pick(derivatives, index), pick(derivatives, index + 1), pick(widths, index)
        t = within_unit((u - pick(lefts, index)) / width)
        image = pick(bottoms, index) + width * t * (start + (end - start) * t / 2)
        return image, (start + (end - start) * t).log()

    def _inner_inverse(self, u: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        widths, derivatives, lefts, bottoms = self._parts(*values)
        index = find(u, bottoms)
        start, end, width = pick(derivatives, index), pick(derivatives, index + 1), pick(widths, index)
        up = (u - pick(bottoms, index)) / width
        slope = (start * start + 2 * (end - start) * up).clamp_min(self.min_derivative**2).sqrt()  # of the map at t
        t = within_unit(2 * up / (start + slope))
        return pick(lefts, index) + width * t, (start + (end - start) * t).log()
