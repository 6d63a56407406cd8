"""The feed-forward nets under `FeaturePyramid`: from an image to maps at halving sizes. They have no inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit_cinn.translation.color import LIGHTNESS_MEAN, LIGHTNESS_STD

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_LIGHTNESS = 100.0
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_WIDTHS = (3, 64, 64, 128, 256, 512)
ZHANG_FIRST = 2  # its finest maps have a quarter of the photograph's size


class PretrainedWeightsError(fk.FlowkitError, OSError):
    """Pretrained weights were asked for and could not be had; nothing was left with random weights in their place."""


class Backbone(nn.Module):
    """Stages run one after the other; the output of each is one level of the pyramid.

    Attributes:
        free_channels: whether the channels can be asked for, so that no adaptor is needed.
        divisor: what the photograph's height and width must be multiples of, whatever the levels.
        widths: the channels of each level.
    """

    free_channels = False
    divisor: ClassVar[int] = 1
    widths: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps, finest first."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return tuple(maps)

    def load_imagenet(self) -> None:
        """Fetch torchvision's ImageNet weights, or raise."""
        name = type(self).__name__
        raise fk.ConfigError(f"weights='imagenet' exist for the backbones 'vgg16' and 'resnet18', not for {name}")


class Small(Backbone):
    """A VGG-like net of 3 x 3 convolutions and LeakyReLU: with channels (64, 128, 128) the authors' minimal example.

    The first stage has a convolution at full size and then one at stride 1, or `first` of them at stride 2; each
    further stage a convolution that widens, where the channels change, and one at stride 2. A level is its last
    convolution's output, before the LeakyReLU.
    """

    free_channels = True

    def __init__(self, in_channels: int, channels: Sequence[int], first: int):
        super().__init__()
        self.widths = tuple(channels)
        c = channels[0]
        strides = (2,) * first or (1,)
        self.stages.append(_alternate(_conv(in_channels, c), *(_conv(c, c, stride=s) for s in strides)))
        for c_in, c_out in pairwise(channels):
            widening = [] if c_in == c_out else [_conv(c_in, c_out)]
            self.stages.append(nn.Sequential(nn.LeakyReLU(), *_alternate(*widening, _conv(c_out, c_out, stride=2))))


class Zhang(Backbone):
    """The colorization net of Zhang et al. up to its second-to-last convolution, then strided convolutions.

    Eight blocks of convolutions, ReLU and BatchNorm: strides 2, 2, 2 in the first three, dilation 2 in the fifth and
    sixth, and a transposed convolution back to a quarter of the photograph's size in the eighth: 256 maps. Each further
    level is a convolution at stride 2, ReLU and BatchNorm.

    Source: R. Zhang, P. Isola, A. Efros, Colorful Image Colorization, ECCV 2016; the paper, section 4.2.
    """

    free_channels = True
    divisor = 8

    def __init__(self, in_channels: int, channels: Sequence[int], first: int):
        super().__init__()
        if first != ZHANG_FIRST or channels[0] != 256:
            raise fk.ConfigError(
                f"backbone 'zhang' gives 256 maps at a quarter of the photograph's size: it needs first=2 and channels "
                f"that begin with 256, got first={first} and {tuple(channels)}"
            )
        self.widths = tuple(channels)
        blocks = [
            *_zhang_block(in_channels, (64, 64), stride=2),
            *_zhang_block(64, (128, 128), stride=2),
            *_zhang_block(128, (256, 256, 256), stride=2),
            *_zhang_block(256, (512, 512, 512)),
            *_zhang_block(512, (512, 512, 512), dilation=2),
            *_zhang_block(512, (512, 512, 512), dilation=2),
            *_zhang_block(512, (512, 512, 512)),
            nn.ConvTranspose2d(512, 256, 4, stride=2, padding=1),
            nn.ReLU(),
            _conv(256, 256),
            nn.ReLU(),
        ]
        self.stages.append(nn.Sequential(*blocks))
        for c_in, c_out in pairwise(channels):
            self.stages.append(nn.Sequential(_conv(c_in, c_out, stride=2), nn.ReLU(), nn.BatchNorm2d(c_out)))


