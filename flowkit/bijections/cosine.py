"""The discrete cosine transform as a bijection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.bijection import HALF, Bijection, zero_log_det
from flowkit.bijections.linear import full_precision
from flowkit.bijections.permutation import event_dim
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register


def _examples() -> list[Example]:
    return [Example((5,)), Example((1, 4)), Example((3, 2, 3)), Example((2, 3, 2, 2), dims=(-1, 0))]


@register("flowkit.dct", examples=_examples)
class DCT(Bijection):
    """The orthonormal discrete cosine transform (type II) along the spatial dimensions, each channel by itself.

    forward: y = M x along each dimension, log-det 0. inverse: x = M^T y, log-det 0. Float32 or wider, under autocast
    too. M[k, n] = sqrt(2 / N) cos(pi k (2 n + 1) / (2 N)), and sqrt(1 / N) for k = 0: an orthogonal matrix.

    Low frequencies come first, so that a `fk.Split` after it sets coarse and fine apart.

    Cost: the log-det is free, and both directions take N products a number along a dimension of size N, as matrices:
    exact and fast for sizes of images, where a fast transform saves little. The condition number is 1.

    Shapes: x and y `(B, *shape)`. No state: M is computed in each call, in the precision of x.

    Args:
        shape: event shape, with at least one dimension.
        dims: the event dimensions to transform, 0 for channels, negative ones counting from the last; by default all
            but the channels, and for a vector its only one.

    Raises:
        ShapeError: shape ().
        ConfigError: no such dimension, one twice, or none.

    Source: Ahmed, Natarajan and Rao, Discrete cosine transform, 1974.

    >>> DCT((2, 4, 4))(torch.ones(3, 2, 4, 4))[0][0, 0, 0].round(decimals=3).abs().tolist()
    [4.0, 0.0, 0.0, 0.0]
    """

    constant_log_det = True
    volume_preserving = True

    def __init__(self, shape: int | Sequence[int], dims: Sequence[int] | None = None):
        super().__init__(shape)
        shape = self.in_shapes[0]
        if not shape:
            raise ShapeError("DCT needs at least one event dimension, got shape ()")
        wanted = (tuple(range(1, len(shape))) or (0,)) if dims is None else tuple(dims)
        found = tuple(event_dim("DCT", shape, dim) for dim in wanted)
        if not found or len(set(found)) < len(found):
            raise ConfigError(f"DCT: dims must hold at least one event dimension, each once, got {wanted}")
        self.dims = found

    def _turn(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            y = x.float() if x.dtype in HALF else x
            for dim in self.dims:
                matrix = cosines(y.shape[dim + 1], y)
                y = (y.movedim(dim + 1, -1) @ (matrix if inverse else matrix.T)).movedim(-1, dim + 1)
            return y, zero_log_det(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(M x along each dimension, 0)`."""
        return self._turn(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(M^T y along each dimension, 0)`."""
        return self._turn(y, inverse=True)

    def extra_repr(self) -> str:
        """The event shape and the dimensions."""
        return f"{self.in_shapes[0]}, dims={self.dims}"


def cosines(size: int, like: Tensor) -> Tensor:
    """M `(N, N)`, in the dtype and on the device of `like`."""
    k = torch.arange(size, device=like.device).unsqueeze(1)
    steps = k * (2 * k.T + 1) % (4 * size)  # whole periods taken off, exactly, before the cosine is rounded
    matrix = (steps.to(like.dtype) * (math.pi / (2 * size))).cos() * math.sqrt(2 / size)
    return torch.where(k == 0, matrix * math.sqrt(0.5), matrix)
