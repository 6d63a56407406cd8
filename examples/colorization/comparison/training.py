"""Training one system of the table: the flows as `flowkit examples colorization` does, the others on the same crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import flowkit as fk
from flowkit.training import FitResult, Progress
from flowkit_cinn.translation.baselines import Colorizer
from flowkit_cinn.translation.sources import Source

from ..choices import Settings
from ..photographs import torch_device
from ..plain import train_plainly
from ..training import train
from .systems import System


def train_system(
    model: nn.Module,
    system: System,
    source: Source,
    settings: Settings,
    *,
    device: str,
    checkpoint: Path,
    show: Console,
) -> FitResult:
    """Train a system for `settings.steps`, from its checkpoint if there is one.

    Raises:
        NonFiniteError: a loss is not finite.
        StorageError: the checkpoint cannot be read or written.
    """
    torch.manual_seed(settings.seed)
    resume = checkpoint.is_file()
    if isinstance(model, fk.Flow):
        own = settings if system.noise else replace(settings, noise=0.0)
        progress = [Progress(show, system.name)]
        return train(model, source, own, device=device, checkpoint=checkpoint, resume=resume, callbacks=progress)
    assert isinstance(model, Colorizer)
    return train_plainly(model.to(torch_device(device)), system.name, source, settings, checkpoint, show)
