"""The identity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkit.bijection import Bijection, zero_log_det
from flowkit.registry import Example, register


def _examples() -> list[Example]:
    return [Example(()), Example((1,)), Example((3,)), Example((3, 2)), Example((1, 2, 3)), Example((2, 1, 2, 2))]


@register("flowkit.identity", examples=_examples)
class Identity(Bijection):
    """y = x: a place-holder for a part that is left out.

    forward: y = x, log-det 0. inverse: x = y, log-det 0. The tensor itself is returned, not a copy.

    Args:
        shape: event shape.

    >>> import torch
    >>> Identity((2,))(torch.ones(3, 2))[1]
    tensor([0., 0., 0.])
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, 0)`."""
        return x, zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, 0)`."""
        return y, zero_log_det(y)
