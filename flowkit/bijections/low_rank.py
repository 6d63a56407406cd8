"""A learned matrix on the channels that differs from the identity by a matrix of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.bijections.linear import MatrixLinear, full_precision, widened
from flowkit.bijections.orthogonal import hold, householder, reflection_vectors
from flowkit.errors import ConfigError
from flowkit.registry import Example, register


def _examples() -> list[Example]:
    return [Example((1,), rank=1), Example((5,), rank=2), Example((3, 4), rank=3), Example((3, 2, 2), rank=1)]


@register("flowkit.low_rank_linear", examples=_examples)
class LowRankLinear(MatrixLinear):
    """A learned matrix on the channels, the identity plus one of low rank: y = (I + U V^T) x at every position.

    forward: y = x + U V^T x, log-det H W times the sum of the log diagonal of T.
    inverse: x = y - U T^-1 V^T y (Woodbury), log-det minus that. Float32 or wider, under autocast too.

    U and V are `(C, R)`. V has orthonormal columns, by R reflections, and U = V (T - I) + (I - V V^T) N with N free and
    T upper triangular with the diagonal exp(log diagonal). So V^T U = T - I, the determinant is that of T, and the
    matrix cannot become singular. Starts as the identity.

    Cost: the log-det is a sum of R numbers. U and V are built once a call, with a multiple of C R^2 products, and both
    directions then take 2 C R products a position; no matrix of C^2 numbers is formed.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the parameters `vectors` `(R, C)` of the reflections (a
    buffer for one channel), `upper` `(R, R)`, T above the diagonal and the log of T's diagonal on it, and, where R < C,
    `outside` `(C, R)`, which is N.

    Args:
        shape: event shape `(C, ...)`.
        rank: R, between 1 and C.

    Raises:
        ShapeError: shape ().
        ConfigError: a rank outside its range.

    Source: van den Berg et al., Sylvester Normalizing Flows, 2018, section 3.1, for the orthogonal columns.

    >>> linear, x = LowRankLinear((8, 4), rank=2), torch.randn(2, 8, 4)
    >>> torch.allclose(linear.inverse(linear(x)[0])[0], x, atol=1e-5)
    True
    """

    vectors: Tensor

    def __init__(self, shape: int | Sequence[int], rank: int):
        super().__init__(shape)
        channels = self.in_shapes[0][0]
        if not is_int(rank) or not 1 <= rank <= channels:
            raise ConfigError(f"LowRankLinear: rank must be a whole number from 1 to {channels}, got {rank!r}")
        hold(self, "vectors", reflection_vectors("LowRankLinear", channels, rank))
        self.upper = nn.Parameter(torch.zeros(rank, rank))
        self.outside = nn.Parameter(torch.zeros(channels, rank)) if rank < channels else None

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(U, V, T)`."""
        upper = widened(self.upper)
        triangle = upper.triu(1) + upper.diagonal().exp().diag_embed()
        v = householder(self.vectors, upper.shape[0])
        u = v @ (triangle - torch.eye(upper.shape[0], dtype=v.dtype, device=v.device))
        if self.outside is not None:
            outside = widened(self.outside)
            u = u + outside - v @ (v.T @ outside)
        return u, v, triangle

    def _inverse_factors(self) -> tuple[Tensor, Tensor]:
        u, v, triangle = self._factors()
        return -torch.linalg.solve_triangular(triangle, u, upper=True, left=False), v

    def weight(self) -> Tensor:
        """The matrix I + U V^T, `(C, C)`."""
        with full_precision(self.upper):
            u, v, _ = self._factors()
            return torch.eye(v.shape[0], dtype=v.dtype, device=v.device) + u @ v.T

    def inverse_weight(self) -> Tensor:
        """The matrix I - U T^-1 V^T, `(C, C)`."""
        with full_precision(self.upper):
            u, v = self._inverse_factors()
            return torch.eye(v.shape[0], dtype=v.dtype, device=v.device) + u @ v.T

    def log_abs_det(self) -> Tensor:
        """The sum of the log diagonal of T, `()`."""
        return widened(self.upper).diagonal().sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x + U V^T x, log_det)`."""
        with full_precision(x):
            u, v, _ = self._factors()
            return _add_product(u, v, x), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y - U T^-1 V^T y, log_det)`."""
        with full_precision(y):
            return _add_product(*self._inverse_factors(), y), -self._log_det(y)


def _add_product(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """`x + u v^T x` on channels at every position."""
    x = x.to(u.dtype)
    if x.dim() == 2:
        return x + (x @ v) @ u.T
    positions = x.flatten(2)
    return (positions + torch.matmul(u, torch.matmul(v.T, positions))).view(x.shape)
