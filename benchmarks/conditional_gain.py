"""What the condition is worth: the colorization flow, and the same flow without any condition, trained alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
import torch

import flowkit as fk
from flowkit.cli.catalog import EXAMPLES
from flowkit.cli.options import device_option

from ._common import Column, Report, Section, bench_options
from ._common.pictures import OWN, PEER

COLUMNS = (
    Column("flow", ""),
    Column(
        "bits per dimension",
        "held-out photographs: -log2 q / D of normalised ab with the noise of training; lower is better",
        ".4f",
    ),
    Column("error", "bootstrap standard deviation of that mean, over photographs", ".4f"),
    Column("parameters", "", ",d"),
    Column("seconds", "of training and judging", ".0f"),
)


@click.command()
@click.option("--steps", type=click.IntRange(min=1), help="Training steps of each.  [default: the preset's]")
@click.option("--data", default="bundled", show_default=True, help="As of `flowkit examples colorization`.")
@device_option
@bench_options
def command(options: Any, steps: int | None, data: str, device: str) -> None:
    """Measure what the photograph's lightness is worth to the colours."""
    from flowkit_cinn.models import colorization_cinn
    from flowkit_cinn.translation.metrics import bootstrap
    from flowkit_cinn.translation.sources import open_source

    training, recipes, choices = (_example(part) for part in ("training", "recipes", "choices"))
    recipe = recipes.RECIPES["demo"]
    steps = min(steps or 2, 2) if options.quick else steps or recipe.steps
    settings = choices.Settings(
        data=data,
        preset="demo",
        steps=steps,
        batch_size=4 if options.quick else recipe.batch_size,
        lr=recipe.lr,
        noise=recipe.noise,
        seed=options.seed,
    )
    sizes = {"size": 16, "photo_size": 16} if options.quick else {}
    source = open_source(data)

    bits: list[torch.Tensor] = []

    def rows() -> Iterator[dict[str, Any]]:
        for name, unconditional in (("given the lightness", False), ("without condition", True)):
            torch.manual_seed(options.seed)
            flow: fk.Flow = colorization_cinn("demo", unconditional=unconditional, **sizes)
            start = time.perf_counter()
            each = training.train_and_judge(flow, source, settings, device=device)
            bits.append(each)
            judged = bootstrap(each)
            yield {
                "flow": name,
                "bits per dimension": judged.mean,
                "error": judged.error,
                "parameters": sum(p.numel() for p in flow.parameters()),
                "seconds": time.perf_counter() - start,
            }

    report = Report("conditional-gain", options, steps=steps, data=data, batch_size=settings.batch_size)
    section = Section(f"Colorization, demo preset, {steps} steps", COLUMNS)
    report.measure(section, rows(), 2)
    saved = bootstrap(bits[1] - bits[0])  # image by image: what makes an image hard is hard for both
    section.note = (
        f"the condition saves {saved.mean:.4f} bits per dimension, bootstrap error {saved.error:.4f} (paired)"
    )
    click.echo(section.note)
    report.finish(_plot)


def _example(part: str) -> Any:
    """A module of the colorization example: the benchmark trains as the example does."""
    import importlib

    package = EXAMPLES.module("colorization").__name__
    return importlib.import_module(f"{package}.{part}")


def _plot(figure: Any, report: Report) -> None:
    figure.set_size_inches(7, 5)
    axes, rows = figure.subplots(), report.sections[0].rows
    errors = [row["error"] for row in rows]
    bars = axes.bar(
        [row["flow"] for row in rows],
        [row["bits per dimension"] for row in rows],
        yerr=errors,
        error_kw={"ecolor": "0.3", "elinewidth": 1},
        color=[OWN, PEER],
        width=0.5,
    )
    axes.bar_label(bars, [f"{row['bits per dimension']:.3f}" for row in rows], padding=4)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.margins(y=0.15)
    axes.set_ylabel("bits per dimension, held out; lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{report.sections[0].title}\n{report.sections[0].note}", loc="left", fontsize=9)
