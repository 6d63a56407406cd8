"""The pictures of a run: diverse samples beside the original, and one code at several temperatures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from flowkit import Flow
from flowkit_cinn.translation.crops import central_box, held_out_batch
from flowkit_cinn.translation.images import PhotographError
from flowkit_cinn.translation.pictures import grid
from flowkit_cinn.translation.sources import AnyImage
from flowkit_cinn.translation.upsample import recolor

from .recipes import TEMPERATURES
from .scoring import samples_of
from .training import sizes_of

SHOWN_IMAGES, TEMPERATURE_IMAGES = 9, 5
SHOWN_SIDE = 160  # pixels of a picture in the grid; the flow's ab is brought there as for a user's photograph


def shown(images: Sequence[AnyImage], count: int) -> list[AnyImage]:
    """Images evenly spaced over the whole list: not the best ones, and the same in every run."""
    return [images[i * len(images) // count] for i in range(min(count, len(images)))]


def colorizations(flow: Flow, held_out: Sequence[AnyImage], samples: int, temperature: float, seed: int) -> Image.Image:
    """A row for each image: grayscale, original, samples."""
    rows, names = [], []
    for image, photo, name in _examples(flow, shown(held_out, SHOWN_IMAGES)):
        ab = samples_of(flow, photo[None], samples, temperature, seed)[:, 0]
        rows.append([_gray(image), image, *(recolor(image, each) for each in ab)])
        names.append(name)
    heads = ["grayscale", "original", *(f"sample {i + 1}" for i in range(samples))]
    title = "Held-out regions, and what the flow makes of their grayscale"
    return grid(rows, row_titles=names, column_titles=heads, title=title, cell=SHOWN_SIDE)


def temperatures(flow: Flow, held_out: Sequence[AnyImage], seed: int) -> Image.Image:
    """A row for each image: one code, scaled by each temperature."""
    rows, names = [], []
    for image, photo, name in _examples(flow, shown(held_out, TEMPERATURE_IMAGES)):
        ab = [samples_of(flow, photo[None], 1, temperature, seed)[0, 0] for temperature in TEMPERATURES]
        rows.append([_gray(image), *(recolor(image, each) for each in ab), image])
        names.append(name)
    heads = ["grayscale", *(f"z × {temperature:g}" for temperature in TEMPERATURES), "original"]
    title = "One latent code, scaled by a temperature"
    return grid(rows, row_titles=names, column_titles=heads, title=title, cell=SHOWN_SIDE)


def _examples(flow: Flow, images: Sequence[AnyImage]) -> list[tuple[Image.Image, Tensor, str]]:
    """The region as it is shown, the L that the flow sees of it, and its name."""
    sizes, found = sizes_of(flow), []
    aspect = sizes.photo[1] / sizes.photo[0]
    for named in images:
        try:
            picture = named.read(SHOWN_SIDE).image
        except PhotographError:  # the source's report has named it
            continue
        picture = picture.crop(central_box(picture.size, aspect))
        scale = SHOWN_SIDE / max(picture.size)
        size = max(8, round(picture.width * scale)), max(8, round(picture.height * scale))
        crops, _ = held_out_batch([named], photo_size=sizes.photo, ab_size=sizes.ab)
        found.append((picture.resize(size, Image.Resampling.LANCZOS), crops["photo"][0], named.name))
    return found


def _gray(image: Image.Image) -> Image.Image:
    """The photograph's L without colours."""
    return recolor(image, torch.zeros(2, 1, 1))
