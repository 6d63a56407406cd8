"""Live progress: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from flowkit.training._lightning import pl

LINES = 10  # plain lines in a whole run, at least
LINE_SECONDS = 15.0  # and one after so many seconds without
SMOOTHING = 0.95  # of the figures shown
SPEED_STEPS = 50  # the speed is that of so many last steps


class _Figures(ProgressColumn):
    """Loss, bits per dimension, speed and time left."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("figures", ""))


class Progress(pl.Callback):
    """Shows loss, bits per dimension, steps a second and the time left while a `FlowModule` trains.

    Args:
        console: where; by default standard error.
        title: in front.
    """

    def __init__(self, console: Console | None = None, title: str = "training"):
        self.console, self.title = console or Console(stderr=True), title
        self._bar: Bar | None = None
        self._task: Any = None
        self._loss = math.nan
        self._times: deque[float] = deque(maxlen=SPEED_STEPS + 1)
        self._line_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the bar."""
        if not trainer.is_global_zero:
            return
        self._times.clear()
        self._times.append(time.monotonic())
        self._line_at = time.monotonic()
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                _Figures(),
                console=self.console,
                refresh_per_second=4,
            )
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._task = self._bar.add_task(self.title, total=total, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the step."""
        losses = getattr(pl_module, "losses", None)
        if not trainer.is_global_zero or not losses:
            return
        now, step = time.monotonic(), trainer.global_step
        self._times.append(now)
        self._loss = losses[-1] if math.isnan(self._loss) else SMOOTHING * self._loss + (1 - SMOOTHING) * losses[-1]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=self.figures(trainer))
        else:
            every = max(1, trainer.max_steps // LINES) if trainer.max_steps > 0 else 100
            if step % every == 0 or step == trainer.max_steps or now - self._line_at > LINE_SECONDS:
                self._line_at = now
                of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
                self.console.print(f"{self.title} {step}{of}: {self.figures(trainer)}", highlight=False, soft_wrap=True)

    def figures(self, trainer: pl.Trainer) -> str:
        """The figures of this moment as text."""
        span = self._times[-1] - self._times[0]
        speed = (len(self._times) - 1) / span if span > 0 else math.nan
        text = f"loss {self._loss:.3f}, {self._loss / math.log(2):.3f} bits/dim, {speed:.1f} steps/s"
        if trainer.max_steps > 0 and speed > 0:
            text += f", {duration((trainer.max_steps - trainer.global_step) / speed)} left"
        return text

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the bar away."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the bar away."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> duration(75), duration(3700), duration(4)
    ('1:15', '1:01:40', '0:04')
    """
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
