"""The digits: MNIST's IDX files, or the 8x8 digits that scikit-learn ships; normalised, their labels checked."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from flowkit.errors import InputError, MissingDependencyError
from flowkit_cinn.translation.torchvision_sources import one_at_a_time

from .._common.runs import free_path

CLASSES = 10
MEAN, STD = 0.128, 0.305  # the authors', of MNIST's grey in 0..1
HELD_OUT_EVERY = 5  # of scikit-learn's digits, which come without a split: the fifth, the tenth, ...
BYTES, DIMENSIONS_AT = 0x08, 4  # IDX: two zeros, the type, the number of dimensions, then each as four bytes
SCIKIT_GREY = 16.0


class DigitsError(InputError):
    """Digits that cannot be read or used."""


@dataclass(frozen=True)
class Digits:
    """Normalised digits `(N, 1, H, W)` with labels `(N,)`, to train on and held out; and a sentence on them."""

    train: TensorDataset
    held_out: TensorDataset
    summary: str

    @property
    def size(self) -> int:
        """Height and width of a digit."""
        return self.train.tensors[0].shape[-1]


def open_digits(data: str | None, download: bool = False) -> Digits:
    """The digits in a folder, or scikit-learn's.

    Args:
        data: a folder that holds MNIST/raw, or the IDX files themselves, plain or gzipped; None for scikit-learn's.
        download: let torchvision put MNIST there first.

    Raises:
        DigitsError: files that are missing, cut short, or not as they should be; labels out of range; one class.
        MissingDependencyError: scikit-learn or torchvision is not installed.
    """
    if data is None:
        parts, name = _scikit_digits(), "scikit-learn's 8x8 digits"
    else:
        if download:
            _download(data)
        parts, name = _idx_digits(Path(data)), f"the digits in '{data}'"
    for part, (grey, labels) in parts.items():
        _check(grey, labels, f"the {part} digits of {name.removeprefix('the digits in ')}")
    train, held_out = (
        TensorDataset(((grey - MEAN) / STD).unsqueeze(1), labels) for grey, labels in (parts["train"], parts["test"])
    )
    if train.tensors[0].shape[1:] != held_out.tensors[0].shape[1:]:
        raise DigitsError(f"{name}: those to train on and those held out differ in size")
    height, width = train.tensors[0].shape[-2:]
    summary = f"{len(train):,} digits to train on and {len(held_out):,} held out, {height} x {width}: {name}."
    return Digits(train, held_out, summary)


def grey_of(x: Tensor) -> Tensor:
    """Normalised digits as grey in 0..1, clipped."""
    return (x * STD + MEAN).clamp(0, 1)


def _check(grey: Tensor, labels: Tensor, what: str) -> None:
    if len(grey) != len(labels) or not len(grey):
        raise DigitsError(
            f"{what}: one label for each digit is needed, got {len(grey)} digits and {len(labels)} labels"
        )
    if grey.dim() != 3 or grey.shape[1] != grey.shape[2]:
        raise DigitsError(f"{what} must be square images, got shape {tuple(grey.shape)}")
    wrong = ((labels < 0) | (labels >= CLASSES)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DigitsError(
            f"{what}: labels must be 0 to {CLASSES - 1}, got {int(labels[first])} at digit {first} "
            f"({len(wrong):,} of {len(labels):,} are out of range)"
        )
    if len(labels.unique()) < 2:
        raise DigitsError(
            f"{what} all have the label {int(labels[0])}: with one class there is nothing to condition on or to "
            f"classify, two are needed"
        )


def _scikit_digits() -> dict[str, tuple[Tensor, Tensor]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            'the 8x8 digits need scikit-learn: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    found = load_digits()
    grey = torch.from_numpy(found.images / SCIKIT_GREY).float()
    labels = torch.from_numpy(found.target).long()
    held_out = torch.arange(len(labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return {"train": (grey[~held_out], labels[~held_out]), "test": (grey[held_out], labels[held_out])}


def _idx_digits(data: Path) -> dict[str, tuple[Tensor, Tensor]]:
    folder = next((f for f in (data / "MNIST" / "raw", data / "raw", data) if _file(f, "train-images", 3)), None)
    if folder is None:
        raise DigitsError(
            f"'{data}' holds no digits: MNIST/raw/train-images-idx3-ubyte (or .gz) is needed there; "
            f"--download fetches MNIST, and without --data scikit-learn's 8x8 digits are taken"
        )
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        grey = torch.from_numpy(_idx(folder, f"{prefix}-images", 3)).float() / 255
        parts[part] = grey, torch.from_numpy(_idx(folder, f"{prefix}-labels", 1)).long()
    return parts


def _file(folder: Path, name: str, dimensions: int) -> Path | None:
    plain = folder / f"{name}-idx{dimensions}-ubyte"
    return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)


def _idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The bytes of an IDX file as an array of their own."""
    path = _file(folder, name, dimensions)
    if path is None:
        raise DigitsError(f"'{folder}' has no {name}-idx{dimensions}-ubyte, plain or as .gz")
    return _read_idx(path, dimensions)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # an interrupted download
        raise DigitsError(f"'{path}' cannot be read, or is cut short ({error}): fetch it again") from error
    start = DIMENSIONS_AT + 4 * dimensions
    if len(content) < start or content[:DIMENSIONS_AT] != bytes((0, 0, BYTES, dimensions)):
        raise DigitsError(f"'{path}' is no IDX file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(content[DIMENSIONS_AT:start], ">u4").astype(int)
    if len(content) != start + shape.prod():
        raise DigitsError(
            f"'{path}' is cut short, or has something behind its end: {shape.prod():,} bytes are needed for "
            f"{' x '.join(map(str, shape))}, got {len(content) - start:,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _download(data: str) -> None:
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise MissingDependencyError(
            'the download needs torchvision: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    try:
        with one_at_a_time(Path(data)):
            _forget_cut_files(Path(data) / "MNIST" / "raw")
            MNIST(data, download=True)
    except (RuntimeError, OSError, EOFError, HTTPException, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DigitsError(
            f"MNIST could not be downloaded to '{data}' ({reason}): try again, what is whole is kept"
        ) from error


def _forget_cut_files(raw: Path) -> None:
    """torchvision checks what it fetches, but not what it unpacked: a run that ended while it did would never heal.

    Such a file is put aside, not deleted: it may be somebody's own.
    """
    for part in ("train", "t10k"):
        for kind, dimensions in (("images", 3), ("labels", 1)):
            path = raw / f"{part}-{kind}-idx{dimensions}-ubyte"
            try:
                if path.is_file():
                    _read_idx(path, dimensions)
            except DigitsError:
                path.rename(free_path(path.with_name(f"{path.name}.damaged")))
