"""Looking at a flow while it is trained, without changing what training does."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from flowkit.errors import ConfigError
from flowkit.flow import Flow
from flowkit.training._lightning import pl
from flowkit.training.checkpoint import random_state, set_random_state
from flowkit.training.module import FlowModule


class Pictures(pl.Callback):
    """Calls a function with the flow now and then, for samples during training.

    The flow is in eval mode, with the averaged weights where the `FlowModule` has an average, and without gradients.
    Afterwards modes, weights and every random generator are as they were: a run with pictures gives the bits of one
    without. Of several processes the first alone draws.

    Args:
        draw: `(flow, step) -> anything`; what it does with its pictures is its own affair.
        every: steps between two calls; None for none but `at`.
        at: steps after which it is called besides.

    Raises:
        ConfigError: neither `every` nor `at`, or a number below 1.

    Example:
        >>> Pictures(lambda flow, step: print(step, flow.sample((2,)).shape), every=500, at=(1, 50)).due(50)
        True
    """

    def __init__(self, draw: Callable[[Flow, int], Any], *, every: int | None = None, at: Collection[int] = ()):
        if (every is None and not at) or (every is not None and every < 1) or any(step < 1 for step in at):
            raise ConfigError(f"every, or the steps at which to draw, must be 1 or more, got {every} and {tuple(at)}")
        self.draw, self.every, self.at = draw, every, frozenset(at)

    def due(self, step: int) -> bool:
        """Whether it draws after this step."""
        return step in self.at or (self.every is not None and step % self.every == 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws, where it is time to."""
        step = trainer.global_step
        if not trainer.is_global_zero or not self.due(step) or not isinstance(pl_module, FlowModule):
            return
        state = random_state()
        training = {module: module.training for module in pl_module.flow.modules()}
        try:
            with torch.no_grad(), pl_module.averaged() as flow:
                self.draw(flow.eval(), step)
        finally:
            for module, mode in training.items():
                module.training = mode
            set_random_state(state)
