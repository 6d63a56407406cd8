"""The pictures of a run: diverse nights beside the real one, and one code at several temperatures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from flowkit import Flow
from flowkit_cinn.translation.day_night import Pair, night_to_rgb
from flowkit_cinn.translation.pictures import grid

from .recipes import TEMPERATURES

ROWS_SHOWN = 9
CELL = 160


@torch.no_grad()
def nights(flow: Flow, day: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    """Samples of the night as RGB, `(n, B, 3, S, S)`, for days `(B, 3, S, S)`; determined by the seed.

    The codes do not depend on the temperature, so that one seed at several temperatures shows one code, scaled.
    """
    z = torch.randn(count, len(day), flow.dim, generator=torch.Generator().manual_seed(seed))
    night, _ = flow.inverse(temperature * z, given=day if flow.condition_shapes else None)
    assert isinstance(night, Tensor)  # a day-to-night flow has one input
    return night_to_rgb(night)


def samples_picture(
    flow: Flow, pairs: Pair, names: Sequence[str], samples: int, temperature: float, seed: int
) -> Image.Image:
    """A row for each of some pairs: day, real night, samples."""
    rows, titles = [], []
    for number in _shown(len(names)):
        day = pairs["day"][number]
        drawn = nights(flow, day[None], samples, temperature, seed)[:, 0]
        rows.append([day, night_to_rgb(pairs["night"][number]), *drawn])
        titles.append(names[number])
    heads = ["day", "a real night", *(f"sample {i + 1}" for i in range(samples))]
    return grid(rows, row_titles=titles, column_titles=heads, title="Places that training never saw", cell=CELL)


def temperatures_picture(flow: Flow, pairs: Pair, names: Sequence[str], seed: int) -> Image.Image:
    """A row for each of some pairs: one code, scaled by each temperature."""
    rows, titles = [], []
    for number in _shown(len(names))[::2]:
        day = pairs["day"][number]
        rows.append([day, *(nights(flow, day[None], 1, temperature, seed)[0, 0] for temperature in TEMPERATURES)])
        titles.append(names[number])
    heads = ["day", *(f"z × {temperature:g}" for temperature in TEMPERATURES)]
    return grid(
        rows, row_titles=titles, column_titles=heads, title="One latent code, scaled by a temperature", cell=CELL
    )


def _shown(count: int) -> list[int]:
    """Evenly spaced over all: not the best ones, and the same in every run."""
    return [i * count // ROWS_SHOWN for i in range(min(count, ROWS_SHOWN))]
