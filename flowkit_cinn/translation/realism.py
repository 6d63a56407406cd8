"""Whether colours look real: the Fréchet distance of features (FID), and what a classifier recognises (top-5).

Both need a network that has seen photographs. Where its weights cannot be had, the distance is measured on a named
substitute's features, and the accuracy is left out: the caller says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import InputError, MissingDependencyError
from flowkit_cinn.backbones import IMAGENET_MEAN, IMAGENET_STD, fetch
from flowkit_cinn.translation.metrics import Estimate

ROWS = 64  # images at a time
RESAMPLES = 20  # of the bootstrap: each is a matrix root
IMAGENET_CLASSES = 1000
VGG_SIZE = 224


class RandomFeatures(nn.Module):
    """Features of an untrained convolutional net, the same wherever it is built: a stand-in for Inception.

    Three convolutions with ReLU, stride 2, weights drawn with seed 0; the means and standard deviations over all
    places. Distances of such features tell colour and texture statistics apart, not what is in a picture.

    >>> RandomFeatures()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 256])
    """

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for number, (c_in, c_out) in enumerate(((3, 32), (32, 64), (64, 128))):
            weight = torch.randn(c_out, c_in, 5, 5, generator=generator, dtype=torch.float32)
            self.register_buffer(f"weight_{number}", weight * (2 / weight[0].numel()) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..1, `(B, 3, H, W)`, to `(B, 256)`."""
        x = 2 * images - 1
        for weight in self.buffers():
            x = nn.functional.conv2d(x, weight, stride=2, padding=2).relu()
        return torch.cat((x.mean((2, 3)), x.std((2, 3), correction=0)), 1)


@dataclass(frozen=True)
class Extractor:
    """Features for the Fréchet distance: `name` says of what net, `note` why it is not Inception's, if it is not."""

    name: str
    net: nn.Module
    bytes_in: bool = False
    note: str = ""

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Of RGB in 0..1, `(B, 3, H, W)`: `(B, D)`, float64."""
        taken = (255 * images).round().clamp(0, 255).byte() if self.bytes_in else images
        return torch.cat([self.net(part).double() for part in taken.split(ROWS)])


def inception_or_substitute() -> Extractor:
    """Inception's features where torch-fidelity is installed and its weights can be had, else `RandomFeatures`."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        return Extractor("Inception v3", FrechetInceptionDistance(feature=2048).inception.eval(), bytes_in=True)
    except ModuleNotFoundError:
        why = "Inception's weights need torch-fidelity: python -m pip install torch-fidelity"
    except (OSError, RuntimeError) as error:
        why = f"Inception's weights could not be had ({type(error).__name__}: {error})"
    return Extractor("an untrained net, seed 0", RandomFeatures().eval(), note=why)


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """|m1 - m2|^2 + trace(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features, by torchmetrics.

    Args:
        real: `(N, D)`.
        made: `(M, D)`.

    Raises:
        InputError: shapes that do not fit, fewer than 2 rows, or features that are not finite.
        MissingDependencyError: torchmetrics is not installed.

    >>> round(frechet_distance(torch.randn(4000, 2).double(), torch.randn(4000, 2).double() + 3.0))
    18
    """
    if real.dim() != 2 or made.dim() != 2 or real.shape[1] != made.shape[1] or min(len(real), len(made)) < 2:
        raise InputError(
            f"features (N, D) of one D, N at least 2, are needed, got {tuple(real.shape)} and {tuple(made.shape)}"
        )
    for name, features in (("real", real), ("made", made)):
        if not features.isfinite().all():  # LAPACK would end the process
            raise InputError(f"the features must be finite, and of the {name} ones some are not")
    metric = _frechet()(feature=_AsTheyAre(real.shape[1]), normalize=True)
    metric.update(real, real=True)
    metric.update(made, real=False)
    return float(metric.compute())


def bootstrap_frechet(real: Tensor, made: Tensor, *, resamples: int = RESAMPLES) -> Estimate:
    """The distance, and its bootstrap error over the made images: the standard deviation over resampled sets."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        frechet_distance(real, made[torch.randint(len(made), (len(made),), generator=generator)])
        for _ in range(resamples)
    ]
    return Estimate(frechet_distance(real, made), float(torch.tensor(drawn).std()))


def imagenet_classes(names: Sequence[str], all_names: Sequence[str]) -> Tensor | None:
    """Each image's number among ImageNet's classes, from its folder; None unless there are exactly 1,000 folders.

    torchvision's networks number the classes in the order of their folders' names.

    Args:
        names: of the images asked about: ".../CLASS/FILE".
        all_names: of all images of the data set.
    """
    folders = sorted({folder for name in all_names if (folder := _folder(name))})
    if len(folders) != IMAGENET_CLASSES or not all(_folder(name) in folders for name in names):
        return None
    number = {folder: i for i, folder in enumerate(folders)}
    return torch.tensor([number[_folder(name)] for name in names])


def vgg16() -> nn.Module:
    """torchvision's VGG-16 with ImageNet's weights.

    Raises:
        PretrainedWeightsError: they cannot be had.
        MissingDependencyError: torchvision is not installed.
    """
    state = fetch("vgg16")
    import torchvision.models

    net = torchvision.models.vgg16(weights=None)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def top5(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Whether the right class is among a classifier's first five, `(B,)` of 0 and 1.

    Args:
        net: from ImageNet-normalised images `(B, 3, 224, 224)` to logits `(B, K)`.
        images: RGB in 0..1, of any size: brought to 224 x 224 first.
        classes: `(B,)`.
    """
    mean, std = (images.new_tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    found = []
    for part, wanted in zip(images.split(ROWS), classes.split(ROWS), strict=True):
        sized = nn.functional.interpolate(part, size=(VGG_SIZE, VGG_SIZE), mode="bilinear", antialias=True)
        best = net((sized - mean) / std).topk(5, 1).indices
        found.append((best == wanted[:, None]).any(1).double())
    return torch.cat(found)


class _AsTheyAre(nn.Module):
    """Lets torchmetrics take features in place of images."""

    def __init__(self, size: int):
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet() -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise MissingDependencyError(
            'the Fréchet distance needs torchmetrics: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    return FrechetInceptionDistance


def _folder(name: str) -> str:
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else ""
