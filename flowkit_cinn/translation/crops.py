"""Training crops, random but determined by their number; and fixed crops of held-out images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from flowkit.errors import ConfigError
from flowkit.training import generator_for
from flowkit_cinn.translation.color import split_rgb
from flowkit_cinn.translation.images import IMAGE_SUFFIXES, PhotographError, is_colourless, read_photograph
from flowkit_cinn.translation.sources import AnyImage, DataError, Skipped, SourceReport

SCALE = (0.2, 1.0)  # of the image's area, as in the paper
ASPECT = (3 / 4, 4 / 3)
CACHE_BYTES = 512 * 2**20
MOST_FAILURES = 100  # unusable images in a row, before a source is given up
_BYTES_PER_PIXEL = 4  # PIL's, for RGB

Size = tuple[int, int]
Crop = dict[str, Tensor]


class ColorCrops(Dataset[Crop]):
    """Random resized crops as pairs for training: normalised L and normalised ab.

    Item i is determined by (seed, i) and the images alone: not by the number of workers, nor by what was read before.
    So crops in the order 0, 1, 2, ... are a shuffled training set, each image once in every `len(images)` items, and a
    run is resumed by going on at its next item. A crop covers 0.2 to 1 of the image's area, with an aspect of 3/4 to
    4/3 of the target's, and is flipped half of the time. Images are held decoded, at the size that the smallest crop
    needs, until `cache_bytes` are full; the rest is read when needed.

    Args:
        images: `source.train`.
        photo_size: (H, W) of L.
        ab_size: (h, w) of ab; of the same aspect.
        seed: of all randomness.
        length: how many crops there are; by default as many as images.
        report: `source.report`; images found unusable while reading are added to it, in this process.
        cache_bytes: of decoded images, in each worker.

    Items: `{"ab": (2, h, w), "photo": (1, H, W)}`, float32. `__getitems__` makes a batch at once, which
    `torch.utils.data.DataLoader` uses by itself.

    Raises:
        ConfigError: sizes of different aspect, or not positive; no images.
        DataError: 100 images in a row cannot be used.

    Example:
        >>> from flowkit_cinn.translation.sources import open_source
        >>> crops = ColorCrops(open_source("bundled").train, photo_size=(64, 64), ab_size=(16, 16), seed=0, length=1000)
        >>> {name: tuple(value.shape) for name, value in crops[7].items()}
        {'ab': (2, 16, 16), 'photo': (1, 64, 64)}
    """

    def __init__(
        self,
        images: Sequence[AnyImage],
        *,
        photo_size: Size = (64, 64),
        ab_size: Size = (64, 64),
        seed: int = 0,
        length: int | None = None,
        report: SourceReport | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        _check_sizes(photo_size, ab_size)
        if not images:
            raise ConfigError("at least one image is needed to take crops from")
        self.images, self.photo_size, self.ab_size, self.seed = images, photo_size, ab_size, seed
        self.length = len(images) if length is None else length
        self.report = report
        self._free_bytes = cache_bytes
        self._cache: dict[int, Image.Image] = {}
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._shorter_side = _shorter_side(photo_size, ab_size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Crop:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Crop]:
        for index in indices:
            if not 0 <= index < self.length:
                raise IndexError(f"crop {index} of {self.length}")
        crops = [self._crop(index) for index in indices]
        batch = _pairs(crops, self.photo_size, self.ab_size)
        return [{name: value[row] for name, value in batch.items()} for row in range(len(crops))]

    def _crop(self, index: int) -> Image.Image:
        return _random_crop(self._image(index), self.photo_size, self.seed, index)

    def _image(self, index: int) -> Image.Image:
        epoch, place = divmod(index, len(self.images))
        if self._order[0] != epoch:
            self._order = epoch, torch.randperm(len(self.images), generator=generator_for(self.seed, "order", epoch))
        first = int(self._order[1][place])
        for step in range(min(MOST_FAILURES, len(self.images))):
            number = (first + step) % len(self.images)
            if number in self._cache:
                return self._cache[number]
            image = self._read(self.images[number])
            if image is not None:
                return self._remember(number, image)
        raise DataError(f"{MOST_FAILURES} images in a row cannot be used, from '{self.images[first].name}' on")

    def _read(self, named: AnyImage) -> Image.Image | None:
        try:
            image = named.read(self._shorter_side).image
        except PhotographError as error:
            self._note_skipped(named.name, str(error))
            return None
        if self.report is not None and not self.report.checked and is_colourless(image):
            self._note_skipped(named.name, "it has no colours")
            return None
        return image

    def _note_skipped(self, name: str, reason: str) -> None:
        if self.report is not None and all(skip.name != name for skip in self.report.skipped):
            self.report.skipped.append(Skipped(name, reason))

    def _remember(self, number: int, image: Image.Image) -> Image.Image:
        size = image.width * image.height * _BYTES_PER_PIXEL
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cache[number] = image
        return image


class StreamedCrops:
    """The same crops from what a tar shard holds: `decode`, and `collate`, of `flowkit.training.streamed_batches`.

    Item i is cut, and flipped, by (seed, i). What is no photograph, cannot be read, or has no colours is left out.

    Args:
        photo_size: (H, W) of L.
        ab_size: (h, w) of ab; of the same aspect.
        seed: of all randomness.

    Raises:
        ConfigError: sizes of different aspect, or not positive.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 30), (200, 90, 20)).save(file, "PNG")
        >>> crops = StreamedCrops(photo_size=(16, 16), ab_size=(8, 8))
        >>> item = crops({"__key__": "a", "__url__": "photos.tar", "png": file.getvalue()}, 7)
        >>> crops.collate([item])["ab"].shape, crops({"__key__": "b", "__url__": "photos.tar", "txt": b"text"}, 7)
        (torch.Size([1, 2, 8, 8]), None)
    """

    def __init__(self, *, photo_size: Size = (64, 64), ab_size: Size = (64, 64), seed: int = 0):
        _check_sizes(photo_size, ab_size)
        self.photo_size, self.ab_size, self.seed = photo_size, ab_size, seed

    def __call__(self, entries: Mapping[str, Any], number: int) -> Image.Image | None:
        """The crop of a sample, as item `number` of the run; None where there is none."""
        kind = next((key for key in entries if f".{key.rpartition('.')[2]}" in IMAGE_SUFFIXES), None)
        if kind is None:
            return None
        name = f"{entries['__url__']}/{entries['__key__']}.{kind}"
        try:
            found = read_photograph(
                io.BytesIO(entries[kind]), name=name, at_least=_shorter_side(self.photo_size, self.ab_size)
            )
        except PhotographError:
            return None
        if is_colourless(found.image):
            return None
        return _random_crop(found.image, self.photo_size, self.seed, number)

    def collate(self, crops: Sequence[Image.Image]) -> Crop:
        """The batch of crops: `{"ab": (B, 2, h, w), "photo": (B, 1, H, W)}`, float32."""
        return _pairs(crops, self.photo_size, self.ab_size)


def held_out_batch(
    images: Sequence[AnyImage], *, photo_size: Size = (64, 64), ab_size: Size = (64, 64), count: int | None = None
) -> tuple[Crop, list[str]]:
    """The central crops, as large as they can be, of the first `count` usable images: the same whenever it is called.

    Returns:
        `({"ab": (B, 2, h, w), "photo": (B, 1, H, W)}, names)`.

    Raises:
        ConfigError: sizes of different aspect.
        DataError: none of the images can be used.

    Example:
        >>> from flowkit_cinn.translation.sources import open_source
        >>> batch, names = held_out_batch(open_source("bundled").held_out, count=2)
        >>> batch["ab"].shape, names
        (torch.Size([2, 2, 64, 64]), ['astronaut (top right)', 'astronaut (bottom right)'])
    """
    _check_sizes(photo_size, ab_size)
    crops: list[Image.Image] = []
    names: list[str] = []
    for named in images:
        if count is not None and len(crops) == count:
            break
        try:
            image = named.read(max(*photo_size, *ab_size)).image
        except PhotographError:  # counted and named by the source's report; a held-out set goes on without it
            continue
        crops.append(image.crop(central_box(image.size, photo_size[1] / photo_size[0])))
        names.append(named.name)
    if not crops:
        raise DataError("none of the held-out images can be read")
    return _pairs(crops, photo_size, ab_size), names


def central_box(size: tuple[int, int], aspect: float) -> tuple[int, int, int, int]:
    """The largest central (left, top, right, bottom) with this width / height, in an image of (width, height).

    >>> central_box((100, 60), 1.0)
    (20, 0, 80, 60)
    """
    width, height = min(size[0], size[1] * aspect), min(size[1], size[0] / aspect)
    columns, rows = max(1, round(width)), max(1, round(height))
    left, top = (size[0] - columns) // 2, (size[1] - rows) // 2
    return left, top, left + columns, top + rows


def random_box(size: tuple[int, int], aspect: float, draw: Sequence[float]) -> tuple[int, int, int, int]:
    """A crop (left, top, right, bottom) of an image of (width, height), from four numbers uniform in 0..1.

    The numbers choose its area (0.2 to 1 of the image's), its aspect (3/4 to 4/3 of `aspect`, on a logarithmic scale),
    and where it lies. A crop that would not fit is shortened to what does.

    >>> random_box((100, 100), 1.0, (1.0, 0.5, 0.3, 0.3)), random_box((100, 100), 1.0, (0.0, 0.5, 0.0, 1.0))
    ((0, 0, 100, 100), (0, 55, 45, 100))
    """
    area = (SCALE[0] + draw[0] * (SCALE[1] - SCALE[0])) * size[0] * size[1]
    wanted = aspect * math.exp(math.log(ASPECT[0]) + draw[1] * (math.log(ASPECT[1]) - math.log(ASPECT[0])))
    width = min(math.sqrt(area * wanted), size[0], size[1] * wanted)
    columns = min(size[0], max(1, round(width)))
    rows = min(size[1], max(1, round(width / wanted)))
    left, top = int(draw[2] * (size[0] - columns + 1)), int(draw[3] * (size[1] - rows + 1))
    left, top = min(left, size[0] - columns), min(top, size[1] - rows)
    return left, top, left + columns, top + rows


def _random_crop(image: Image.Image, photo_size: Size, seed: int, number: int) -> Image.Image:
    draw = torch.rand(5, generator=generator_for(seed, "crop", number), dtype=torch.float64).tolist()
    crop = image.crop(random_box(image.size, photo_size[1] / photo_size[0], draw[:4]))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw[4] < 0.5 else crop


def _shorter_side(photo_size: Size, ab_size: Size) -> int:
    """The shorter side below which the smallest crop would have to be enlarged."""
    return math.ceil(max(*photo_size, *ab_size) / math.sqrt(SCALE[0] * ASPECT[0]))


def _pairs(crops: Sequence[Image.Image], photo_size: Size, ab_size: Size) -> Crop:
    """Resized first, converted to Lab after: the network sees at inference what it sees here."""
    photo, ab = split_rgb(_stack(crops, photo_size))
    if ab_size != photo_size:
        ab = split_rgb(_stack(crops, ab_size))[1]
    return {"ab": ab, "photo": photo}


def _stack(crops: Sequence[Image.Image], size: Size) -> Tensor:
    resized = [np.asarray(crop.resize((size[1], size[0]), Image.Resampling.BILINEAR)) for crop in crops]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().float() / 255


def _check_sizes(photo_size: Size, ab_size: Size) -> None:
    sizes = (*photo_size, *ab_size)
    if min(sizes) < 1 or abs(photo_size[0] * ab_size[1] - photo_size[1] * ab_size[0]) > max(sizes):
        raise ConfigError(
            f"photo_size and ab_size must be positive and of one aspect, got {tuple(photo_size)} and {tuple(ab_size)}"
        )