class _ImageNet(Backbone):
    """What VGG-16 and ResNet-18 share: the image normalised as ImageNet's, one channel repeated to three."""

    scale: Tensor
    offset: Tensor

    def __init__(self, in_channels: int):
        super().__init__()
        if in_channels not in (1, 3):
            name = type(self).__name__
            raise fk.ConfigError(f"{name} needs in_channels 1 (normalised L) or 3 (RGB in 0..1), got {in_channels}")
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        # L arrives as (L - mean) / std: back to 0..100, to 0..1, then ImageNet's own, all in one affine map.
        gain, bias = (LIGHTNESS_STD / MAX_LIGHTNESS, LIGHTNESS_MEAN / MAX_LIGHTNESS) if in_channels == 1 else (1.0, 0.0)
        self.register_buffer("scale", gain / std)
        self.register_buffer("offset", (bias - mean) / std)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps, finest first."""
        three = torch.addcmul(self.offset, image, self.scale)  # broadcasting repeats L
        return super().forward(three)

    def _cut(self, stages: Sequence[nn.Module], first: int, levels: int) -> nn.ModuleList:
        """The stages that the levels need; those before the first level become one with it."""
        if first + levels > len(stages):
            raise fk.ConfigError(
                f"{type(self).__name__} has {len(stages)} levels, down to 1/{2 ** (len(stages) - 1)} of the "
                f"photograph's size, and {levels} levels from 1/{2**first} on were asked for"
            )
        finest = nn.Sequential(*stages[: first + 1]) if first else stages[0]
        return nn.ModuleList([finest, *stages[first + 1 : first + levels]])


class VGG16(_ImageNet):
    """VGG-16's convolutions, levels after the last ReLU of each of its five blocks: 64, 128, 256, 512, 512 channels.

    Source: K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], first: int):
        super().__init__(in_channels)
        stages, c = [], 3
        for i, block in enumerate(VGG16_BLOCKS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
            for width in block:
                layers += [_conv(c, width), nn.ReLU()]
                c = width
            stages.append(nn.Sequential(*layers))
        for module in (m for stage in stages for m in stage.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.stages = self._cut(stages, first, len(channels))
        self.widths = tuple(block[-1] for block in VGG16_BLOCKS[first : first + len(channels)])

    def load_imagenet(self) -> None:
        """Fetch torchvision's `VGG16_Weights.IMAGENET1K_V1`."""
        state = fetch("vgg16")
        theirs = [key.removesuffix(".weight") for key in state if key.startswith("features.") and "weight" in key]
        mine = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for module, key in zip(mine, theirs, strict=False):  # the pyramid may end before VGG does
            module.load_state_dict({"weight": state[f"{key}.weight"], "bias": state[f"{key}.bias"]})


class ResNet18(_ImageNet):
    """torchvision's ResNet-18: levels are the normalised image itself, the stem, and each of its four layers.

    Source: K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], first: int):
        super().__init__(in_channels)
        self.first = first
        self.stages = self._cut(_resnet_stages(_torchvision().resnet18(weights=None)), first, len(channels))
        self.widths = RESNET18_WIDTHS[first : first + len(channels)]

    def load_imagenet(self) -> None:
        """Fetch torchvision's `ResNet18_Weights.IMAGENET1K_V1`."""
        whole = _torchvision().resnet18(weights=None)
        whole.load_state_dict(fetch("resnet18"))
        theirs = self._cut(_resnet_stages(whole), self.first, len(self.widths))
        self.stages.load_state_dict(theirs.state_dict())


BACKBONES: dict[str, Callable[[int, Sequence[int], int], Backbone]] = {
    "small": Small,
    "zhang": Zhang,
    "vgg16": VGG16,
    "resnet18": ResNet18,
}


def fetch(name: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of that model: from its cache, else from the network.

    Raises:
        PretrainedWeightsError: there is no network, or what came is damaged.
        fk.MissingDependencyError: torchvision is not installed.
    """
    weights = _torchvision().get_model_weights(name).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise PretrainedWeightsError(
            f"the ImageNet weights of {name} could not be had ({type(error).__name__}: {error}): build it once where "
            f"there is a network, which fills torchvision's cache, or pass weights=None to start from random weights"
        ) from error


def _torchvision() -> Any:
    try:
        import torchvision.models
    except ImportError as error:
        raise fk.MissingDependencyError(
            'this backbone needs torchvision: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    return torchvision.models


def _resnet_stages(net: Any) -> list[nn.Module]:
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # a level must not change after it was handed out
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    return [nn.Identity(), stem, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4]


def _conv(c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=dilation, dilation=dilation)


def _alternate(*layers: nn.Module) -> nn.Sequential:
    """The layers with a LeakyReLU between each two."""
    between: list[nn.Module] = [layers[0]]
    for layer in layers[1:]:
        between += [nn.LeakyReLU(), layer]
    return nn.Sequential(*between)


def _zhang_block(c_in: int, widths: Sequence[int], stride: int = 1, dilation: int = 1) -> Iterator[nn.Module]:
    for i, width in enumerate(widths):
        yield _conv(c_in, width, stride=stride if i + 1 == len(widths) else 1, dilation=dilation)
        yield nn.ReLU()
        c_in = width
    yield nn.BatchNorm2d(c_in)
