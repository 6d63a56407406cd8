"""What the options mean: checked, completed from the recipe, or taken over from the run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowkit.errors import ConfigError

from .._common.runs import Where, check_numbers, new_run, resumed_run
from .recipes import DEFAULT_OUT, RECIPES

FIXED_BY_A_RUN = ("data", "preset", "batch_size", "lr", "seed")


@dataclass(frozen=True)
class Settings:
    """A training run, completely: the same settings give the same numbers. Without `data`, scikit-learn's digits."""

    data: str | None = None
    preset: str = "digits"
    steps: int = 0
    batch_size: int = 0
    lr: float = 0.0
    noise: float = 0.0
    seed: int = 0
    samples: int = 10
    temperature: float = 1.0


def training_choices(options: Mapping[str, Any], command: str) -> tuple[Settings, Where]:
    """The settings of a training run.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
        StorageError: nothing to resume.
    """
    check_numbers(options)
    given = {**options, "data": None if options["data"] is None else str(options["data"])}
    if options["resume"]:
        return resumed_run(Settings, given, DEFAULT_OUT, command, FIXED_BY_A_RUN)
    if given["data"] is None and options["download"]:
        raise ConfigError("--download needs --data: the folder where MNIST is to lie")
    if given["preset"] is None:
        given["preset"] = "digits" if given["data"] is None else "small"
    return new_run(Settings, RECIPES[given["preset"]], given, DEFAULT_OUT, command)
