"""A plain loop that trains a model of colours which is no flow: resumable, and ended cleanly by Ctrl-C."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flowkit.cli.output import write_file
from flowkit.errors import NonFiniteError, StorageError
from flowkit.training import FitResult, Schedule
from flowkit.training.checkpoint import SAVE_EVERY_SECONDS, random_state, set_random_state
from flowkit.training.progress import duration
from flowkit_cinn.translation.baselines import Colorizer
from flowkit_cinn.translation.sources import Source

from .._common.interrupt import Interrupts
from .choices import Settings
from .recipes import RECIPES
from .training import Sizes, crop_batches

LINES = 10  # of progress, in a whole run


class _Run:
    """A model's state beside its weights; the batches read `items_seen` and, of a stream, its place in the shards."""

    def __init__(self, model: Colorizer, settings: Settings):
        self.model, self.items_seen = model, 0
        self.position: Callable[[int], Any] | None = None
        self.positions: list[Any] | None = None
        self.losses: list[float] = []
        self.optimizers = model.optimizers()
        recipe = RECIPES[settings.preset]
        schedule, steps = Schedule(recipe.schedule, warmup=20, milestones=recipe.milestones), settings.steps
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
            for optimizer in self.optimizers
        ]

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        content = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "items_seen": self.items_seen,
            "positions": None if self.position is None else [self.position(self.items_seen)],
            "random_state": random_state(),
        }
        torch.save(state, content)
        write_file(path, content.getvalue())

    def load(self, path: Path) -> None:
        """Take it back."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            for kind in ("optimizers", "schedules"):
                for part, kept in zip(getattr(self, kind), state[kind], strict=True):
                    part.load_state_dict(kept)
            self.losses, self.items_seen = state["losses"].tolist(), state["items_seen"]
            self.positions = state.get("positions")
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise StorageError(f"the checkpoint '{path}' is damaged, or is another system's") from error
        set_random_state(state["random_state"])


def train_plainly(
    model: Colorizer, name: str, source: Source, settings: Settings, checkpoint: Path, show: Console
) -> FitResult:
    """Train for `settings.steps`, from the checkpoint if there is one; the model ends in eval mode on the CPU.

    Raises:
        NonFiniteError: a loss is not finite.
        StorageError: the checkpoint cannot be read or written.
    """
    run, started = _Run(model, settings), time.monotonic()
    if checkpoint.is_file():
        run.load(checkpoint)
    device = next(model.parameters()).device
    sizes = Sizes((model.photo_size,) * 2, (model.size,) * 2)
    loader = crop_batches(source, sizes, run, settings, on_gpu=device.type == "cuda")
    model.train()
    saved_at = time.monotonic()
    with Interrupts() as interrupts:
        for batch in loader:
            if len(run.losses) == settings.steps or interrupts.came:
                break
            ab, photo = batch["ab"].to(device), batch["photo"].to(device)
            loss = model.update(ab, photo, run.optimizers)
            if not math.isfinite(loss):
                raise NonFiniteError(f"step {len(run.losses) + 1} of {name} has the loss {loss}")
            for schedule in run.schedules:
                schedule.step()
            run.losses.append(loss)
            run.items_seen += settings.batch_size
            done = len(run.losses)
            if done % max(1, settings.steps // LINES) == 0:
                show.print(f"{name} {done}/{settings.steps}: {_figures(run.losses, started, settings.steps)}")
            if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                run.save(checkpoint)
                saved_at = time.monotonic()
        run.save(checkpoint)
    model.eval().to("cpu")
    stopped = len(run.losses) < settings.steps
    return FitResult(tuple(run.losses), len(run.losses), time.monotonic() - started, stopped)


def _figures(losses: Sequence[float], started: float, steps: int) -> str:
    recent = losses[-50:]
    left = (time.monotonic() - started) / len(losses) * (steps - len(losses))
    return f"loss {sum(recent) / len(recent):.3f}, about {duration(left)} left"
