"""How a coupling parts its data in two: halves, alternating or chosen channels, or a checkerboard's squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.errors import ConfigError, ShapeError
from flowkit.shapes import Shape

MOST_LISTED = 2**22  # channels that are gone through one by one in Python
SPLITS = ("halves", "alternating", "checkerboard")


class Halves(nn.Module):
    """The first C // 2 channels, and the other C - C // 2.

    Attributes:
        shapes: the event shapes of the two parts.
        gaps: whether the parts have elements that are not theirs, which are 0.
    """

    gaps = False

    def __init__(self, shape: Shape):
        super().__init__()
        first = shape[0] // 2
        self.sizes = (first, shape[0] - first)
        self.shapes: tuple[Shape, Shape] = ((first, *shape[1:]), (shape[0] - first, *shape[1:]))

    def part(self, x: Tensor) -> list[Tensor]:
        """The two parts of x `(B, C, ...)`."""
        return list(torch.split_with_sizes(x, self.sizes, 1))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `part`."""
        return torch.cat(tuple(parts), 1)

    def keep(self, half: int, values: Tensor, fill: float = 0.0) -> Tensor:
        """The values with `fill` where an element is not of this part; for a part without gaps, as they are."""
        return values

    def extra_repr(self) -> str:
        """The channels of the parts."""
        return f"{self.sizes[0]} | {self.sizes[1]}"


class Channels(Halves):
    """The channels of the given indices, the second part, and all others, the first."""

    order: Tensor
    back: Tensor

    def __init__(self, shape: Shape, second: Sequence[int]):
        super().__init__(shape)
        self.sizes = (shape[0] - len(second), len(second))
        self.shapes = ((self.sizes[0], *shape[1:]), (self.sizes[1], *shape[1:]))
        if isinstance(second, range):  # by torch: a file may claim any number of channels
            order = torch.cat([torch.arange(0, shape[0], 2), torch.arange(second.start, second.stop, second.step)])
        elif shape[0] > MOST_LISTED:
            raise ShapeError(f"channels can be chosen from at most {MOST_LISTED:,}, got {shape[0]:,}")
        else:
            chosen = set(second)
            order = torch.tensor([*[channel for channel in range(shape[0]) if channel not in chosen], *second])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def part(self, x: Tensor) -> list[Tensor]:
        """The two parts of x `(B, C, ...)`."""
        return list(torch.split_with_sizes(x.index_select(1, self.order), self.sizes, 1))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `part`."""
        return torch.cat(tuple(parts), 1).index_select(1, self.back)


class Checkerboard(Halves):
    """The squares of a checkerboard over all event dimensions but the first: each part is a whole map with gaps of 0.

    The first part has the squares whose coordinates sum to an even number. A subnet thus sees maps of the data's size.
    """

    gaps = True
    second: Tensor

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.sizes = (shape[0], shape[0])
        self.shapes = (shape, shape)
        parity = torch.zeros((), dtype=torch.long)
        for size in shape[1:]:
            parity = parity[..., None] + torch.arange(size)
        self.register_buffer("second", parity % 2 == 1, persistent=False)

    def part(self, x: Tensor) -> list[Tensor]:
        """x with gaps, twice."""
        return [self.keep(0, x), self.keep(1, x)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `part`."""
        return torch.where(self.second, parts[1], parts[0])

    def keep(self, half: int, values: Tensor, fill: float = 0.0) -> Tensor:
        """The values with `fill` where an element is not of this part."""
        return values.masked_fill(~self.second if half else self.second, fill)

    def extra_repr(self) -> str:
        """That it is a checkerboard."""
        return "split='checkerboard'"


def make_partition(owner: str, shape: Shape, split: str | Sequence[int]) -> Halves:
    """The partition of data of event shape `shape`.

    Raises:
        ShapeError: fewer than two channels; for a checkerboard, no spatial dimensions.
        ConfigError: an unknown name, or indices that are out of range, repeated, none or all.
    """
    if split == "checkerboard":
        if len(shape) < 2 or max(shape[1:]) < 2:
            raise ShapeError(f"{owner}: a checkerboard needs maps of at least two squares (C, H, W), got shape {shape}")
        return Checkerboard(shape)
    if not shape or shape[0] < 2:
        raise ShapeError(
            f"{owner} needs at least two channels, one half to predict the other, got shape {shape}: "
            "for one channel use fk.ElementwiseAffine with a condition, for one map split='checkerboard'"
        )
    if split == "halves":
        return Halves(shape)
    if split == "alternating":
        return Channels(shape, range(1, shape[0], 2))
    if isinstance(split, str):
        raise ConfigError(
            f"{owner}: split must be one of {', '.join(SPLITS)} or the channels of the second part, got {split!r}"
        )
    indices = tuple(split)
    if not indices or any(not is_int(i) or not 0 <= i < shape[0] for i in indices):
        raise ConfigError(f"{owner}: split must hold channels from 0 to {shape[0] - 1}, at least one, got {indices}")
    if len(set(indices)) < len(indices) or len(indices) == shape[0]:
        raise ConfigError(f"{owner}: split must hold each channel once and leave at least one out, got {indices}")
    return Channels(shape, sorted(indices))
