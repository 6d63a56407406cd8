"""How each preset is trained. Plain data: importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_OUT = "runs/colorization"
MODEL, CHECKPOINT, SETTINGS = "model.safetensors", "checkpoint.ckpt", "run.json"

METRIC_SAMPLES = 8  # best of 8, as in the paper
TEMPERATURES = (0.0, 0.7, 0.9, 1.0, 1.25)  # the paper's


@dataclass(frozen=True)
class Recipe:
    """A preset's training.

    Attributes:
        steps: in all; fixed, so that the same seed gives the same numbers on any machine.
        batch_size: crops a step.
        lr: Adam's.
        noise: standard deviation of the noise on normalised ab.
        schedule: "cosine", or "milestones" where the learning rate is divided by 10.
        milestones: in steps.
        clip: the gradient's largest norm.
        weight_decay: Adam's.
    """

    steps: int
    batch_size: int
    lr: float
    noise: float
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    clip: float = 10.0
    weight_decay: float = 0.0


RECIPES = {
    # Two cores, about three minutes.
    "demo": Recipe(steps=450, batch_size=16, lr=3e-3, noise=0.05),
    # The authors' minimal example.
    "small": Recipe(steps=60_000, batch_size=48, lr=1e-3, noise=0.005),
    # Adam 1e-3, divided by 10 at 100,000 and 200,000 of about 250,000 iterations, batch 48.
    "paper": Recipe(
        steps=250_000, batch_size=48, lr=1e-3, noise=0.05, schedule="milestones", milestones=(100_000, 200_000)
    ),
}
