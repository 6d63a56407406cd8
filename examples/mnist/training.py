"""The training itself: maximum likelihood of a digit given its label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowkit import Flow
from flowkit.training import FitResult, FlowModule, Schedule, batches, fit

from .choices import Settings
from .digits import Digits
from .recipes import RECIPES


def train(
    flow: Flow,
    digits: Digits,
    settings: Settings,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Maximum likelihood of the digits, with noise on them; a flow without the condition `label` is blind to it."""
    recipe = RECIPES[settings.preset]
    module = FlowModule(
        flow,
        lr=settings.lr,
        weight_decay=recipe.weight_decay,
        schedule=Schedule(recipe.schedule, milestones=recipe.milestones),
        noise=settings.noise,
        clip=recipe.clip,
        seed=settings.seed,
        about={"preset": settings.preset},
    )
    loader = batches(digits.train, module, batch_size=settings.batch_size, steps=settings.steps, seed=settings.seed)
    return fit(
        module, loader, steps=settings.steps, checkpoint=checkpoint, resume=resume, device=device, callbacks=callbacks
    )
