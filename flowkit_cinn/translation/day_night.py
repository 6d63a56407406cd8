"""Photographs of fixed cameras by day and by night, and pairs of them: the same view under the same crop."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from flowkit.errors import ConfigError
from flowkit.training import generator_for
from flowkit_cinn.translation.crops import central_box, random_box
from flowkit_cinn.translation.images import Photograph, PhotographError
from flowkit_cinn.translation.sources import DataError, NamedImage, index_shard

CAMERAS_FILE, COLUMNS = "cameras.csv", ("file", "camera", "period", "split")
PERIODS = ("day", "night")
ANNOTATIONS, ATTRIBUTES, IMAGES = "annotations/annotations.tsv", "annotations/attributes.txt", "imageAlignedLD"
CERTAIN = 0.8  # of transient attributes' "daylight" and "night", in 0..1
HELD_OUT_EVERY = 20  # without a split of its own, one camera in so many is held out: 5 of about 100, as in the paper
MIDDLE, SPREAD = 0.5, 0.25  # of RGB in 0..1, for the night that the flow models

Pair = dict[str, Tensor]


class Readable(Protocol):
    """A named photograph: `NamedImage` and `ArrayImage` are."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self, at_least: int | None = None) -> Photograph:
        """The photograph."""


@dataclass
class Camera:
    """A fixed camera, and what it saw."""

    name: str
    day: list[Readable] = field(default_factory=list)
    night: list[Readable] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """How many pairs of a day and a night there are."""
        return len(self.day) * len(self.night)


@dataclass(frozen=True)
class Cameras:
    """Cameras for training, and cameras of places that training never sees; `left_out` have no day or no night."""

    name: str
    train: tuple[Camera, ...]
    test: tuple[Camera, ...]
    left_out: tuple[str, ...] = ()

    def summary(self) -> str:
        """A sentence or two for the terminal and the report."""
        parts = [
            f"{len(cameras)} cameras {what} ({sum(len(c.day) + len(c.night) for c in cameras)} photographs, "
            f"{sum(c.pairs for c in cameras):,} pairs)"
            for what, cameras in (("for training", self.train), ("held out", self.test))
        ]
        left = f" Left out, for want of a day or a night: {', '.join(self.left_out)}." if self.left_out else ""
        return f"{self.name}: {' and '.join(parts)}.{left}"


def open_cameras(data: str | Path) -> Cameras:
    """Find photographs by day and by night.

    Args:
        data: a folder with `cameras.csv` (columns file, camera, period, split; period is day or night, split train or
            test) and the files that it names, beside it or in tar shards beside it; or the folder of the transient
            attributes database (`imageAlignedLD/` and `annotations/`), where a photograph is a day if its `daylight`
            is at least 0.8 and a night if its `night` is, and every twentieth camera is held out.

    Raises:
        DataError: neither is there, a column or a file is missing, a period or a split is unknown, a camera is both for
            training and held out, or no camera with a day and a night is left for training or for the test.
    """
    folder = Path(data).expanduser()
    if (folder / CAMERAS_FILE).is_file():
        return _sorted_out(str(data), _listed(folder))
    if (folder / ANNOTATIONS).is_file():
        return _sorted_out(str(data), _annotated(folder))
    raise DataError(
        f"--data '{data}' is no folder of cameras: neither {CAMERAS_FILE} nor {ANNOTATIONS} (the layout of the "
        "transient attributes database) is there"
    )


Row = tuple[str, str, str, Readable]  # camera, period, split, photograph


def _listed(folder: Path) -> list[Row]:
    table = folder / CAMERAS_FILE
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"'{table}' needs the columns {', '.join(COLUMNS)}, and lacks {', '.join(missing)}")
        lines = list(reader)
    in_shards = {image.name: image for shard in sorted(folder.glob("*.tar")) for image in index_shard(shard)}
    rows: list[Row] = []
    for number, line in enumerate(lines, start=2):
        name, period, split = line["file"], line["period"], line["split"]
        if period not in PERIODS or split not in ("train", "test"):
            raise DataError(
                f"line {number} of '{table}' has the period '{period}' and the split '{split}': day or night, and "
                "train or test are known"
            )
        path = folder / name
        if name not in in_shards and not path.is_file():
            raise DataError(f"line {number} of '{table}' names '{name}', which is neither beside it nor in a tar there")
        rows.append((line["camera"], period, split, in_shards.get(name) or NamedImage(name, path)))
    return rows


