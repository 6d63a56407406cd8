"""The paper's small colorization network, where the plugin and its photographs are there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch

import flowkit as fk

from .chains import redraw
from .networks import Batch, Network, train

BATCH = 8
PHOTOGRAPHS_SEED = 2**20  # of the conditions that are measured with; training takes the run's own


def small_colorization(steps: int, quick: bool = False, size: int = 64) -> Iterator[Network]:
    """`colorization_cinn("small")` (`"demo"` when quick) at the start, with all weights redrawn, and trained.

    The photographs, for conditions and training, are scikit-image's and scikit-learn's.
    """
    from flowkit_cinn.models import colorization_cinn

    preset, size = ("demo", min(size, 16)) if quick else ("small", size)
    name = f"{preset} colorization, {size} x {size}"
    flow = colorization_cinn(preset, size=size, photo_size=size).float()
    conditions = _photographs(size, PHOTOGRAPHS_SEED)

    def batch(rows: int) -> Batch:
        return torch.randn(rows, 2, size, size, dtype=torch.float32), conditions(rows)[1]

    ab, photo = conditions(BATCH)
    flow.initialize(ab, given=photo)
    yield Network(name, "at start", copy.deepcopy(flow).eval(), batch)
    yield Network(name, "redrawn", redraw(copy.deepcopy(flow).eval(), torch.randn_like(ab), photo), batch)
    crops = _photographs(size, 0)
    yield Network(name, f"trained, {steps} steps", train(flow, lambda: crops(BATCH), steps), conditions)


def _photographs(size: int, seed: int) -> Callable[[int], Batch]:
    """Draws crops in turn: noisy ab as it is trained on, and L."""
    from flowkit_cinn.translation.crops import ColorCrops
    from flowkit_cinn.translation.sources import open_source

    crops = ColorCrops(
        open_source("bundled").train, photo_size=(size, size), ab_size=(size, size), seed=seed, length=2**20
    )
    place = 0

    def draw(rows: int) -> Batch:
        nonlocal place
        taken = [crops[place + i] for i in range(rows)]
        place += rows
        ab, photo = (torch.stack([crop[key] for crop in taken]).float() for key in ("ab", "photo"))
        return ab + 0.05 * torch.randn(ab.shape, dtype=torch.float32), photo

    return draw


def is_available() -> bool:
    """Whether the plugin is installed with what its photographs need."""
    try:
        import skimage
        import sklearn

        fk.lookup("cinn.haar_downsample")
    except (ImportError, fk.RegistryError):
        return False
    return bool(skimage and sklearn)
