"""How each preset is trained. Plain data: importing it costs nothing."""

from __future__ import annotations

from .._common.recipes import Recipe

DEFAULT_OUT = "runs/mnist"
BLIND_CHECKPOINT = "checkpoint-without-label.ckpt"

EPOCH = 60_000 // 256  # the authors leave an incomplete last batch out
RECIPES = {
    # Two cores, about half a minute for each of the two flows. The noise is as wide as one of the 17 greys: with less,
    # or after more steps, 1,438 digits are learned by heart, and with labels sooner than without.
    "digits": Recipe(steps=500, batch_size=128, lr=2e-3, noise=0.2, weight_decay=1e-4),
    # MNIST on two cores, a few minutes for each.
    "small": Recipe(steps=600, batch_size=256, lr=1e-3, noise=0.08, weight_decay=1e-5),
    # Adam 5e-4, divided by 10 at 20 and 40 of 60 epochs, batch 256.
    "paper": Recipe(
        steps=60 * EPOCH,
        batch_size=256,
        lr=5e-4,
        noise=0.08,
        schedule="milestones",
        milestones=(20 * EPOCH, 40 * EPOCH),
        weight_decay=1e-5,
    ),
}
