"""Learned matrices on the channels as the products of well-known decompositions: Q R, and U diag(s) V^T."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.bijections.linear import MatrixLinear, full_precision, mix, widened
from flowkit.bijections.orthogonal import hold, householder, reflection_vectors
from flowkit.registry import Example, register


def _examples() -> list[Example]:
    return [Example((1,)), Example((4,)), Example((3, 4), reflections=3), Example((3, 2, 2))]


@register("flowkit.qr_linear", examples=_examples)
class QRLinear(MatrixLinear):
    """A learned invertible matrix on the channels as a product Q R: y = Q R x at every position.

    forward: y = Q R x, log-det H W times the sum of the log diagonal of R.
    inverse: x = R^-1 Q^T y by a triangular solve, log-det minus that. Float32 or wider, under autocast too.

    Q is a product of K reflections, R upper triangular with the diagonal exp(log diagonal): the matrix cannot become
    singular, though its condition number, which is that of R, is not bounded. Starts as the identity; with an odd
    number of reflections as one random reflection, and its determinant is then negative.

    Cost: the log-det is a sum of C numbers. The matrix is built once a call, with C^2 (C + K) products, and forward
    and inverse then take C^2 products a position, the inverse of a vector twice that.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the parameters `vectors` `(K, C)` and `upper` `(C, C)`: R
    above the diagonal, the log of R's diagonal on it. For one channel `vectors` is a buffer.

    Args:
        shape: event shape `(C, ...)`.
        reflections: K, by default the largest even number up to C, and at least 2.

    Raises:
        ShapeError: shape ().
        ConfigError: reflections below 1.

    Source: Hoogeboom et al., Emerging Convolutions for Generative Normalizing Flows, 2019, section 3.3.

    >>> linear, x = QRLinear((3, 8, 8)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(linear.inverse(linear(x)[0])[0], x, atol=1e-5)
    True
    """

    vectors: Tensor

    def __init__(self, shape: int | Sequence[int], reflections: int | None = None):
        super().__init__(shape)
        channels = self.in_shapes[0][0]
        hold(self, "vectors", reflection_vectors("QRLinear", channels, reflections))
        self.upper = nn.Parameter(torch.zeros(channels, channels))

    def _triangle(self) -> Tensor:
        upper = widened(self.upper)
        return upper.triu(1) + upper.diagonal().exp().diag_embed()

    def weight(self) -> Tensor:
        """The matrix Q R, `(C, C)`."""
        with full_precision(self.upper):
            return householder(self.vectors) @ self._triangle()

    def inverse_weight(self) -> Tensor:
        """The matrix R^-1 Q^T, `(C, C)`."""
        with full_precision(self.upper):
            return torch.linalg.solve_triangular(self._triangle(), householder(self.vectors).T, upper=True)

    def log_abs_det(self) -> Tensor:
        """The sum of the log diagonal of R, `()`."""
        return widened(self.upper).diagonal().sum()

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(R^-1 Q^T y, log_det)`; on maps the inverse matrix is solved for once, and applied everywhere."""
        if y.dim() > 2:
            return super().inverse(y)
        with full_precision(y):
            triangle = self._triangle()
            rows = mix(householder(self.vectors).T, y.to(triangle.dtype))
            x = torch.linalg.solve_triangular(triangle.T, rows, upper=False, left=False)
            return x, -self._log_det(y)


@register("flowkit.svd_linear", examples=_examples)
class SVDLinear(MatrixLinear):
    """A learned invertible matrix on the channels by its singular values: y = U diag(exp s) V^T x at every position.

    forward: y = U diag(exp s) V^T x, log-det H W times the sum of s.
    inverse: x = V diag(exp -s) U^T y, log-det minus that. Float32 or wider, under autocast too.

    U and V are products of K reflections each. The matrix cannot become singular, and its condition number is read
    off: exp(max s - min s). Starts as the identity; with an odd number of reflections as a product of two random ones.

    Cost: the log-det is a sum of C numbers. The matrix is built once a call, with C^2 (C + 2 K) products, its inverse
    by transposes at the same cost, and both directions then take C^2 products a position.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the parameters `left` `(K, C)` and `right` `(K, C)`, the
    vectors of U's and V's reflections, and `log_values` `(C,)`, which is s. For one channel the vectors are buffers.

    Args:
        shape: event shape `(C, ...)`.
        reflections: K, by default the largest even number up to C, and at least 2.

    Raises:
        ShapeError: shape ().
        ConfigError: reflections below 1.

    Source: Zhang et al., Stabilizing Gradients for Deep Neural Networks via Efficient SVD Parameterization, 2018.

    >>> linear, x = SVDLinear((3, 8, 8)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(linear.inverse(linear(x)[0])[0], x, atol=1e-5)
    True
    """

    left: Tensor
    right: Tensor

    def __init__(self, shape: int | Sequence[int], reflections: int | None = None):
        super().__init__(shape)
        channels = self.in_shapes[0][0]
        hold(self, "left", reflection_vectors("SVDLinear", channels, reflections))
        hold(self, "right", reflection_vectors("SVDLinear", channels, reflections))
        self.log_values = nn.Parameter(torch.zeros(channels))

    def weight(self) -> Tensor:
        """The matrix U diag(exp s) V^T, `(C, C)`."""
        with full_precision(self.log_values):
            return (householder(self.left) * widened(self.log_values).exp()) @ householder(self.right).T

    def inverse_weight(self) -> Tensor:
        """The matrix V diag(exp -s) U^T, `(C, C)`."""
        with full_precision(self.log_values):
            return (householder(self.right) * (-widened(self.log_values)).exp()) @ householder(self.left).T

    def log_abs_det(self) -> Tensor:
        """The sum of s, `()`."""
        return widened(self.log_values).sum()

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """The largest singular value of the matrix over the smallest, exp(max s - min s), `()`."""
        values = widened(self.log_values)
        return (values.max() - values.min()).exp()
