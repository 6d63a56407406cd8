"""The integral of a sum of squared polynomials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowkit.constants import WithConstants
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.monotone import LinearTails, along, check_count, check_part, powers_of, rates


@register("flowkit.sum_of_squares")
class SumOfSquaresPolynomial(WithConstants, LinearTails):
    """The integral of a sum of squared polynomials on [-bound, bound], continued linearly beyond.

    With u = x / bound, K polynomials p_k(u) = 1 + sum_l a_kl u^l of degree L, and e = `min_derivative`:

    forward: y = t + integral from 0 to x of e + (1 - e) / K sum_k p_k^2; beyond the bound the tangents of the ends. its
    log-derivative: the logarithm of that integrand at x, or at the nearer end.
    inverse: by Newton's method, safeguarded by bisection, on [-bound, bound], or between the end and twice as far as
    its tangent says; gradients are those of the implicit function. its log-derivative: minus the above at x.

    The integral is exact: Gauss and Legendre's rule of L + 1 nodes, whose terms are all of one sign, so float32 keeps
    its digits. Without tails a polynomial of degree 2 L + 1 would overflow float32 at 1e6. Zero parameters are the
    identity; the polynomials part by fixed rates, 1/2 to 3/2, that multiply each one's coefficients.

    Parameters: coefficients `(B, K (L + 1), C, ...)`, those of the first polynomial from power 0 up, then of the
    next; shift t of x's shape; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        polynomials: K, at least 1.
        degree: L, at least 1.
        bound: the polynomial is on [-bound, bound].
        min_derivative: e, above 0 and below 1.

    Raises:
        ConfigError: polynomials or degree below 1, a bound or smallest derivative out of range.

    Source: Jaini et al., Sum-of-squares polynomial flow, 2019, section 3; scaled as zuko's.

    >>> polynomial = SumOfSquaresPolynomial((3,), degree=2)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = polynomial(x, *polynomial.split(torch.zeros(1, 3 * polynomial.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    rates: Tensor
    node_powers: Tensor
    node_weights: Tensor

    def __init__(
        self, shape: Shape, polynomials: int = 3, degree: int = 4, bound: float = 5.0, min_derivative: float = 1e-3
    ):
        check_count("SumOfSquaresPolynomial", "polynomials", polynomials, 1)
        check_count("SumOfSquaresPolynomial", "degree", degree, 1)
        check_part("SumOfSquaresPolynomial", "min_derivative", min_derivative)
        self.parameter_shapes = ((polynomials * (degree + 1),), ())
        super().__init__(shape, bound)
        self.polynomials, self.degree, self.min_derivative = polynomials, degree, float(min_derivative)
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The polynomials' rates, and the rule of quadrature."""
        nodes, weights = np.polynomial.legendre.leggauss(self.degree + 1)
        on_unit, halves = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
        return {
            "rates": rates(self.polynomials, self.shape).unsqueeze(1),
            "node_powers": on_unit.unsqueeze(1) ** torch.arange(self.degree + 1),
            "node_weights": along(halves, self.shape),
        }

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The coefficients `(B, K, L + 1, C, ...)` and the shift."""
        coefficients = parameters[0].unflatten(1, (self.polynomials, self.degree + 1))
        return self.rates * coefficients, parameters[1]

    def inner(self, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the class."""
        coefficients, shift = parameters
        powers = powers_of(z / self.bound, self.degree)  # (B, L + 1, C, ...)
        terms = coefficients * powers.unsqueeze(1)
        at_nodes = 1 + (terms.movedim(2, -1) @ self.node_powers.T).movedim(-1, 2)  # p_k at each node between 0 and z
        mean = (at_nodes.square().mean(1) * self.node_weights).sum(1)
        part, least = 1 - self.min_derivative, self.min_derivative
        slope = part * (1 + terms.sum(2)).square().mean(1) + least
        return shift + z * (part * mean + least), slope
