"""CIFAR-10 and ImageNet through torchvision's data set classes."""

from __future__ import annotations

import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from flowkit.errors import MissingDependencyError
from flowkit_cinn.translation.sources import ArrayImage, DataError, NamedImage

# What torchvision lets through when a download breaks off, or a file is not what it should be.
BROKEN = (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError, zlib.error, pickle.UnpicklingError)


def cifar10(root: Path, download: bool) -> tuple[list[ArrayImage], list[ArrayImage]]:
    """Training and test images of CIFAR-10, 32 x 32, held in memory (180 MB).

    Raises:
        DataError: they are not in `root`, or could not be downloaded.
    """
    datasets = _datasets()
    parts = []
    for part, train in (("train", True), ("test", False)):
        try:
            with one_at_a_time(root) if download else nullcontext():
                found = datasets.CIFAR10(str(root), train=train, download=download)
        except BROKEN as error:
            how = (
                "the download failed, or broke off; try again, what is there is checked, and fetched again if need be"
                if download
                else "allow the download, or put cifar-10-batches-py there"
            )
            raise DataError(f"CIFAR-10 is not in '{root}': {how} ({in_one_line(error)})") from error
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
        except BROKEN as error:
            raise DataError(
                f"ImageNet is not in '{root}': put its archives there by hand, as torchvision.datasets.ImageNet asks "
                f"({in_one_line(error)})"
            ) from error
        paths = [Path(path) for path, _ in found.samples]
        parts.append([NamedImage(f"{part}/{path.parent.name}/{path.name}", path) for path in paths])
    return parts[0], parts[1]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Within it no other process on this machine is: those that torchrun starts all want the same download."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError):  # where there are no such locks
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which lets the next one in


def in_one_line(error: BaseException) -> str:
    """What an error says, for a sentence's brackets.

    >>> in_one_line(RuntimeError("one thing:\\n\\tand another"))
    'one thing: and another'
    """
    return " ".join(str(error).split()) or type(error).__name__


def _datasets() -> Any:
    try:
        import torchvision.datasets
    except ImportError as error:
        raise MissingDependencyError(
            'this data set needs torchvision: python -m pip install "flowkit[cinn]"'
        ) from error
    return torchvision.datasets
