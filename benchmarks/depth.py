"""How deep and how large a flow can be: Glow as InvertibleNetworks.jl published it, bytes and time by depth."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch

from flowkit.diagnostics import timings

from ._common import Column, Report, Section, bench_options, ratio
from ._common.allocator import keep_freed_memory
from ._common.glow import (
    GlowSpec,
    check_glow,
    glow,
    held_bytes,
    most,
    nll,
    peers,
    predicted_bytes,
    redraw_glow,
    step_bytes,
)
from ._common.limit import train_step
from ._common.peers import quiet
from ._common.pictures import counts, legend, line

GB, MB = 10**9, 10**6
BATCH, LEVELS, HIDDEN, SIZE = 8, 3, 256, 256
SIDES = 16  # images are tried in steps of so many pixels
# Louboutin et al., JOSS 9(99), 6554, 2024: GB on an A100, read off the figure; what a driver reports, not bytes alive.
PUBLISHED = {4: 5.09, 8: 7.88, 16: 13.55, 32: 24.87, 48: 36.20}
PUBLISHED_REVERSE = 5.1
FLOWKIT = ("plain", "reverse")
AUTO = "auto, a budget midway between"


@click.command()
@click.option(
    "--depth",
    "depths",
    type=click.IntRange(min=1),
    multiple=True,
    default=tuple(PUBLISHED),
    show_default=True,
    help="Steps on each of the levels. May be repeated.",
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1 / 8,
    show_default=True,
    help="Of the image's side and of the hidden channels, where a step is run.",
)
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), default=40.0, show_default=True, help="GB.")
@click.option("--deepest", type=click.IntRange(min=1), default=128, show_default=True, help="Where the search ends.")
@click.option("--largest", type=click.IntRange(min=16), default=2048, show_default=True, help="Likewise, of images.")
@click.option("--steps", type=click.IntRange(min=1), default=16, show_default=True, help="Depth of the largest image.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved turns.")
@bench_options
def command(
    options: Any,
    depths: tuple[int, ...],
    scale: float,
    budget: float,
    deepest: int,
    largest: int,
    steps: int,
    rounds: int,
) -> None:
    """Measure bytes and time by depth, and what fits a byte budget."""
    hidden, size = HIDDEN, SIZE
    if options.quick:
        depths, deepest, largest, steps, rounds, budget = (1, 2), 2, 32, 1, min(rounds, 2), 0.0035
        hidden, size, scale = 8, 32, 1.0
    keep_freed_memory()
    report = Report("depth", options, depths=depths, scale=scale, budget=budget, rounds=rounds)
    published = (hidden, size) == (HIDDEN, SIZE)
    _bytes_by_depth(report, depths, hidden, size, published)
    _what_fits(report, depths, hidden, size, int(budget * GB), deepest, largest, steps)
    _time_by_depth(report, depths, max(2, round(hidden * scale)), _side(size * scale), rounds)
    report.finish(_plot)


def _side(size: float) -> int:
    return max(2**LEVELS, round(size / 2**LEVELS) * 2**LEVELS)


def _names() -> tuple[str, ...]:
    return (*FLOWKIT, *peers(GlowSpec(1)))


def _label(name: str) -> str:
    return f"flowkit, {name}" if name in FLOWKIT else name


def _bytes_by_depth(report: Report, depths: tuple[int, ...], hidden: int, size: int, published: bool) -> None:
    columns = [
        Column("depth", f"steps of ActNorm, 1 x 1 convolution and coupling on each of {LEVELS} levels", "d"),
        *[Column(_label(name), "", ".3g") for name in _names()],
    ]
    if published:
        columns += [
            Column("published: normflows", "on an A100, as its driver reports; it fails at depth 64", ".2f"),
            Column("published: InvertibleNetworks.jl", "about, and flat to depth 80", ".2f"),
        ]

    def rows() -> Iterator[dict[str, Any]]:
        for depth in depths:
            spec = GlowSpec(depth, hidden, size, LEVELS)
            row = {"depth": depth, **{_label(n): predicted_bytes(spec, BATCH, n) / GB for n in _names()}}
            if published:
                row |= {"published: normflows": PUBLISHED.get(depth)}
                row |= {"published: InvertibleNetworks.jl": PUBLISHED_REVERSE if depth <= 80 else None}
            yield row

    note = (
        "GB alive at once in a forward and backward pass, parameters, their gradients and data included, counted on "
        "the meta device: nothing is allocated. A convolution's workspace and the driver's own memory come on top. "
        "FrEIA's 1 x 1 convolutions are fixed. flowkit in reverse keeps a snapshot every 8 blocks."
    )
    title = f"Glow on {size} x {size}, {LEVELS} levels, {hidden} hidden, batch {BATCH}: memory by depth"
    report.measure(Section(title, columns, note=note), rows(), len(depths))


def _what_fits(
    report: Report,
    depths: tuple[int, ...],
    hidden: int,
    size: int,
    budget: int,
    deepest: int,
    largest: int,
    steps: int,
) -> None:
    columns = (
        Column("implementation", ""),
        Column("deepest", f"steps a level on {size} x {size}; 'or more' where the search ended there"),
        Column("largest image", f"side in pixels at {steps} steps a level, in steps of {SIDES}"),
    )

    def rows() -> Iterator[dict[str, Any]]:
        for name in _names():

            def of_depth(depth: int, name: str = name) -> int:
                return predicted_bytes(GlowSpec(depth, hidden, size, LEVELS), BATCH, name)

            def of_image(units: int, name: str = name) -> int:
                return predicted_bytes(GlowSpec(steps, hidden, units * SIDES, LEVELS), BATCH, name)

            deep = most(of_depth, budget, deepest, depths)
            large = most(of_image, budget, largest // SIDES, (max(1, size // SIDES),), power=2)
            yield {
                "implementation": _label(name),
                "deepest": f"{deep}{' or more' if deep == deepest else ''}",
                "largest image": f"{large * SIDES}{' or more' if large == largest // SIDES else ''}",
                "steps that fit": deep,
                "side that fits": large * SIDES,
            }

    title = f"What fits into {budget / GB:g} GB, {LEVELS} levels, {hidden} hidden, batch {BATCH}"
    note = "By bisection on the meta device, bytes as above."
    report.measure(Section(title, columns, note=note), rows(), len(_names()))


def _time_by_depth(report: Report, depths: tuple[int, ...], hidden: int, size: int, rounds: int) -> None:
    columns = (
        Column("depth", "", "d"),
        Column("implementation", ""),
        Column("MB", "alive at once in a step, counted while it ran, parameters, gradients and data included", ".2f"),
        Column("ms", "of a forward and backward pass, median", ".1f"),
        Column("ratio", "of the time to flowkit's in plain mode, and its interval of 95 %"),
    )
    title = f"The same scaled to {size} x {size} and {hidden} hidden: a step that is run"
    note = "Equal weights; z and log-det were compared with a plain formula before timing, each toolkit's own clamp."
    rows = (row for depth in depths for row in _step_rows(GlowSpec(depth, hidden, size, LEVELS), rounds))
    report.measure(Section(title, columns, note=note), rows)


def _step_rows(spec: GlowSpec, rounds: int) -> Iterator[dict[str, Any]]:
    x = torch.randn(BATCH, *spec.shape)
    flow = redraw_glow(glow(spec), x)
    with quiet():
        others = {name: build(spec).take(flow) for name, build in peers(spec).items()}
    check_glow(flow, others, x[:2])
    models: dict[str, Any] = {"flowkit, plain": flow}
    twin = models["flowkit, reverse"] = copy.deepcopy(flow)
    twin.backprop = "reverse"
    auto = copy.deepcopy(flow)
    # As it is foreseen, for that is what the budget is held against; without what is there before the pass.
    foreseen = predicted_bytes(spec, BATCH, "plain") + predicted_bytes(spec, BATCH, "reverse")
    auto.network.budget = foreseen // 2 - held_bytes(flow, x)
    auto.backprop = "auto"
    models[f"flowkit, {AUTO}"] = auto
    models |= others
    held: dict[str, int] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        held[name] = step_bytes(model, x)
        steps[name] = train_step(model, lambda model=model: nll(model, x))
    series = timings(steps, rounds=rounds, warm_up=1)
    for name, seconds in series.items():
        row = {"depth": spec.steps, "implementation": name, "MB": held[name] / MB}
        row["ms"] = statistics.median(seconds) * 1e3
        if name != "flowkit, plain":
            row["ratio"] = ratio(seconds, series["flowkit, plain"])
        yield row


def _plot(figure: Any, report: Report) -> None:
    figure.set_size_inches(13, 5)
    left, right = figure.subplots(1, 2)
    section, run = report.sections[0], report.sections[2]
    for column in section.columns[1:]:
        rows = [row for row in section.rows if row.get(column.name) is not None]
        line(left, [r["depth"] for r in rows], [r[column.name] for r in rows], column.name)
    left.set_ylabel("GB alive at once in a training step")
    for name in dict.fromkeys(row["implementation"] for row in run.rows):
        mine = [row for row in run.rows if row["implementation"] == name]
        line(right, [r["depth"] for r in mine], [r["ms"] for r in mine], name)
    right.set_ylabel("ms a training step")
    for axes, source in ((left, section), (right, run)):
        counts(axes, [row["depth"] for row in source.rows])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("steps a level")
        axes.set_title(source.title, loc="left", fontsize=9)
        legend(axes)
