"""Bernstein polynomials with increasing coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.constants import WithConstants
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.monotone import LinearTails, along, check_count, check_part, powers_of


@register("flowkit.bernstein")
class BernsteinPolynomial(WithConstants, LinearTails):
    """A Bernstein polynomial with increasing coefficients on [-bound, bound], continued linearly beyond.

    With u = (x + bound) / (2 bound), b_{k,M}(u) = binomial(M, k) u^k (1 - u)^(M - k), and increments d_k > 0:

    forward: y = sum_k c_k b_{k,M}(u), where c_0 = -bound + t and c_k = c_{k-1} + d_k; beyond the bound the tangents of
    the ends. its log-derivative: log(M / (2 bound) sum_k d_{k+1} b_{k,M-1}(u)) at the nearer end.
    inverse: by Newton's method, safeguarded by bisection, on [-bound, bound], or between the end and twice as far as
    its tangent says; gradients are those of the implicit function. its log-derivative: minus the above at x.

    Increments are 2 bound / M times (softplus + `min_derivative`), which bounds the derivative from below. Zero
    parameters are the identity. Every sum has terms of one sign but for c, so float32 keeps its digits.

    Parameters: raw increments `(B, M, C, ...)`, shift t of x's shape; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        degree: M, at least 2.
        bound: the polynomial is on [-bound, bound]; a shift moves its values, not its domain.
        min_derivative: the smallest derivative, above 0 and below 1.

    Raises:
        ConfigError: a degree below 2, a bound or smallest derivative out of range.

    Source: Ramasinghe et al., Robust normalizing flows using Bernstein-type polynomials, 2021; with linear tails:
        Arpogaus et al., Short-term density forecasting of low-voltage load using Bernstein-polynomial normalizing
        flows, 2022.

    >>> bernstein = BernsteinPolynomial((3,), degree=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = bernstein(x, *bernstein.split(torch.zeros(1, 3 * bernstein.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    value_factors: Tensor
    derivative_factors: Tensor

    def __init__(self, shape: Shape, degree: int = 8, bound: float = 5.0, min_derivative: float = 1e-3):
        check_count("BernsteinPolynomial", "degree", degree, 2)
        check_part("BernsteinPolynomial", "min_derivative", min_derivative)
        self.parameter_shapes = ((degree,), ())
        super().__init__(shape, bound)
        self.degree, self.min_derivative = degree, float(min_derivative)
        self.offset = math.log(math.expm1(1 - min_derivative))  # softplus of it is 1 - min_derivative
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The binomials of the value and of the derivative."""
        found = {}
        for name, order in (("value", self.degree), ("derivative", self.degree - 1)):
            factors = torch.tensor([math.comb(order, k) for k in range(order + 1)], dtype=torch.float64)
            found[f"{name}_factors"] = along(factors, self.shape)
        return found

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The coefficients c `(B, M + 1, C, ...)`, and M / (2 bound) times their increments."""
        derivatives = F.softplus(parameters[0] + self.offset) + self.min_derivative
        first = parameters[1].unsqueeze(1) - self.bound
        rest = first + derivatives.cumsum(1) * (2 * self.bound / self.degree)
        return torch.cat((first, rest), 1), derivatives

    def inner(self, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the class."""
        coefficients, derivatives = parameters
        u = ((z + self.bound) / (2 * self.bound)).clamp(0, 1)  # rounding can take it outside
        powers, rest = powers_of(u, self.degree), powers_of(1 - u, self.degree).flip(1)  # of (1 - u)^(M - k)
        value = self.value_factors * powers * rest
        slope = self.derivative_factors * powers[:, :-1] * rest[:, 1:]
        return (coefficients * value).sum(1), (derivatives * slope).sum(1)
