"""What the options mean: checked, completed from the recipe, or taken over from the run that is resumed."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from flowkit.errors import ConfigError, StorageError

from .recipes import CHECKPOINT, DEFAULT_OUT, MODEL, RECIPES, SETTINGS

FIXED_BY_A_RUN = ("data", "root", "preset", "batch_size", "lr", "seed")


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


@dataclass(frozen=True)
class Where:
    """Where a run is written, on what it runs, and the command that asked for it."""

    out: Path
    device: str
    command: str = "flowkit examples colorization"
    resume: bool = False
    download: bool = False


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
    if options["resume"]:
        return _resumed(options, command)
    recipe = RECIPES[options["preset"] or Settings.preset]
    given = {f.name: options[f.name] for f in fields(Settings) if options.get(f.name) is not None}
    given["root"] = str(given.get("root", Settings.root))
    ours = {"steps": recipe.steps, "batch_size": recipe.batch_size, "lr": recipe.lr, "noise": recipe.noise}
    settings = Settings(**{**ours, **given})
    return settings, Where(
        options["out"] or Path(DEFAULT_OUT), options["device"], command, download=options["download"]
    )


def photograph_choices(photographs: Sequence[Path], options: Mapping[str, Any]) -> PhotographChoices:
    """What colorizing photographs needs.

    Raises:
        ConfigError: a value out of range, or options that are for training.
        StorageError: no model is named, and no run has left one.
    """
    check_numbers(options)
    for name in ("data", "root", "preset", "steps", "batch_size", "lr", "resume", "download"):
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


def check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, by the option's name.

    Raises:
        ConfigError: as said.
    """
    for name in ("steps", "batch_size", "samples"):
        value = options.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    lr, temperature, seed = options.get("lr"), options.get("temperature"), options.get("seed")
    if lr is not None and not 0 < lr < math.inf:
        raise ConfigError(f"--lr must be positive, got {lr}")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ConfigError(f"--temperature must be at least 0, got {temperature}")
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be at least 0 and below 2^63, got {seed}")


def runs_at(out: Path) -> list[Path]:
    """The run folders `out`, `out-2`, `out-3`, ... that are there, the last made at the end."""
    found = [(1, out)] if out.is_dir() else []
    if out.parent.is_dir():
        for folder in out.parent.iterdir():
            number = re.fullmatch(re.escape(out.name) + r"-(\d+)", folder.name)
            if number and folder.is_dir():
                found.append((int(number[1]), folder))
    return [folder for _, folder in sorted(found)]


def read_settings(folder: Path) -> Settings:
    """The settings of the run in a folder.

    Raises:
        StorageError: there are none, or they are damaged.
    """
    try:
        return Settings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"'{folder / SETTINGS}' is missing or damaged, so the run in '{folder}' cannot go on"
        ) from error


def settings_text(settings: Settings, command: str) -> str:
    """What `read_settings` reads."""
    return json.dumps({"settings": asdict(settings), "command": command}, indent=2) + "\n"


def typed(context: click.Context) -> str:
    """The command as it was typed, without what was left to its default."""
    words: list[str] = context.command_path.split()
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Option):
            words += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], str(context.params[name])]
        else:
            words += [str(value) for value in context.params[name]]
    return shlex.join(words)


def _resumed(options: Mapping[str, Any], command: str) -> tuple[Settings, Where]:
    out = options["out"]
    folders = [out] if out is not None else runs_at(Path(DEFAULT_OUT))
    left = [folder for folder in folders if (folder / CHECKPOINT).is_file()]
    if not left:
        raise StorageError(f"there is no run to resume in {out or DEFAULT_OUT}: it has no {CHECKPOINT}")
    folder = left[-1]
    settings = read_settings(folder)
    for name in FIXED_BY_A_RUN:
        value = options[name]
        if value is not None and str(value) != str(getattr(settings, name)):
            raise ConfigError(
                f"the run in '{folder}' has --{name.replace('_', '-')} {getattr(settings, name)}, "
                f"and cannot go on with {value}"
            )
    if options["steps"] is not None and options["steps"] < settings.steps:
        raise ConfigError(
            f"the run in '{folder}' has --steps {settings.steps}: it can go on to more, not to {options['steps']}"
        )
    changed = {name: options[name] for name in ("steps", "samples", "temperature") if options[name] is not None}
    return replace(settings, **changed), Where(folder, options["device"], command, True, options["download"])
