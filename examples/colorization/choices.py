"""What the options mean: checked, completed from the recipe, or taken over from the run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.errors import ConfigError, StorageError

from .._common.recipes import CHECKPOINT, MODEL, SETTINGS
from .._common.runs import Where, check_numbers, new_run, resumed_run, runs_at
from .recipes import COMPARISON_OUT, DEFAULT_OUT, PRETRAINING, RECIPES

FIXED_BY_A_RUN = ("data", "root", "preset", "batch_size", "lr", "seed", "stream", "held_out", "pretrain")
OF_TRAINING = ("stream", "held_out", "pretrain")
FIXED_BY_A_COMPARISON = (*FIXED_BY_A_RUN, "steps", "temperature")


@dataclass(frozen=True)
class Settings:
    """A training run, completely: the same settings give the same numbers."""

    data: str = "bundled"
    root: str = "data"
    preset: str = "demo"
    steps: int = 0
    batch_size: int = 0
    lr: float = 0.0
    noise: float = 0.0
    seed: int = 0
    samples: int = 8
    temperature: float = 1.0
    compare: bool = False
    ablations: bool = True
    stream: bool = False
    held_out: str = ""
    pretrain: int = 0


@dataclass(frozen=True)
class PhotographChoices:
    """Which photographs are colorized, by what, and where the results go (None: beside each)."""

    photographs: tuple[Path, ...]
    model: Path
    out: Path | None
    samples: int
    temperature: float
    seed: int
    device: str


def training_choices(options: Mapping[str, Any], command: str) -> tuple[Settings, Where]:
    """The settings of a training run.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
        StorageError: nothing to resume.
    """
    check_numbers(options)
    if options["model"] is not None:
        raise ConfigError("--model is for colorizing: name at least one PHOTO with it")
    given = {**options, "root": None if options["root"] is None else str(options["root"])}
    if not options["ablations"] and not options["compare"]:
        raise ConfigError("--without-ablations is for --compare")
    for name in OF_TRAINING:
        if options["compare"] and options[name]:
            raise ConfigError(f"--{name.replace('_', '-')} does not go together with --compare")
    if options["held_out"] and not options["stream"] and not options["resume"]:
        raise ConfigError("--held-out is for --stream: other data are split as `--data` says")
    if options["compare"]:
        kind = (COMPARISON_OUT, command, FIXED_BY_A_COMPARISON, (SETTINGS,))
    else:
        kind = (DEFAULT_OUT, command, FIXED_BY_A_RUN, (CHECKPOINT, PRETRAINING))
    if options["resume"]:
        settings, where = resumed_run(Settings, given, *kind)
        if settings.compare != options["compare"]:
            found = "a comparison" if settings.compare else "a run of one flow"
            raise ConfigError(f"the run in '{where.out}' is {found}: resume it as it was started")
        return settings, where
    return new_run(Settings, RECIPES[options["preset"] or Settings.preset], given, *kind[:2])


def photograph_choices(photographs: Sequence[Path], options: Mapping[str, Any]) -> PhotographChoices:
    """What colorizing photographs needs.

    Raises:
        ConfigError: a value out of range, or options that are for training.
        StorageError: no model is named, and no run has left one.
    """
    check_numbers(options)
    for name in ("data", "root", "preset", "steps", "batch_size", "lr", "resume", "download", "compare", *OF_TRAINING):
        if options[name] not in (None, False):
            raise ConfigError(f"--{name.replace('_', '-')} is for training, and does not go together with PHOTO")
    model = options["model"]
    if model is None:
        done = [folder / MODEL for folder in runs_at(Path(DEFAULT_OUT)) if (folder / MODEL).is_file()]
        if not done:
            raise StorageError(
                f"there is no trained model in {DEFAULT_OUT}: train one with `flowkit examples colorization`, "
                f"or name one with --model"
            )
        model = done[-1]
    return PhotographChoices(
        tuple(photographs),
        model,
        options["out"],
        4 if options["samples"] is None else options["samples"],
        1.0 if options["temperature"] is None else options["temperature"],
        options["seed"] or 0,
        options["device"],
    )
