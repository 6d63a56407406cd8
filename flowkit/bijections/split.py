"""One wire into several, and several into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.bijection import Bijection, zero_log_det
from flowkit.bijections.permutation import event_dim
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register


def _split_examples() -> list[Example]:
    return [
        Example((2,)),
        Example((5,), sizes=(1, 3, 1)),
        Example((3, 2)),
        Example((4, 2, 2), sizes=[1, 3]),
        Example((1, 2, 3), dim=-1),
        Example((1, 4, 2, 2), sizes=(3, 1), dim=1),
    ]


@register("flowkit.split", examples=_split_examples)
class Split(Bijection):
    """One tensor into several, along the channels or another event dimension.

    forward: y1, y2, ... = the parts of x, log-det 0. inverse: x = the parts put together, log-det 0. Exact in every
    dtype; the parts are views.

    Shapes: x `(B, C, ...)`, the parts `(B, sizes[i], ...)`.

    Args:
        shape: event shape.
        sizes: sizes of the parts, at least two, which sum to the dimension; by default C // 2 and C - C // 2.
        dim: the event dimension that is split, 0 for channels; negative ones count from the last.

    Raises:
        ShapeError: shape (), or by default a dimension of size 1.
        ConfigError: no such dimension, or sizes that do not sum to it.

    >>> parts, log_det = Split((8, 4, 4), sizes=(2, 6))(torch.zeros(5, 8, 4, 4))
    >>> [tuple(part.shape) for part in parts]
    [(5, 2, 4, 4), (5, 6, 4, 4)]
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int], sizes: Sequence[int] | None = None, dim: int = 0):
        super().__init__(shape)
        shape = self.in_shapes[0]
        self.dim = event_dim("Split", shape, dim)
        total = shape[self.dim]
        if sizes is None:
            if total < 2:
                raise ShapeError(f"Split needs at least two to halve, dimension {self.dim} of {shape} has one")
            sizes = (total // 2, total - total // 2)
        if not isinstance(sizes, Sequence) or any(not isinstance(n, int) or n < 1 for n in sizes):
            raise ConfigError(f"Split: sizes must be positive ints, one for each part, got {sizes!r}")
        self.sizes = tuple(sizes)
        if len(self.sizes) < 2 or sum(self.sizes) != total:
            raise ConfigError(f"Split: sizes must be two or more that sum to {total}, got {self.sizes}")
        self.out_shapes = tuple((*shape[: self.dim], n, *shape[self.dim + 1 :]) for n in self.sizes)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """`((part, part, ...), 0)`."""
        return tuple(x.split(self.sizes, self.dim + 1)), zero_log_det(x)

    def inverse(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """`(the parts together, 0)`."""
        return torch.cat(parts, self.dim + 1), zero_log_det(parts[0])

    def extra_repr(self) -> str:
        """The shape and its parts."""
        return f"{self.in_shapes[0]} -> {', '.join(map(str, self.out_shapes))}"


def _concat_examples() -> list[Example]:
    return [
        Example((1,), (2,)),
        Example((1,), (2,), (1,)),
        Example((1, 2), (3, 2)),
        Example((3, 2, 2), (1, 2, 2)),
        Example((2, 1, 3), (2, 2, 3), dim=1),
        Example((1, 2, 2, 1), (1, 2, 2, 2), dim=-1),
    ]


@register("flowkit.concat", examples=_concat_examples)
class Concat(Bijection):
    """Several tensors into one, along the channels or another event dimension.

    forward: y = the inputs put together, log-det 0. inverse: x1, x2, ... = the parts of y, log-det 0. Exact in every
    dtype.

    Shapes: inputs `(B, C_i, ...)`, y `(B, sum of C_i, ...)`.

    Args:
        shapes: event shapes, at least two, equal but for the dimension `dim`.
        dim: the event dimension along which they are put together, 0 for channels; negative ones count from the last.

    Raises:
        ShapeError: fewer than two shapes, or shapes that differ elsewhere.
        ConfigError: no such dimension.

    >>> Concat((1, 4), (2, 4))(torch.zeros(5, 1, 4), torch.zeros(5, 2, 4))[0].shape
    torch.Size([5, 3, 4])
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, *shapes: int | Sequence[int], dim: int = 0):
        super().__init__(*shapes)
        if len(self.in_shapes) < 2:
            raise ShapeError(f"Concat needs two or more shapes, got {len(self.in_shapes)}")
        first = self.in_shapes[0]
        self.dim = event_dim("Concat", first, dim)
        for shape in self.in_shapes[1:]:
            others = [(*s[: self.dim], *s[self.dim + 1 :]) for s in (first, shape)]
            if len(shape) != len(first) or others[0] != others[1]:
                raise ShapeError(f"Concat needs shapes equal but in dimension {self.dim}, got {first} and {shape}")
        self.sizes = tuple(shape[self.dim] for shape in self.in_shapes)
        self.out_shapes = ((*first[: self.dim], sum(self.sizes), *first[self.dim + 1 :]),)

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """`(the inputs together, 0)`."""
        return torch.cat(parts, self.dim + 1), zero_log_det(parts[0])

    def inverse(self, y: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """`((part, part, ...), 0)`."""
        return tuple(y.split(self.sizes, self.dim + 1)), zero_log_det(y)

    def extra_repr(self) -> str:
        """The parts and the shape."""
        return f"{', '.join(map(str, self.in_shapes))} -> {self.out_shapes[0]}"
