"""Training by maximum likelihood, on Lightning: optional, and usable with one's own Trainer.

`NegativeLogLikelihood` needs torch alone; the rest is loaded, with Lightning, at first use.

>>> from flowkit.training import NegativeLogLikelihood
"""

# ruff: noqa: F401

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "NegativeLogLikelihood": "flowkit.training.likelihood",
    "by_name": "flowkit.training.layout",
    "generator_for": "flowkit.training.noise",
    "keyed_noise": "flowkit.training.noise",
    "Schedule": "flowkit.training.schedule",
    "NextItems": "flowkit.training.loading",
    "batches": "flowkit.training.loading",
    "list_shards": "flowkit.training.tars",
    "streamed_batches": "flowkit.training.shards",
    "FlowModule": "flowkit.training.module",
    "MovingAverage": "flowkit.training.average",
    "KeepLastState": "flowkit.training.checkpoint",
    "read_checkpoint": "flowkit.training.checkpoint",
    "Pictures": "flowkit.training.pictures",
    "Progress": "flowkit.training.progress",
    "FitResult": "flowkit.training.run",
    "fit": "flowkit.training.run",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowkit.training' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


if TYPE_CHECKING:
    from flowkit.training.average import MovingAverage
    from flowkit.training.checkpoint import KeepLastState, read_checkpoint
    from flowkit.training.layout import by_name
    from flowkit.training.likelihood import NegativeLogLikelihood
    from flowkit.training.loading import NextItems, batches
    from flowkit.training.module import FlowModule
    from flowkit.training.noise import generator_for, keyed_noise
    from flowkit.training.pictures import Pictures
    from flowkit.training.progress import Progress
    from flowkit.training.run import FitResult, fit
    from flowkit.training.schedule import Schedule
    from flowkit.training.shards import streamed_batches
    from flowkit.training.tars import list_shards
