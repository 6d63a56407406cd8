"""How each preset is trained. Plain data: importing it costs nothing."""

from __future__ import annotations

from .._common.recipes import Recipe

DEFAULT_OUT = "runs/day2night"
PAIRS_PER_CAMERA = 8  # held out
TEMPERATURES = (0.0, 0.7, 0.9, 1.0, 1.25)  # the paper's

RECIPES = {
    # Two cores, a few minutes.
    "demo": Recipe(steps=600, batch_size=16, lr=3e-3, noise=0.05),
    # Section 4.1: the learning rate is fixed; the text leaves the noise open.
    "paper": Recipe(steps=175_000, batch_size=48, lr=1e-3, noise=0.05, schedule="constant"),
}
