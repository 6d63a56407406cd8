"""The conditioning net, trained to name colours before the flow trains it on: `--pretrain STEPS`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console

from flowkit import Flow
from flowkit.errors import ConfigError
from flowkit.training.processes import launched
from flowkit_cinn.models import COLORIZATION
from flowkit_cinn.pyramid import FeaturePyramid
from flowkit_cinn.translation.pretraining import ColourClassifier, colour_bins, colour_frequencies
from flowkit_cinn.translation.sources import Source

from .choices import Settings
from .photographs import torch_device
from .plain import train_plainly
from .recipes import PRETRAINING
from .training import Sizes, crop_batches

COUNTED_BATCHES = 64  # whose colours say how rare each is


@dataclass(frozen=True)
class Pretraining:
    """How it went: the loss of every step, in nats a pixel, and whether Ctrl-C ended it."""

    losses: tuple[float, ...]
    seconds: float
    interrupted: bool


def pretrain(
    flow: Flow, source: Source, settings: Settings, *, device: str, folder: Path, show: Console
) -> Pretraining:
    """Train the flow's conditioning net for `settings.pretrain` steps as Zhang et al. did, from the folder's state.

    The paper takes a net that was trained to colorize, by classification of colours, and then trains it with the flow.

    Raises:
        ConfigError: a flow without a conditioning net; more than one process.
        FlowkitError: as training does.
    """
    recipe, checkpoint = COLORIZATION[settings.preset], folder / PRETRAINING
    pyramids = [node for node in flow.network.modules() if isinstance(node, FeaturePyramid)]
    if not pyramids:
        raise ConfigError(f"--pretrain is for presets with a conditioning net, and '{settings.preset}' has none")
    if launched() is not None and not checkpoint.is_file():
        raise ConfigError(
            "--pretrain runs in one process: start it without torchrun, stop it when the flow trains, and go on by "
            "torchrun with --resume"
        )
    own = replace(settings, steps=settings.pretrain)
    frequencies = None if checkpoint.is_file() else _frequencies(source, own, recipe.size, recipe.photo_size)
    torch.manual_seed(settings.seed)
    model = ColourClassifier(recipe.features, recipe.size, recipe.photo_size, frequencies)
    result = train_plainly(model.to(torch_device(device)), "conditioning net", source, own, checkpoint, show)
    model.give_to(pyramids[0])
    return Pretraining(result.losses, result.seconds, result.interrupted)


def _frequencies(source: Source, settings: Settings, size: int, photo_size: int) -> torch.Tensor:
    """How often each bin of colours occurs in the first crops of the run."""
    bins = colour_bins()
    run = SimpleNamespace(items_seen=0, position=None, positions=None)
    loader = crop_batches(source, Sizes((photo_size,) * 2, (size,) * 2), run, settings, on_gpu=False)
    counted = torch.zeros(len(bins))
    for batch in islice(loader, COUNTED_BATCHES):
        counted += colour_frequencies(batch["ab"], bins)
    return counted