def _annotated(folder: Path) -> list[Row]:
    attributes = (folder / ATTRIBUTES).read_text(encoding="utf-8").split()
    try:
        daylight, night = attributes.index("daylight"), attributes.index("night")
    except ValueError as error:
        raise DataError(f"'{folder / ATTRIBUTES}' lists no 'daylight' or no 'night'") from error
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    found: list[tuple[str, str, Readable]] = []
    for number, line in enumerate(lines, start=1):
        name, *values = line.split("\t")
        try:
            level = {"day": float(values[daylight].split(",")[0]), "night": float(values[night].split(",")[0])}
        except (IndexError, ValueError) as error:
            raise DataError(f"line {number} of '{folder / ANNOTATIONS}' is cut short, or holds no numbers") from error
        image = NamedImage(name, folder / IMAGES / name)
        found += [(Path(name).parts[0], period, image) for period in PERIODS if level[period] >= CERTAIN]
    held_out = set(sorted({camera for camera, _, _ in found})[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
    return [(camera, period, "test" if camera in held_out else "train", image) for camera, period, image in found]


def _sorted_out(name: str, rows: Iterable[Row]) -> Cameras:
    cameras: dict[str, Camera] = {}
    splits: dict[str, str] = {}
    for camera, period, split, image in rows:
        if splits.setdefault(camera, split) != split:
            raise DataError(f"the camera '{camera}' of '{name}' is both for training and for the test")
        getattr(cameras.setdefault(camera, Camera(camera)), period).append(image)
    whole = [c for c in cameras.values() if c.pairs]
    parts = {split: tuple(c for c in whole if splits[c.name] == split) for split in ("train", "test")}
    left_out = tuple(c.name for c in cameras.values() if not c.pairs)
    for split, chosen in parts.items():
        if not chosen:
            without = f"; without a day or a night are {', '.join(left_out)}" if left_out else ""
            raise DataError(f"'{name}' has no camera with a day and a night for the split '{split}'{without}")
    return Cameras(name, parts["train"], parts["test"], left_out)


class DayNightPairs(Dataset[Pair]):
    """Random pairs for training, drawn evenly over cameras, with one crop for both.

    Item i is determined by (seed, i) and the photographs alone. In every `len(cameras)` items each camera comes once;
    its day, its night and the crop are drawn independently. A crop covers 0.2 to 1 of the area, and is not mirrored.

    Args:
        cameras: `Cameras.train`.
        size: height and width of both images.
        seed: of all randomness.
        length: how many pairs there are.

    Items: `{"night": (3, size, size), "day": (3, size, size)}`, float32: the day as RGB in 0..1, the night as
    (RGB - 0.5) / 0.25.

    Raises:
        ConfigError: no cameras, or a size or a length below 1.
        DataError: on reading, a day and a night of one camera that differ in size.
        PhotographError: on reading, a photograph that cannot be read.
    """

    def __init__(self, cameras: Sequence[Camera], *, size: int, seed: int = 0, length: int):
        if not cameras or size < 1 or length < 1:
            raise ConfigError(
                f"cameras, a size and a length are needed, got {len(cameras)} cameras, size {size} and length {length}"
            )
        self.cameras, self.size, self.seed, self.length = cameras, size, seed, length
        self._cache: dict[str, Image.Image] = {}
        self._least = math.ceil(size / math.sqrt(0.2 * 0.75))  # of the shorter side: no crop needs to be enlarged

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.length:
            raise IndexError(f"pair {index} of {self.length}")
        passes, place = divmod(index, len(self.cameras))
        order = torch.randperm(len(self.cameras), generator=generator_for(self.seed, "cameras", passes))
        camera = self.cameras[int(order[place])]
        draw = torch.rand(6, generator=generator_for(self.seed, "pair", index), dtype=torch.float64).tolist()
        day, night = _pair(
            self._image(camera.day[int(draw[0] * len(camera.day))]),
            self._image(camera.night[int(draw[1] * len(camera.night))]),
            camera,
        )
        box = random_box(day.size, 1.0, draw[2:])
        return to_pair(day.crop(box), night.crop(box), self.size)

    def _image(self, named: Readable) -> Image.Image:
        if named.name not in self._cache:
            self._cache[named.name] = named.read(self._least).image
        return self._cache[named.name]


def held_out_pairs(cameras: Sequence[Camera], *, size: int, per_camera: int = 8) -> tuple[Pair, list[str]]:
    """The central squares of `per_camera` pairs of every camera, its days and nights used evenly: always the same.

    Returns:
        `({"night": (B, 3, size, size), "day": (B, 3, size, size)}, names)`.

    Raises:
        DataError: none can be read, or a day and a night of one camera differ in size.
    """
    pairs: list[Pair] = []
    names: list[str] = []
    for camera in cameras:
        for number in range(min(per_camera, camera.pairs)):
            first, second = (kind[number * len(kind) // per_camera % len(kind)] for kind in (camera.day, camera.night))
            try:
                day, night = _pair(first.read(size).image, second.read(size).image, camera)
            except PhotographError:  # a held-out set goes on without it
                continue
            box = central_box(day.size, 1.0)
            pairs.append(to_pair(day.crop(box), night.crop(box), size))
            names.append(camera.name)
    if not pairs:
        raise DataError("none of the held-out photographs can be read")
    return {name: torch.stack([pair[name] for pair in pairs]) for name in ("night", "day")}, names


def to_pair(day: Image.Image, night: Image.Image, size: int) -> Pair:
    """Two images of the same crop as the flow sees them; see `DayNightPairs`."""
    return {"night": (_rgb(night, size) - MIDDLE) / SPREAD, "day": _rgb(day, size)}


def night_to_rgb(night: Tensor) -> Tensor:
    """What the flow models, back to RGB in 0..1, clipped.

    >>> night_to_rgb(torch.tensor([-2.0, 0.0, 5.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (night * SPREAD + MIDDLE).clamp(0, 1)


def _rgb(image: Image.Image, size: int) -> Tensor:
    pixels = np.array(image.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def _pair(day: Image.Image, night: Image.Image, camera: Camera) -> tuple[Image.Image, Image.Image]:
    if day.size != night.size:
        raise DataError(
            f"the camera '{camera.name}' has a day of {day.size[0]} x {day.size[1]} pixels and a night of "
            f"{night.size[0]} x {night.size[1]}: a pair needs one size"
        )
    return day, night
