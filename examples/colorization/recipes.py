"""How each preset is trained. Plain data: importing it costs nothing."""

from __future__ import annotations

from .._common.recipes import Recipe

DEFAULT_OUT = "runs/colorization"

PRETRAINING = "pretraining.ckpt"  # the conditioning net's own training

COMPARISON_OUT = "runs/colorization-comparison"

METRIC_SAMPLES = 8  # best of 8, as in the paper
COMPARED_IMAGES = 5000  # at most so many held-out photographs judge the systems of --compare, as in the paper
TEMPERATURES = (0.0, 0.7, 0.9, 1.0, 1.25)  # the paper's

# Adam 1e-3, divided by 10 at 100,000 and 200,000 of about 250,000 iterations, batch 48.
PAPER = Recipe(steps=250_000, batch_size=48, lr=1e-3, noise=0.05, schedule="milestones", milestones=(100_000, 200_000))

RECIPES = {
    # Two cores, about three minutes.
    "demo": Recipe(steps=450, batch_size=16, lr=3e-3, noise=0.05),
    # Half of demo's size, for comparisons: the averaged weights draw fewer outliers after a short training.
    "tiny": Recipe(steps=1200, batch_size=16, lr=2e-3, noise=0.05, ema=0.99),
    # The authors' minimal example.
    "small": Recipe(steps=60_000, batch_size=48, lr=1e-3, noise=0.005),
    "paper": PAPER,
    # The authors' code for the paper, trained as the paper says.
    "paper-code": PAPER,
    # Trained as "demo", to be compared with it.
    "no-conditioning-net": Recipe(steps=450, batch_size=16, lr=3e-3, noise=0.05),
}
