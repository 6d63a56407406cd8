"""The conditioning network of the paper: from a photograph to a map for each resolution of the flow."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from flowkit_cinn.backbones import BACKBONES

M = TypeVar("M", bound=nn.Module)

POOLED = 4  # the vector sees the coarsest level at 4 x 4, whatever the photograph's size


def _weights_used_once(cls: type[M]) -> type[M]:
    """Let `weights` act when the net is first built, and let files not remember it.

    A file holds the weights themselves. Were the argument written beside them, each loading would fetch ImageNet's once
    more, and fail without a network, only to overwrite them. So this stands outside `fk.register`, which writes down
    the arguments that reach it.
    """
    build = cls.__init__

    @functools.wraps(build)
    def __init__(self: Any, *args: Any, weights: str | None = None, **kwargs: Any) -> None:
        if not (weights is None or (isinstance(weights, str) and weights == "imagenet")):
            raise fk.ConfigError(f"FeaturePyramid: weights must be None or 'imagenet', got {str(weights)[:60]!r}")
        build(self, *args, **kwargs)
        if weights is not None:
            self.backbone.load_imagenet()

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@_weights_used_once
@fk.register("cinn.feature_pyramid")
class FeaturePyramid(nn.Module):
    """A feature net from a photograph `(B, 1 or 3, H, W)` to maps, the k-th at 1/2^(first + k) of its height and width.

    | backbone | what it is | finest level | levels |
    | --- | --- | --- | --- |
    | `"small"` | 3 x 3 convolutions and LeakyReLU, VGG-like, from scratch | full size | any |
    | `"zhang"` | Zhang et al.'s colorization net, then strided convolutions, ReLU, BatchNorm | 1/4 | any |
    | `"vgg16"` | VGG-16 | full size | 5 |
    | `"resnet18"` | ResNet-18; its level of full size is the image itself | full size | 6 |

    `"small"` with channels (64, 128, 128), vector 512 and init `"torch"` is the net of the authors' minimal example,
    `"zhang"` that of the paper.

    VGG-16's and ResNet-18's maps go through 1 x 1 convolutions to the channels that were asked for, and their input is
    normalised as ImageNet's: one channel is taken as the normalised L of `flowkit_cinn.translation.color`, brought back
    to L / 100 and repeated; three channels as RGB in 0..1. The other two take the photograph as it comes.

    Args:
        channels: of each level, finest first; as many as there are levels.
        backbone: see above.
        in_channels: 1 or 3 (`"small"` and `"zhang"` take any number).
        first: the finest level has 1/2^first of the photograph's size.
        vector: also give a vector of so many values, last: LeakyReLU, average pooling of the coarsest level to 4 x 4,
            a linear layer.
        init: `"kaiming"` draws the weights of `"small"`, of the adaptors and of the vector's layer such that features
            start at unit scale; `"torch"` is PyTorch's default, as in the authors' code, with which each layer starts
            at about half the scale of the one before, and deep levels near zero.
        weights: `"imagenet"` starts VGG-16 and ResNet-18 from torchvision's weights, fetched now unless they are in
            its cache. Only by name. A file that holds this net holds its weights and not this argument, so loading one
            needs no network. None starts from random weights.
        fixed: the weights do not train, and BatchNorm stays in eval mode whatever `train()` says. The weights are those
            that the net starts from, unless others are loaded into it.

    Raises:
        fk.ConfigError: an argument outside its range, or a level that the backbone does not have.
        PretrainedWeightsError: the weights could not be had.
        fk.MissingDependencyError: torchvision is not installed, and the backbone needs it.
        fk.ShapeError: on the call, a photograph whose height or width does not halve so often.

    Source: the paper, sections 3.1 and 4.2.

    Example:
        >>> import torch
        >>> pyramid = FeaturePyramid(channels=(8, 16), vector=5)
        >>> [tuple(level.shape) for level in pyramid(torch.zeros(2, 1, 16, 16))]
        [(2, 8, 16, 16), (2, 16, 8, 8), (2, 5)]
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        backbone: str = "small",
        in_channels: int = 1,
        first: int = 0,
        vector: int | None = None,
        init: str = "kaiming",
        fixed: bool = False,
        *,
        weights: str | None = None,  # taken by _weights_used_once
    ):
        super().__init__()
        channels = tuple(channels)
        if not channels or any(not isinstance(c, int) or c < 1 for c in channels):
            raise fk.ConfigError(f"channels must be positive ints, one a level, got {channels!r}")
        if backbone not in BACKBONES:
            raise fk.ConfigError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
        if in_channels < 1 or first < 0:
            raise fk.ConfigError(f"in_channels must be at least 1 and first at least 0, got {in_channels} and {first}")
        if vector is not None and vector < 1:
            raise fk.ConfigError(f"vector must be a positive int or None, got {vector!r}")
        if init not in ("kaiming", "torch"):
            raise fk.ConfigError(f"init must be 'kaiming' or 'torch', got {init!r}")
        self.in_channels, self.first = in_channels, first
        self.backbone = BACKBONES[backbone](in_channels, channels, first)
        self.adaptors = nn.ModuleList(
            nn.Identity() if self.backbone.free_channels else nn.Conv2d(width, c, 1)
            for width, c in zip(self.backbone.widths, channels, strict=True)
        )
        self.head = None if vector is None else _head(channels[-1], vector)
        if init == "kaiming":
            _at_unit_scale(self.adaptors, self.head, self.backbone if backbone == "small" else None)
        self.fixed = fixed
        if fixed:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeaturePyramid:
        """Training mode, unless the net is fixed: then it stays in eval mode."""
        return super().train(mode and not self.fixed)

    def forward(self, photo: Tensor) -> tuple[Tensor, ...]:
        """The maps, finest first, and the vector where there is one."""
        step = max(2 ** (self.first + len(self.adaptors) - 1), self.backbone.divisor)
        if photo.dim() != 4 or photo.shape[1] != self.in_channels or photo.shape[2] % step or photo.shape[3] % step:
            raise fk.ShapeError(
                f"FeaturePyramid needs photographs (B, {self.in_channels}, H, W) of a height and width that {step} "
                f"divides, got {tuple(photo.shape)}"
            )
        levels = tuple(adapt(x) for adapt, x in zip(self.adaptors, self.backbone(photo), strict=True))
        return levels if self.head is None else (*levels, self.head(levels[-1]))


