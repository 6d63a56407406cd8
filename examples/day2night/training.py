"""The training itself: pairs of one camera, maximum likelihood; and the figure that judges it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkit import Flow
from flowkit.errors import ConfigError
from flowkit.training import FitResult, FlowModule, Schedule, batches, fit, keyed_noise
from flowkit_cinn.translation.day_night import Cameras, DayNightPairs, Pair, held_out_pairs
from flowkit_cinn.translation.metrics import bits_per_dimension

from .recipes import PAIRS_PER_CAMERA, RECIPES
from .settings import Settings

ROWS = 16  # held-out pairs that are judged at a time
WARMUP = 20  # steps


def size_of(flow: Flow, name: str = "the flow") -> int:
    """Height and width of the nights and days that a flow works on.

    Raises:
        ConfigError: it is no day-to-night flow.
    """
    night, day = flow.input_shapes.get("night", ()), flow.condition_shapes.get("day", flow.input_shapes.get("night"))
    if len(night) != 3 or night[0] != 3 or night[1] != night[2] or night != day:
        raise ConfigError(
            f"{name} is no day-to-night flow: it needs the input 'night' and the condition 'day', both (3, S, S), and "
            f"has the inputs {dict(flow.input_shapes)} and the conditions {dict(flow.condition_shapes)}"
        )
    return night[1]


def train(
    flow: Flow,
    cameras: Cameras,
    settings: Settings,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Maximum likelihood of the night given the day, feature net included; without condition, of the night alone."""
    recipe = RECIPES[settings.preset]
    flow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = FlowModule(
        flow,
        lr=settings.lr,
        weight_decay=recipe.weight_decay,
        schedule=Schedule(recipe.schedule, warmup=WARMUP),
        noise=settings.noise,
        clip=recipe.clip,
        seed=settings.seed,
        layout=None if flow.condition_shapes else _night_alone,
        about={"preset": settings.preset},
    )
    length = settings.steps * settings.batch_size
    pairs = DayNightPairs(cameras.train, size=size_of(flow), seed=settings.seed, length=length)
    loader = batches(
        pairs,
        module,
        batch_size=settings.batch_size,
        steps=settings.steps,
        shuffle=False,  # the pairs' own order is random already
        seed=settings.seed,
    )
    return fit(
        module, loader, steps=settings.steps, checkpoint=checkpoint, resume=resume, device=device, callbacks=callbacks
    )


def _night_alone(batch: Pair) -> tuple[dict[str, Tensor], None]:
    return {"night": batch["night"]}, None


def held_out(flow: Flow, cameras: Cameras) -> tuple[Pair, list[str]]:
    """The pairs of unseen places that a flow is judged on, and their cameras' names."""
    return held_out_pairs(cameras.test, size=size_of(flow), per_camera=PAIRS_PER_CAMERA)


@torch.no_grad()
def bits_of_each(flow: Flow, pairs: Pair, noise: float, seed: int = 0) -> Tensor:
    """-log2 q(night | day) / D of every pair, `(B,)`: of the normalised night, with the noise of the training."""
    count = len(pairs["night"])
    night = pairs["night"] + noise * keyed_noise(pairs["night"], seed, "held out", range(count))
    log_prob = [
        flow.log_prob(
            night[first : first + ROWS], given=pairs["day"][first : first + ROWS] if flow.condition_shapes else None
        )
        for first in range(0, count, ROWS)
    ]
    return bits_per_dimension(torch.cat(log_prob), flow.dim)
