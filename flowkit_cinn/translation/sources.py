"""Where training photographs come from: a folder, tar shards, or a name; split into training and held-out ones."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from flowkit.errors import FlowkitError, MissingDependencyError
from flowkit_cinn.translation.images import IMAGE_SUFFIXES, Photograph, PhotographError, is_colourless, read_photograph

LEAST_PHOTOGRAPHS = 4
HELD_OUT_SHARE = 0.05
SCAN_LIMIT = 5000  # up to this many images are looked at when a source is opened; beyond, when they are first read
SCAN_SIDE = 64
NAMES = ("bundled", "cifar10", "imagenet")

BUNDLED = {
    "skimage": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "rocket.jpg",
        "retina.jpg",
        "hubble_deep_field.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
_BUNDLED_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
BUNDLED_TRAINING_WIDTH = 0.7  # the left of each photograph is for training, the strip on its right is held out


class DataError(FlowkitError, ValueError):
    """Training data that cannot be had, or are too few; the message says what was asked for and what was found."""


@dataclass(frozen=True)
class NamedImage:
    """One image of a source: where it is, not its pixels. Names are unique within a source.

    `span` is (offset, bytes) within a tar shard; `region` is (left, top, right, bottom) in fractions of the photograph.
    """

    name: str
    path: Path
    span: tuple[int, int] | None = None
    region: tuple[float, float, float, float] | None = None

    def read(self, at_least: int | None = None) -> Photograph:
        """The photograph, or the region of it; reduced as in `read_photograph`.

        Raises:
            PhotographError: it cannot be read.
        """
        if self.span is not None:
            return read_photograph(io.BytesIO(self._bytes(*self.span)), name=self.name, at_least=at_least)
        if self.region is None:
            return read_photograph(self.path, name=self.name, at_least=at_least)
        # Cut before it is reduced: a pixel averaged over the border would carry the held-out side into training.
        whole = read_photograph(self.path, name=self.name)
        width, height = whole.image.size
        left, top, right, bottom = self.region
        image = whole.image.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        if at_least is not None and (factor := min(image.size) // at_least) > 1:
            image = image.reduce(factor)
        return Photograph(self.name, image, whole.full_size, whole.notes)

    def _bytes(self, offset: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as shard:
                shard.seek(offset)
                return shard.read(size)
        except OSError as error:
            raise PhotographError(f"the shard '{self.path}' cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class ArrayImage:
    """An image that is in memory already: uint8 `(H, W, 3)`."""

    name: str
    pixels: np.ndarray

    def read(self, at_least: int | None = None) -> Photograph:
        """The photograph; `at_least` is there for the sake of `NamedImage`, small images are not reduced."""
        image = Image.fromarray(self.pixels)
        return Photograph(self.name, image, image.size)


AnyImage = NamedImage | ArrayImage


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass
class SourceReport:
    """What a source holds. `skipped` grows while a source that is too large to be looked at beforehand is read.

    `used` is None for a stream, whose images nobody has counted.
    """

    data: str
    used: int | None = 0
    held_out: int = 0
    split: str = ""
    checked: bool = True
    skipped: list[Skipped] = field(default_factory=list)

    def summary(self, most_names: int = 5) -> str:
        """One or two sentences for the terminal and the report.

        >>> SourceReport("photos", 20, 2, "by name", skipped=[Skipped("a.png", "it has no colours")]).summary()
        "photos: 20 images for training, 2 held out (by name). Skipped 1: 'a.png' (it has no colours)."
        """
        training = "streamed for training" if self.used is None else f"{self.used} images for training"
        text = f"{self.data}: {training}, {self.held_out} held out ({self.split})."
        if not self.skipped:
            return text
        named = [f"'{skip.name}' ({skip.reason})" for skip in self.skipped[:most_names]]
        more = [f"and {len(self.skipped) - most_names} more"] if len(self.skipped) > most_names else []
        return f"{text} Skipped {len(self.skipped)}: {', '.join(named + more)}."


@dataclass(frozen=True)
class Source:
    """Named images for training and held-out ones, which training never sees; and the report on both.

    `shards` are the ones to be read front to back instead of `train`, which is empty then.
    """

    train: Sequence[AnyImage]
    held_out: Sequence[AnyImage]
    report: SourceReport
    shards: tuple[str, ...] = ()


def open_source(data: str | Path, *, root: str | Path = "data", download: bool = False) -> Source:
    """Find training photographs.

    Args:
        data: a folder (searched with its subfolders; subfolders `train` and `val` are taken as the split), a tar shard
            or a glob of them (beside `train-*.tar`, shards `val-*.tar` are the held-out ones), or a name: `bundled`
            (the photographs that scikit-image and scikit-learn ship; the right of each is held out), `cifar10`,
            `imagenet` (torchvision's data sets, with their own validation split). Without a split of its own, 5 % of
            the images are held out, chosen by a hash of their names.
        root: where torchvision's data sets lie.
        download: whether torchvision may download CIFAR-10.

    Raises:
        DataError: nothing matches, the data set is not there, or fewer than 4 images can be used.

    Example:
        >>> source = open_source("bundled")
        >>> len(source.train), len(source.held_out), source.train[0].name
        (9, 18, 'astronaut')
    """
    name = str(data)
    if name == "bundled":
        return _bundled()
    if name in ("cifar10", "imagenet"):
        from flowkit_cinn.translation import torchvision_sources

        make = torchvision_sources.cifar10 if name == "cifar10" else torchvision_sources.imagenet
        train, held_out = make(Path(root), download)
        return make_source(name, train, held_out, "torchvision's own validation split")
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    shards = [Path(shard) for shard in sorted(glob.glob(str(path)))]
    if not shards:
        raise DataError(
            f"--data '{name}' matches nothing: it must be a folder of images, tar shards, or one of {', '.join(NAMES)}"
        )
    return _shards(name, shards)


def images_in(folder: Path) -> list[NamedImage]:
    """The images in a folder and its subfolders, by their paths in it."""
    return [
        NamedImage(path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]


def _folder(name: str, folder: Path) -> Source:
    images = images_in(folder)
    if not images:
        raise DataError(f"the folder '{name}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    first = {image.name.split("/")[0] for image in images}
    if {"train", "val"} <= first:
        train = [image for image in images if image.name.startswith("train/")]
        held_out = [image for image in images if image.name.startswith("val/")]
        return make_source(name, train, held_out, "its subfolder 'val'")
    return make_source(name, images)


def _shards(name: str, shards: list[Path]) -> Source:
    official = sorted({p for s in shards if "train" in s.name for p in held_out_beside(s)} - set(shards))
    train = uniquely_named(image for shard in shards for image in index_shard(shard))
    if not official:
        return make_source(name, train)
    held_out = uniquely_named(image for shard in official for image in index_shard(shard))
    return make_source(name, train, held_out, f"the shards {official[0].name.split('-')[0]}-*.tar beside them")


def held_out_beside(shard: Path) -> list[Path]:
    """The shards `val*` beside a shard `train*`."""
    start = shard.name.split("train")[0]
    return sorted(shard.parent.glob(f"{glob.escape(start)}val*{shard.suffix}"))


def uniquely_named(images: Iterable[NamedImage]) -> list[NamedImage]:
    """Entries of two shards may have one name: then the shard's name tells them apart."""
    images = list(images)
    seen: dict[str, int] = {}
    for image in images:
        seen[image.name] = seen.get(image.name, 0) + 1
    return [
        image if seen[image.name] == 1 else NamedImage(f"{image.path.name}/{image.name}", image.path, image.span)
        for image in images
    ]


def index_shard(shard: Path) -> list[NamedImage]:
    """The images in an uncompressed tar, by offset: nothing is unpacked.

    Raises:
        DataError: not an uncompressed tar, cut short, or without images.
    """
    images, last = [], None
    try:
        length = shard.stat().st_size
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                last = member
                if member.offset_data + member.size > length:
                    raise DataError(f"the shard '{shard}' is cut short within '{member.name}'")
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    images.append(NamedImage(member.name, shard, span=(member.offset_data, member.size)))
            if last is not None:  # tarfile takes a tar that ends between two files, or is damaged there, for whole
                file.seek(-(-(last.offset_data + last.size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise DataError(f"the shard '{shard}' is damaged or cut short behind '{last.name}'")
    except tarfile.TarError as error:
        raise DataError(f"'{shard}' is not an uncompressed tar shard, or is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"the shard '{shard}' cannot be read: {error.strerror or error}") from error
    if not images:
        raise DataError(f"the shard '{shard}' holds no images")
    return images


def bundled_photographs() -> list[tuple[str, Path]]:
    """Name and file of the photographs that scikit-image and scikit-learn ship in their wheels.

    Raises:
        MissingDependencyError: one of the two is not installed.
        DataError: one of the files is not there.
    """
    found = []
    for module, files in BUNDLED.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                f"the bundled photographs need {_PACKAGES[module]}: python -m pip install {_PACKAGES[module]}"
            )
        folder = Path(spec.origin).parent / _BUNDLED_FOLDERS[module]
        for file in files:
            if not (folder / file).is_file():
                raise DataError(f"the installed {_PACKAGES[module]} does not ship {file}")
            found.append((Path(file).stem.removesuffix("_left").removesuffix("_deep_field"), folder / file))
    return found


def _bundled() -> Source:
    train, held_out = [], []
    left = BUNDLED_TRAINING_WIDTH
    for name, path in bundled_photographs():
        train.append(NamedImage(name, path, region=(0.0, 0.0, left, 1.0)))
        width, height = read_photograph(path).full_size
        tall = min(0.5, (1 - left) * width / height)  # squares as wide as the strip: one at its top, one at its bottom
        held_out.append(NamedImage(f"{name} (top right)", path, region=(left, 0.0, 1.0, tall)))
        held_out.append(NamedImage(f"{name} (bottom right)", path, region=(left, 1 - tall, 1.0, 1.0)))
    split = f"the right {1 - left:.0%} of each photograph, which no training crop touches"
    return Source(train, held_out, SourceReport("bundled", len(train), len(held_out), split))


def make_source(
    name: str, images: Sequence[AnyImage], held_out: Sequence[AnyImage] | None = None, split: str = ""
) -> Source:
    """A source of these images: unusable ones are left out and named, and some are held out where none are given.

    Args:
        name: what messages call it.
        images: for training, or, without `held_out`, for both.
        held_out: the held-out ones, when the data come with a split.
        split: what the report says on the split.

    Raises:
        DataError: fewer than 4 images can be used, or none can be held out.
    """
    report = SourceReport(name, split=split, checked=len(images) + len(held_out or ()) <= SCAN_LIMIT)
    keep: Callable[[Sequence[AnyImage]], list[AnyImage]] = list
    if report.checked:
        keep = lambda candidates: [image for image in candidates if noted_usable(image, report)]  # noqa: E731
    usable = keep(images)
    if held_out is None:
        usable, kept_out = split_by_name(usable)
        report.split = f"{HELD_OUT_SHARE:.0%} by a hash of the name"
    else:
        kept_out = keep(held_out)
    if len(usable) + len(kept_out) < LEAST_PHOTOGRAPHS or not kept_out or not usable:
        raise DataError(
            f"--data '{name}' has too few photographs: {len(usable) + len(kept_out)} can be used, at least "
            f"{LEAST_PHOTOGRAPHS} are needed, held-out ones among them{skipped_clause(report)}"
        )
    report.used, report.held_out = len(usable), len(kept_out)
    return Source(usable, kept_out, report)


def split_by_name(images: Sequence[AnyImage], share: float = HELD_OUT_SHARE) -> tuple[list[AnyImage], list[AnyImage]]:
    """Training and held-out images: the share (at least one) with the smallest hashes of their names is held out.

    >>> train, held_out = split_by_name([NamedImage(f"{i}.png", Path(f"{i}.png")) for i in range(40)])
    >>> len(train), len(held_out), {i.name for i in train} & {i.name for i in held_out}
    (38, 2, set())
    """
    count = max(1, round(share * len(images)))
    ranked = sorted(images, key=lambda image: hashlib.sha256(image.name.encode()).digest())
    chosen = {image.name for image in ranked[:count]}
    return [i for i in images if i.name not in chosen], [i for i in images if i.name in chosen]


def why_unusable(image: AnyImage, at_least: int | None = SCAN_SIDE) -> str | None:
    """Why an image cannot be trained on; None when it can."""
    try:
        picture = image.read(at_least).image
    except PhotographError as error:
        return str(error)
    return "it has no colours" if is_colourless(picture) else None


def noted_usable(image: AnyImage, report: SourceReport) -> bool:
    """Whether an image can be trained on; the report says why not."""
    reason = why_unusable(image)
    if reason is not None:
        report.skipped.append(Skipped(image.name, reason))
    return reason is None


def skipped_clause(report: SourceReport) -> str:
    """The end of a sentence: how many images were left out, and why the first."""
    if not report.skipped:
        return ""
    first = report.skipped[0]
    return f"; skipped {len(report.skipped)}, the first '{first.name}' ({first.reason})"