@fk.register("cinn.image_pyramid")
class ImagePyramid(nn.Module):
    """A photograph `(B, C, H, W)` averaged down: what stands in for the conditioning net where there is none.

    Gives `(B, C, H/f, W/f)` for each factor f, each pixel the mean of a block of f x f, and where asked the same
    flattened, `(B, C (H/f) (W/f))`. It has no parameters.

    Args:
        factors: of the maps.
        vector: the factor of the vector, last; None has none.

    Raises:
        fk.ConfigError: a factor that is not a positive int.
        fk.ShapeError: on the call, a photograph that a factor does not divide.

    Source: the paper, Fig. 12, where the grayscale image itself is the condition.

    Example:
        >>> import torch
        >>> pyramid = ImagePyramid((1, 2), vector=4)
        >>> [tuple(level.shape) for level in pyramid(torch.zeros(2, 1, 16, 16))]
        [(2, 1, 16, 16), (2, 1, 8, 8), (2, 16)]
    """

    def __init__(self, factors: Sequence[int], vector: int | None = None):
        super().__init__()
        self.factors, self.vector = tuple(factors), vector
        for factor in self._all():
            if not isinstance(factor, int) or factor < 1:
                raise fk.ConfigError(f"ImagePyramid: factors must be positive ints, got {factors!r} and {vector!r}")

    def _all(self) -> tuple[int, ...]:
        return self.factors if self.vector is None else (*self.factors, self.vector)

    def forward(self, photo: Tensor) -> tuple[Tensor, ...]:
        """The maps, and the vector where there is one."""
        if photo.dim() != 4 or any(size % factor for size in photo.shape[2:] for factor in self._all()):
            raise fk.ShapeError(
                f"ImagePyramid needs photographs (B, C, H, W) of a height and width that {self._all()} divide, got "
                f"{tuple(photo.shape)}"
            )
        levels = tuple(_averaged(photo, factor) for factor in self.factors)
        return levels if self.vector is None else (*levels, _averaged(photo, self.vector).flatten(1))

    def extra_repr(self) -> str:
        """The factors."""
        return f"{self.factors}, vector={self.vector}"


@fk.register("cinn.block_condition")
class BlockCondition(nn.Module):
    """A conditioning net of one block's own: from a map `(B, C, H, W)` that all blocks share to the block's condition.

    3 x 3 convolutions, LeakyReLU after each, and BatchNorm at the end: one at stride 1, or `halvings` of them at
    stride 2, for a map `(B, channels, H / 2^halvings, W / 2^halvings)`. For a vector `(B, vector)`: one at stride 2,
    average pooling to 4 x 4, one at stride 1, a linear layer.

    Args:
        c_in: C.
        channels: of the convolutions.
        halvings: how often the map is halved; for maps alone.
        vector: give a vector of so many values, for fully connected blocks.

    Raises:
        fk.ConfigError: an argument that is not positive, or negative halvings.

    Example:
        >>> import torch
        >>> shared = torch.zeros(2, 8, 16, 16)
        >>> BlockCondition(8, 4, halvings=2)(shared).shape, BlockCondition(8, 4, vector=5)(shared).shape
        (torch.Size([2, 4, 4, 4]), torch.Size([2, 5]))
    """

    def __init__(self, c_in: int, channels: int, halvings: int = 0, vector: int | None = None):
        super().__init__()
        if min(c_in, channels, 1 if vector is None else vector) < 1 or halvings < 0:
            raise fk.ConfigError(
                f"BlockCondition: c_in, channels and vector must be positive and halvings at least 0, got {c_in}, "
                f"{channels}, {vector} and {halvings}"
            )
        layers: list[nn.Module] = []
        if vector is None:
            for stride in (2,) * halvings or (1,):
                layers += [nn.Conv2d(c_in, channels, 3, stride=stride, padding=1), nn.LeakyReLU()]
                c_in = channels
            layers.append(nn.BatchNorm2d(channels))
        else:
            layers += [nn.Conv2d(c_in, channels, 3, stride=2, padding=1), nn.LeakyReLU()]
            layers += [nn.AdaptiveAvgPool2d(POOLED), nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU()]
            layers += [nn.Flatten(), nn.Linear(channels * POOLED**2, vector)]
        self.layers = nn.Sequential(*layers)
        _at_unit_scale(self.layers)

    def forward(self, shared: Tensor) -> Tensor:
        """The block's condition."""
        return self.layers(shared)


def _averaged(photo: Tensor, factor: int) -> Tensor:
    return photo if factor == 1 else F.avg_pool2d(photo, factor)


def _head(c_in: int, size: int) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(POOLED)
    return nn.Sequential(nn.LeakyReLU(), pool, nn.Flatten(), nn.Linear(c_in * POOLED**2, size))


def _at_unit_scale(*parts: nn.Module | None) -> None:
    for module in (m for part in parts if part is not None for m in part.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
