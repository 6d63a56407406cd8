"""How a preset is trained, and what a run's files are called. Plain data: importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

MODEL, CHECKPOINT, SETTINGS = "model.safetensors", "checkpoint.ckpt", "run.json"


@dataclass(frozen=True)
class Recipe:
    """A preset's training.

    Attributes:
        steps: in all; fixed, so that the same seed gives the same numbers on any machine.
        batch_size: items a step.
        lr: Adam's.
        noise: standard deviation of the noise on the normalised data.
        schedule: "constant", "cosine", or "milestones" where the learning rate is divided by 10.
        milestones: in steps.
        clip: the gradient's largest norm.
        weight_decay: Adam's.
        ema: the decay of the moving average of the weights that the run ends with; None for the last weights.
    """

    steps: int
    batch_size: int
    lr: float
    noise: float
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    clip: float = 10.0
    weight_decay: float = 0.0
    ema: float | None = None
