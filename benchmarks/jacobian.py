"""Whether the log-dets are right, how far the maps stretch, and what the log-det costs: beside autograd's Jacobian."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from typing import Any

import click
import torch

from flowkit.bijection import as_tuple
from flowkit.diagnostics import log_det_cost, log_det_error
from flowkit.shapes import numel

from ._common import Column, Report, Section, bench_options, colorization
from ._common.cases import Case, cases
from ._common.chains import REDRAWN, chain, redraw
from ._common.networks import Network, coupling_chain
from ._common.peers import Counterpart, counterparts, quiet, random_weights
from ._common.pictures import ACCENT, worst_bars

ROWS = 4  # whose Jacobians are computed
TIMED_ROWS = 256

DIMENSIONS = Column("D", "dimensions of an event", "d")
EXACTNESS = (
    Column(
        "forward",
        "float64: the largest |log-det - log |det J|| / (1 + |log |det J||), J being autograd's Jacobian",
        ".1e",
    ),
    Column("inverse", "the same for the inverse's log-det and the inverse's own Jacobian", ".1e"),
)
FLOAT32 = Column(
    "float32", "the forward log-det computed in float32, against the float64 Jacobian, the same measure", ".1e"
)
STRETCH = (
    Column(
        "smallest",
        "the smallest singular value of the Jacobian over the rows: 1 / it is what the inverse stretches",
        ".3g",
    ),
    Column("largest", "the largest singular value: how much the map stretches", ".3g"),
    Column("condition", "the median over the rows of largest / smallest: how many digits may be lost", ".3g"),
)
COST = (
    Column(
        "cost",
        f"time of a forward pass over the same without its log-det: {TIMED_ROWS} rows (16 of images), float32, eager",
        ".2f",
    ),
    Column("µs", "the difference, in microseconds: below a few, nothing was measured", ".1f"),
)


@click.command()
@click.option(
    "--only", multiple=True, metavar="NAME", help="Only this registered bijection, and no networks. May be repeated."
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=50, show_default=True, help="Training steps of the trained networks."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Timings of each; the median counts."
)
@bench_options
def command(options: Any, only: tuple[str, ...], steps: int, rounds: int) -> None:
    """Compare log-dets with autograd's Jacobian."""
    quick = options.quick
    steps, rounds = (min(steps, 3), min(rounds, 3)) if quick else (steps, rounds)
    report = Report("jacobian", options, steps=steps, rounds=rounds, rows=ROWS, only=list(only))
    found = list(cases(only, options.seed, most=2 if quick else 100))
    columns = (Column("bijection", ""), Column("configuration", ""), DIMENSIONS, *EXACTNESS, FLOAT32, *STRETCH, *COST)
    note = "Weights random, far from the identity. '-' where a log-det is an estimate, or of a surface's area."
    report.measure(
        Section("Registered bijections", columns, note=note), (_op_row(c, rounds) for c in found), len(found)
    )
    if not only:
        columns = (Column("network", ""), Column("weights", REDRAWN), DIMENSIONS, *EXACTNESS, FLOAT32, *STRETCH, *COST)
        total = 6 + 3 * colorization.is_available()
        report.measure(Section("Networks", columns), _network_rows(steps, rounds, quick), total)
        columns = (
            Column("op", ""),
            Column("implementation", ""),
            *EXACTNESS,
            FLOAT32,
            *STRETCH,
            *COST,
            Column("remark", ""),
        )
        pairs = list(counterparts())
        report.measure(
            Section("Beside other toolkits, op by op", columns), (_peer_row(c, rounds) for c in pairs), len(pairs)
        )
    report.finish(_plot)


def _figures(bijection: Any, x: Any, given: Any) -> dict[str, Any]:
    """Exactness and stretch, of a bijection in float32 or float64."""
    errors = log_det_error(bijection, x, given)
    values, reference = errors.singular_values, errors.log_abs_det
    single = copy.deepcopy(bijection).float()
    with torch.no_grad():
        log_det = getattr(single, "network", single)(*_single(x), *_single(given))[1]
    return {
        "forward": errors.forward,
        "inverse": errors.inverse,
        "float32": ((log_det.double() - reference).abs() / (1 + reference.abs())).max().item(),
        "smallest": values.min().item(),
        "largest": values.max().item(),
        "condition": statistics.median((values[:, 0] / values[:, -1]).tolist()),
        "D": values.shape[-1],
    }


