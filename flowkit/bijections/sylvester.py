"""Sylvester flows: planar flows with several hidden units, orthogonal to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, event_sum
from flowkit.bijections.linear import full_precision, widened
from flowkit.bijections.orthogonal import hold, householder, reflection_vectors
from flowkit.bijections.planar import BISECTIONS, positive, slope_of
from flowkit.bisection import solve_monotone
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register


def _examples() -> list[Example]:
    return [Example((1,)), Example((3,), units=2, reflections=3), Example((2,))]


@register("flowkit.sylvester", examples=_examples)
class Sylvester(Bijection):
    """y = x + Q R tanh(S Q^T x + b): M orthonormal columns Q, triangular matrices R and S.

    forward: y = x + Q R t, t = tanh(S Q^T x + b), log-det the sum over i of log(1 + R_ii S_ii (1 - t_i^2)).
    inverse: x = y - Q R t, where a = Q^T x solves a + R tanh(S a + b) = Q^T y from its last element to its first, one
    scalar root each; log-det minus the above.

    R and S are upper triangular, so each equation holds one unknown once those after it are found. S_ii = g(p_i) and
    R_ii = (g(q_i) - 1) / S_ii with g of `fk.Planar`, so that R_ii S_ii > -0.99. Q is M columns of a product of
    reflections. The roots are found to rounding, with exact gradients, see `flowkit.bisection`; the tolerance 1e-12 is
    that of float64. It starts as the identity, R = 0. Van den Berg et al. 2018, equations 13 to 15.

    Shapes: x `(B, D)`, log_det `(B,)`.

    Args:
        shape: event shape `(D,)`.
        units: M, from 1 to D; D by default.
        reflections: how many of them make Q; by default D, or one fewer where D is odd, but at least 2.

    Raises:
        ShapeError: data that is no vector.
        ConfigError: units or reflections out of range.

    >>> y, log_det = Sylvester((3,), units=2)(torch.ones(5, 3))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    vectors: Tensor
    iterative = True
    tolerance = 1e-12

    def __init__(self, shape: int | Sequence[int], units: int | None = None, reflections: int | None = None):
        super().__init__(shape)
        shape = self.in_shapes[0]
        if len(shape) != 1 or not shape[0]:
            raise ShapeError(f"Sylvester needs vectors (D,), got shape {shape}: put fk.Flatten before it")
        units = shape[0] if units is None else units
        if isinstance(units, bool) or not isinstance(units, int) or not 1 <= units <= shape[0]:
            raise ConfigError(f"Sylvester: units must be a whole number from 1 to {shape[0]}, got {units!r}")
        self.units = units
        hold(self, "vectors", reflection_vectors("Sylvester", shape[0], reflections))
        # R above the diagonal, S transposed below it, q on it: no entry goes unused.
        self.triangles = nn.Parameter((torch.randn(units, units) * units**-0.5).tril(-1))
        self.inner_diagonal = nn.Parameter(torch.zeros(units))
        self.bias = nn.Parameter(torch.zeros(units))

    def _matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q, R, S and 1 + R_ii S_ii, the last without cancellation."""
        triangles = widened(self.triangles)
        stretch, inner = positive(triangles.diagonal()), positive(widened(self.inner_diagonal))
        outer = triangles.triu(1) + ((stretch - 1) / inner).diag()
        return householder(self.vectors)[:, : self.units], outer, triangles.tril(-1).T + inner.diag(), stretch

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """`(x + Q R tanh(S Q^T x + b), log_det)`."""
        q, outer, inner, stretch = self._matrices()
        x = x.to(q.dtype)
        with full_precision(x):
            t = (x @ q @ inner.T + self.bias).tanh()
            return x + t @ outer.T @ q.T, event_sum(slope_of(t, stretch).log())

    def inverse(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """`(y - Q R t, log_det)`, with t from the last unit to the first."""
        q, outer, inner, stretch = self._matrices()
        y = y.to(q.dtype)
        with full_precision(y):
            targets = y @ q
            found, t = y.new_zeros(y.shape[0], 0), y.new_zeros(y.shape[0], 0)
            for i in reversed(range(self.units)):
                target = targets[:, i] - t @ outer[i, i + 1 :]
                a = _root(target, outer[i, i], inner[i, i], found @ inner[i, i + 1 :] + self.bias[i], stretch[i])
                found = torch.cat((a.unsqueeze(1), found), 1)
                t = torch.cat(((found @ inner[i, i:] + self.bias[i]).tanh().unsqueeze(1), t), 1)
            return y - t @ outer.T @ q.T, -event_sum(slope_of(t, stretch).log())

    def extra_repr(self) -> str:
        """The event shape and the number of units."""
        return f"{self.in_shapes[0]}, units={self.units}"


def _root(target: Tensor, outer: Tensor, inner: Tensor, offset: Tensor, stretch: Tensor) -> Tensor:
    """a with a + outer tanh(inner a + offset) = target."""

    def function(a: Tensor) -> tuple[Tensor, Tensor]:
        t = (inner * a + offset).tanh()
        return a + outer * t, slope_of(t, stretch)

    width = outer.abs()
    return solve_monotone(function, target, target - width, target + width, BISECTIONS)
