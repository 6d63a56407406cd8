"""Maps of the circle, in angles: a Moebius transformation, and the mean of several."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import HALF
from flowkit.bisection import solve_monotone
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.additive import Additive
from flowkit.univariate.univariate import Univariate

STEPS = 32
TURN = 2 * math.pi


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi).

    >>> [round(angle, 4) for angle in wrap(torch.tensor([0.5, 7.0])).tolist()]
    [0.5, 0.7168]
    """
    near = angle - TURN * ((angle + math.pi) / TURN).floor()
    # Rounding takes 3 pi in float32 a little below -pi, where a base on one turn has no density.
    return near + (near.clamp(-math.pi, math.pi) - near).detach()


@register("flowkit.angle_shift")
class AngleShift(Additive):
    """y = x + t modulo 2 pi, in [-pi, pi): a rotation of the circle by a predicted angle.

    forward: y = wrap(x + t), log-derivative 0. inverse: x = wrap(y - t), log-derivative 0.

    Angles are taken modulo 2 pi, and come out in [-pi, pi). The density on the circle is continuous across the seam;
    the coordinate jumps there.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, section 2.1.
    """

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(wrap(x + t), 0)`."""
        y, log_derivative = super().forward(x, *parameters)
        return wrap(y), log_derivative

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(wrap(y - t), 0)`."""
        x, log_derivative = super().inverse(y, *parameters)
        return wrap(x), log_derivative


@register("flowkit.moebius")
class Moebius(Univariate):
    """A convex combination of K Moebius transformations of the circle, in angles, that fixes the seam at +-pi.

    With w_k a point within the unit disc, z = exp(i x), and g_k(x) = x + 2 arg(1 - w_k / z) - 2 arg(1 + w_k):
    forward: y = sum_k p_k g_k(x), log-derivative log sum_k p_k (1 - |w_k|^2) / |1 - w_k / z|^2.
    inverse: for K = 1 in closed form, x = s + 2 arg(1 + w exp(-i s)) with s = y + 2 arg(1 + w); else the root, by
    safeguarded Newton steps to rounding, with exact gradients; log-derivative minus the above at x.

    g_k is the angle of (z - w_k) / (1 - conj(w_k) z), a transformation of the circle, turned so that it keeps -1. On
    the line it is increasing with g_k(x + 2 pi) = g_k(x) + 2 pi, so any number is taken, and [-pi, pi] is mapped onto
    itself, with equal derivatives at both ends: the density on the circle is continuous across the seam. A rotation
    (`fk.CircleShift`) between two such maps moves what is kept.

    w_k = r (a, b) / sqrt(1 + a^2 + b^2), with `radius` r; the derivative is between (1 - r) / (1 + r) and its inverse.
    Parameters: a and b `(B, K, C, ...)`, and for K > 1 logits of the weights p_k. Zeros are the identity.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        components: K, at least 1.
        radius: r, above 0 and below 1.

    Raises:
        ConfigError: components below 1, a radius out of range.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, section 2.1.1.

    >>> moebius = Moebius((2,), components=3)
    >>> x = torch.tensor([[-3.0, 1.0]])
    >>> y, log_derivative = moebius(x, *moebius.split(torch.zeros(1, 2 * moebius.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 2]))
    """

    def __init__(self, shape: Shape, components: int = 1, radius: float = 0.95):
        if not is_int(components) or components < 1:
            raise ConfigError(f"Moebius: components must be an int of at least 1, got {components!r}")
        if not 0 < radius < 1:
            raise ConfigError(f"Moebius: radius must be above 0 and below 1, got {radius!r}")
        self.parameter_shapes = ((components,),) * (2 if components == 1 else 3)
        super().__init__(shape)
        self.components, self.radius = components, radius
        self.iterative, self.tolerance = components > 1, 1e-12 if components > 1 else 0.0  # type: ignore[misc]

    def _points(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """w's two coordinates, and the weights."""
        a, b, *logits = (each.float() if each.dtype in HALF else each for each in parameters)
        scale = self.radius * (1 + a.square() + b.square()).rsqrt()
        weights = logits[0].softmax(1) if logits else torch.ones_like(a)
        return a * scale, b * scale, weights

    def _mixed(self, x: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """y and its derivative, for w = a + i b."""
        angle = x.unsqueeze(1)
        cos, sin = angle.cos(), angle.sin()
        real, imaginary = 1 - (a * cos + b * sin), a * sin - b * cos
        turned = 2 * (torch.atan2(imaginary, real) - torch.atan2(b, 1 + a))  # the real part is positive: no jumps
        derivative = (1 - a.square() - b.square()) / (real.square() + imaginary.square())
        return x + (weights * turned).sum(1), (weights * derivative).sum(1)

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log y')`."""
        y, derivative = self._mixed(x, *self._points(parameters))
        return y, derivative.log()

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log x')`."""
        a, b, weights = self._points(parameters)
        if self.components == 1:
            started = y + 2 * torch.atan2(b, 1 + a).squeeze(1)
            s = started.unsqueeze(1)
            cos, sin = s.cos(), s.sin()
            x = started + 2 * torch.atan2(b * cos - a * sin, 1 + a * cos + b * sin).squeeze(1)
        else:
            a, b, weights = (each.to(y.dtype) if each.dtype != y.dtype else each for each in (a, b, weights))
            x = solve_monotone(lambda x: self._mixed(x, a, b, weights), y, y - TURN, y + TURN, STEPS)
        return x, -self._mixed(x, a, b, weights)[1].log()

    def extra_repr(self) -> str:
        """K and the radius."""
        return f"components={self.components}, radius={self.radius:g}"