def _single(values: Any) -> tuple[torch.Tensor, ...]:
    tensors = () if values is None else as_tuple(values)
    return tuple(t.float() if t.is_floating_point() else t for t in tensors)


def _cost(bijection: Any, x: Any, given: Any, rounds: int) -> dict[str, float]:
    if getattr(bijection, "network", bijection).adaptive:
        return {}
    cost = log_det_cost(bijection, x, given, rounds=rounds)
    return {"cost": cost.ratio, "µs": 1e6 * (cost.seconds - cost.seconds_without)}


def _op_row(case: Case, rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"bijection": case.name, "configuration": case.detail}
    bijection = case.bijection
    of_area = bijection.embedded or sum(map(numel, bijection.in_shapes)) != sum(map(numel, bijection.out_shapes))
    if bijection.stochastic or of_area:  # of an estimate two calls differ; of an area there is no square Jacobian
        return row
    row |= _figures(case.bijection, *_rounded(*case.data(ROWS)))
    return row | _cost(case.to(torch.float32), *case.data(TIMED_ROWS, torch.float32), rounds)


def _rounded(x: Any, given: Any) -> tuple[Any, Any]:
    """The same numbers in float32 and float64, so that only the computation differs."""
    return tuple(tuple(t.float().double() if t.is_floating_point() else t for t in values) for values in (x, given))  # type: ignore[return-value]


def _network_rows(steps: int, rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    yield from (_network_row(n, rounds) for n in coupling_chain(8 if quick else 64, steps))
    for depth in (2, 4, 8) if quick else (4, 16, 256):
        flow = redraw(chain(depth).float()).eval()
        yield _network_row(
            Network(
                f"chain of {depth} couplings",
                "redrawn",
                flow,
                lambda r: (torch.randn(r, 64, dtype=torch.float32), None),
            ),
            rounds,
        )
    if colorization.is_available():  # at 16 x 16: a Jacobian of 8192 x 8192 takes hours
        yield from (_network_row(n, rounds) for n in colorization.small_colorization(steps, quick, size=16))


def _network_row(network: Network, rounds: int) -> dict[str, Any]:
    x, given = network.batch(2)
    row = {"network": network.name, "weights": network.state, **_figures(network.flow, x, given)}
    x, given = network.batch(16 if given is not None else TIMED_ROWS)
    return row | _cost(network.flow, x, given, rounds)


def _peer_row(counterpart: Counterpart, rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"op": counterpart.op, "implementation": counterpart.implementation}
    shape = counterpart.shape
    try:
        with quiet():
            bijection = random_weights(counterpart).float()
            row |= _figures(bijection, torch.randn(ROWS, *shape, dtype=torch.float32), None)
            row |= _cost(bijection, torch.randn(TIMED_ROWS, *shape, dtype=torch.float32), None, rounds)
    except Exception as error:  # a peer that fails is a finding
        row["remark"] = f"raises {type(error).__name__}: {' '.join(str(error).split())[:60]}"
    if max(row.get("forward", 0.0), row.get("inverse", 0.0)) > 1e-6:
        row["remark"] = "wrong log-det"
    return row


def _plot(figure: Any, report: Report) -> None:
    sections = {section.title: section.rows for section in report.sections}
    figure.set_size_inches(14, 6)
    axes = figure.subplots(1, 2) if "Networks" in sections else [figure.subplots()]
    worst: dict[str, float] = {}
    for row in sections["Registered bijections"]:
        if "forward" in row:
            found = max(row["forward"], row["inverse"])
            worst[row["bijection"]] = max(worst.get(row["bijection"], 0.0), found)
    worst_bars(axes[0], worst, 1e-17)
    axes[0].set_xlabel("largest |log-det - log |det J|| / (1 + |log |det J||), float64")
    axes[0].set_title("Log-det against autograd's Jacobian, the worse direction", loc="left", fontsize=10)
    if "Networks" in sections:
        rows = sections["Networks"]
        names = [f"{row['network']}\n{row['weights']}" for row in rows]
        for i, row in enumerate(rows):
            axes[1].plot([row["smallest"], row["largest"]], [i, i], marker="|", color=ACCENT, linewidth=3)
        axes[1].axvline(1, color="0.5", linewidth=1)
        axes[1].set_yticks(range(len(rows)), names, fontsize=8)
        axes[1].set_xscale("log")
        axes[1].set_ylim(len(rows) - 0.5, -0.5)
        axes[1].set_xlabel("stretch, smallest to largest singular value; 1 keeps lengths")
        axes[1].set_title("Singular values of the Jacobian", loc="left", fontsize=10)
