"""Run folders and their settings: checked, completed from the recipe, or taken over from the run that is resumed."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from flowkit.cli.output import console, run_folder, write_file
from flowkit.errors import ConfigError, StorageError
from flowkit.training.processes import launched

from .recipes import CHECKPOINT, SETTINGS, Recipe

CHANGEABLE = ("steps", "samples", "temperature")  # by a run that goes on
INTERRUPTED = 130  # what shells expect after Ctrl-C

S = TypeVar("S")  # a frozen dataclass of settings: the same settings give the same numbers


@dataclass(frozen=True)
class Where:
    """Where a run is written, on what it runs, and the command that asked for it."""

    out: Path
    device: str
    command: str
    resume: bool = False
    download: bool = False


def new_run(
    settings: type[S], recipe: Recipe, options: Mapping[str, Any], default_out: str, command: str
) -> tuple[S, Where]:
    """The settings of a new run: what was given, and the recipe for the rest."""
    names = [f.name for f in fields(settings)]  # type: ignore[arg-type]  # a dataclass
    ours = {name: value for name, value in asdict(recipe).items() if name in names}
    given = {name: options[name] for name in names if options.get(name) is not None}
    where = Where(options["out"] or Path(default_out), options["device"], command, download=options["download"])
    return settings(**{**ours, **given}), where


def resumed_run(
    settings: type[S],
    options: Mapping[str, Any],
    default_out: str,
    command: str,
    fixed: Sequence[str],
    left_by_a_run: tuple[str, ...] = (CHECKPOINT,),
) -> tuple[S, Where]:
    """The settings of the run in --out, or of the last one, with what may change changed.

    A folder holds a run that can go on where one of the files `left_by_a_run` is in it.

    Raises:
        ConfigError: an option that would make it another run: one of `fixed`, or fewer steps.
        StorageError: nothing to resume, or settings that cannot be read.
    """
    out = options["out"]
    folders = [out] if out is not None else runs_at(Path(default_out))
    left = [folder for folder in folders if any((folder / name).is_file() for name in left_by_a_run)]
    if not left:
        raise StorageError(f"there is no run to resume in {out or default_out}: it has no {left_by_a_run[0]}")
    folder = left[-1]
    found: Any = read_settings(folder, settings)
    for name in fixed:
        value = options[name]
        if value is not None and str(value) != str(getattr(found, name)):
            raise ConfigError(
                f"the run in '{folder}' has --{name.replace('_', '-')} {getattr(found, name)}, "
                f"and cannot go on with {value}"
            )
    if options["steps"] is not None and options["steps"] < found.steps:
        raise ConfigError(
            f"the run in '{folder}' has --steps {found.steps}: it can go on to more, not to {options['steps']}"
        )
    changed = {name: options[name] for name in CHANGEABLE if options[name] is not None}
    return replace(found, **changed), Where(folder, options["device"], command, True, options["download"])


def check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, by the option's name.

    Raises:
        ConfigError: as said.
    """
    for name in ("steps", "batch_size", "samples", "pretrain"):
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


def read_settings(folder: Path, settings: type[S]) -> S:
    """The settings of the run in a folder.

    Raises:
        StorageError: there are none, or they are damaged.
    """
    try:
        return settings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"'{folder / SETTINGS}' is missing or damaged, so the run in '{folder}' cannot go on"
        ) from error


def free_path(path: Path) -> Path:
    """The path itself, or with -2, -3, ... before its suffix where a file is there already."""

    def candidates() -> Iterator[Path]:
        yield path
        for number in itertools.count(2):
            yield path.with_name(f"{path.stem}-{number}{path.suffix}")

    return next(candidate for candidate in candidates() if not os.path.lexists(candidate))


def settings_text(settings: Any, command: str) -> str:
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


def first_process() -> bool:
    """Whether this process writes and prints: of those that torchrun started, the first does; one alone does."""
    return launched() is None or os.environ["RANK"] == "0"


def terminal(error: bool = False) -> Console:
    """The console of a run: silent in all processes but the first."""
    made = console(error)
    made.quiet = not first_process()
    return made


def begin(where: Where, settings: Any) -> Path:
    """The folder of a run, with its settings written into it. Processes but the first write nothing."""
    if not first_process():
        return where.out
    folder = where.out if where.resume else run_folder(where.out)
    write_file(folder / SETTINGS, settings_text(settings, where.command))
    return folder


def announcement(settings: Any, parameters: int, folder: Path) -> str:
    """What is said before training: preset, size, steps and folder."""
    return (
        f"Preset '{settings.preset}', {parameters:,} parameters: {settings.steps:,} steps of {settings.batch_size}, "
        f"in {folder}. Ctrl-C keeps the state."
    )


def stopped(example: str, folder: Path, done: int, steps: int, what: str = "") -> str:
    """What is said after Ctrl-C."""
    if not done:
        return "Stopped before the first step: there is nothing to keep."
    command = f"flowkit examples {example} --resume --out {shlex.quote(str(folder))}"
    of_what = f"{steps:,} {what}".rstrip()
    return f"Stopped after step {done:,} of {of_what}; its state is kept. Go on with:\n  {command}"


def mean_bits(losses: Sequence[float]) -> float:
    """The mean of losses in nats, in bits."""
    return sum(losses) / len(losses) / math.log(2)
