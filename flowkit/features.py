"""Adaptors: feature nets without weights that bring a condition to another scale or form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.arguments import is_int
from flowkit.errors import ConditionError, ConfigError, ShapeError
from flowkit.registry import register
from flowkit.shapes import Shape, as_shape

# These are modules, so they are compared by identity: modules that were equal by value would be taken for one another
# by `children()`, and the second of two would not be moved to a device.


def _spatial(owner: str, size: int | Sequence[int]) -> Shape:
    shape = as_shape(size)
    if len(shape) not in (1, 2, 3):
        raise ConfigError(f"{owner}: size must be one, two or three spatial sizes, got {shape}")
    return shape


@register("flowkit.to_map")
class ToMap(nn.Module):
    """A vector `(B, C)` as a map `(B, C, *size)`, the same at every position; a view, nothing is copied.

    Args:
        size: spatial size, one to three ints.

    Raises:
        ConfigError: another number of spatial sizes.
        ShapeError: called with something else than vectors.

    >>> ToMap((8, 8))(torch.zeros(5, 10)).shape
    torch.Size([5, 10, 8, 8])
    """

    def __init__(self, size: int | Sequence[int]):
        super().__init__()
        self.size = _spatial("ToMap", size)

    def forward(self, c: Tensor) -> Tensor:
        """The map of the vector c."""
        if c.dim() != 2:
            raise ShapeError(f"ToMap needs a vector (C,), got shape {tuple(c.shape[1:])}")
        return c.reshape(*c.shape, *[1] * len(self.size)).expand(*c.shape, *self.size)

    def extra_repr(self) -> str:
        """The size."""
        return str(self.size)


@register("flowkit.to_vector")
class ToVector(nn.Module):
    """A map `(B, C, ...)` as a vector `(B, C)`: the mean over space.

    Raises:
        ShapeError: called with something that has no spatial dimensions.

    >>> ToVector()(torch.ones(5, 3, 8, 8)).shape
    torch.Size([5, 3])
    """

    def forward(self, c: Tensor) -> Tensor:
        """The mean of the map c over space."""
        if c.dim() < 3:
            raise ShapeError(f"ToVector needs a map (C, ...), got shape {tuple(c.shape[1:])}")
        return c.mean(tuple(range(2, c.dim())))


@register("flowkit.resize")
class Resize(nn.Module):
    """A map at another size, by (bi-, tri-)linear interpolation, antialiased along the dimensions that shrink.

    Shapes: `(B, C, H, W)` to `(B, C, *size)`; or one or three spatial dimensions.

    Args:
        size: spatial size, one to three ints.

    Raises:
        ConfigError: another number of spatial sizes.
        ShapeError: called with a map of another number of spatial dimensions.

    >>> Resize((4, 4))(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 3, 4, 4])
    """

    def __init__(self, size: int | Sequence[int]):
        super().__init__()
        self.size = _spatial("Resize", size)

    def forward(self, c: Tensor) -> Tensor:
        """The map c at the size."""
        spatial = tuple(c.shape[2:])
        if len(spatial) != len(self.size):
            count = f"{len(self.size)} spatial dimension{'s' if len(self.size) > 1 else ''}"
            raise ShapeError(f"Resize to {self.size} needs a map with {count}, got shape {tuple(c.shape[1:])}")
        if spatial == self.size:
            return c
        # torch antialiases images alone; the filter is separable, so a line or a volume goes as images.
        if len(spatial) == 1:
            return _resized_image(c.unsqueeze(2), (1, *self.size)).squeeze(2)
        if len(spatial) == 2:
            return _resized_image(c, self.size)
        depth, height, width = self.size
        planes = _resized_image(c.flatten(1, 2), (height, width)).unflatten(1, c.shape[1:3])
        return _resized_image(planes.flatten(3), (depth, height * width)).unflatten(3, (height, width))

    def extra_repr(self) -> str:
        """The size."""
        return str(self.size)


def _resized_image(image: Tensor, size: Shape) -> Tensor:
    shrinks = size[0] < image.shape[2] or size[1] < image.shape[3]
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=shrinks)


@register("flowkit.one_hot")
class OneHot(nn.Module):
    """Integer labels `(B,)` as one-hot vectors `(B, n)` of the module's floating dtype.

    Labels out of range are refused, which waits for the device that holds them; in a compiled graph and under vmap,
    where nothing can be refused, they give a row of zeros.

    Args:
        n: how many classes, at least 1.

    Raises:
        ConfigError: n is not a positive int.
        ConditionError: called with labels that are no ints, have a shape of their own, or are out of range.

    >>> OneHot(3)(torch.tensor([2, 0])).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    classes: Tensor
    like: Tensor

    def __init__(self, n: int):
        super().__init__()
        if not is_int(n) or n < 1:
            raise ConfigError(f"OneHot: n must be a positive int, got {n!r}")
        self.n = n
        self.register_buffer("classes", torch.arange(n), persistent=False)
        self.register_buffer("like", torch.empty(0), persistent=False)  # follows .half(), .double(): the dtype to give

    def forward(self, labels: Tensor) -> Tensor:
        """The one-hot vectors of the labels."""
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ConditionError(f"OneHot needs integer labels, got {labels.dtype}")
        if labels.dim() != 1:
            raise ConditionError(f"OneHot needs labels of shape (), one a row, got shape {tuple(labels.shape[1:])}")
        if not (labels.is_meta or torch.compiler.is_compiling()) and labels.numel():
            self._check_range(labels)
        return (labels.unsqueeze(1) == self.classes).to(self.like.dtype)

    def _check_range(self, labels: Tensor) -> None:
        try:
            low, high = (int(value) for value in labels.aminmax())
        except RuntimeError:  # under vmap, and for fake tensors, there is no value to look at
            return
        if low < 0 or high >= self.n:
            raise ConditionError(f"OneHot needs labels from 0 to {self.n - 1}, got {low if low < 0 else high}")

    def extra_repr(self) -> str:
        """How many classes."""
        return str(self.n)
