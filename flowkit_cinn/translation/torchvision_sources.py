"""CIFAR-10 and ImageNet through torchvision's data set classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.errors import MissingDependencyError
from flowkit_cinn.translation.sources import ArrayImage, DataError, NamedImage


def cifar10(root: Path, download: bool) -> tuple[list[ArrayImage], list[ArrayImage]]:
    """Training and test images of CIFAR-10, 32 x 32, held in memory (180 MB).

    Raises:
        DataError: they are not in `root`, or could not be downloaded.
    """
    datasets = _datasets()
    parts = []
    for part, train in (("train", True), ("test", False)):
        try:
            found = datasets.CIFAR10(str(root), train=train, download=download)
        except (RuntimeError, OSError) as error:
            how = "the download failed" if download else "allow the download, or put cifar-10-batches-py there"
            raise DataError(f"CIFAR-10 is not in '{root}': {how} ({error})") from error
        parts.append([ArrayImage(f"{part}/{i:05d}", pixels) for i, pixels in enumerate(found.data)])
    return parts[0], parts[1]


def imagenet(root: Path, download: bool) -> tuple[list[NamedImage], list[NamedImage]]:
    """Training and validation images of ImageNet 2012, read from their files as they are needed.

    Raises:
        DataError: they are not in `root`; ImageNet cannot be downloaded without an account.
    """
    datasets = _datasets()
    parts = []
    for part in ("train", "val"):
        try:
            found = datasets.ImageNet(str(root), split=part)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"ImageNet is not in '{root}': put its archives there by hand, as torchvision.datasets.ImageNet asks "
                f"({error})"
            ) from error
        paths = [Path(path) for path, _ in found.samples]
        parts.append([NamedImage(f"{part}/{path.parent.name}/{path.name}", path) for path in paths])
    return parts[0], parts[1]


def _datasets() -> Any:
    try:
        import torchvision.datasets
    except ImportError as error:
        raise MissingDependencyError(
            'this data set needs torchvision: python -m pip install "flowkit[cinn]"'
        ) from error
    return torchvision.datasets
