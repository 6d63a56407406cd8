"""What the options mean: checked, completed from the recipe, or taken over from the run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowkit.errors import ConfigError

from .._common.runs import Where, check_numbers, new_run, resumed_run
from .recipes import DEFAULT_OUT, RECIPES

FIXED_BY_A_RUN = ("data", "preset", "batch_size", "lr", "seed", "without_condition")


@dataclass(frozen=True)
class Settings:
    """A training run, completely: the same settings give the same numbers."""

    data: str = ""
    preset: str = "demo"
    steps: int = 0
    batch_size: int = 0
    lr: float = 0.0
    noise: float = 0.0
    seed: int = 0
    samples: int = 6
    temperature: float = 1.0
    without_condition: bool = False


def training_choices(options: Mapping[str, Any], command: str) -> tuple[Settings, Where]:
    """The settings of a run, and where it is written.

    Raises:
        ConfigError: a value out of range, options that do not go together, or no --data.
        StorageError: nothing to resume.
    """
    check_numbers(options)
    options = {**options, "download": False, "without_condition": options["without_condition"] or None}
    if options["resume"]:
        return resumed_run(Settings, options, DEFAULT_OUT, command, FIXED_BY_A_RUN)
    if options["data"] is None:
        raise ConfigError(
            "--data is needed: a folder with cameras.csv and the photographs it lists, or that of the transient "
            "attributes database; no photographs of one place by day and by night are bundled"
        )
    return new_run(Settings, RECIPES[options["preset"] or Settings.preset], options, DEFAULT_OUT, command)
