"""The options that every benchmark takes, checked before any work is done."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from flowkit.cli.options import seed_option
from flowkit.cli.output import OutputError, check_output

PLOTS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Options:
    """Where the figures go, and how much is measured."""

    json: Path | None
    plot: Path | None
    quick: bool
    seed: int


def _writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise click.BadParameter(f"{path} is no file that can be written.")
    if parameter.name == "plot" and path.suffix.lower() not in PLOTS:
        raise click.BadParameter(f"{path} must end in {', '.join(PLOTS)}.")
    return path


def bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, `--plot`, `--force`, `--quick`, `--threads` and `--seed`; the function gets them as `options`."""
    file = click.Path(path_type=Path)

    @click.option("--json", type=file, callback=_writable, metavar="FILE", help="Write the figures to this file.")
    @click.option(
        "--plot", type=file, callback=_writable, metavar="FILE", help="Draw them to this file (.png, .svg, .pdf)."
    )
    @click.option("--force", is_flag=True, help="Overwrite these files.")
    @click.option("--quick", is_flag=True, help="Small sizes, to see that it runs: not for figures that are quoted.")
    @click.option("--threads", type=click.IntRange(min=1), help="Threads for torch; by default as many as it takes.")
    @seed_option
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        json: Path | None,
        plot: Path | None,
        force: bool,
        quick: bool,
        threads: int | None,
        seed: int,
        **rest: Any,
    ) -> Any:
        for path in filter(None, (json, plot)):
            check_output(path, force)
        if json is not None and plot is not None and json.absolute() == plot.absolute():
            raise OutputError(f"the figures and the plot need a file each, got {json} for both")
        threads_before = torch.get_num_threads()
        torch.manual_seed(seed)
        try:
            if threads:
                torch.set_num_threads(threads)
            return function(*args, options=Options(json, plot, quick, seed), **rest)
        finally:
            torch.set_num_threads(threads_before)

    return wrapped
