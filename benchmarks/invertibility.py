"""How far each op and network can be inverted: round trips by dtype, depth and scale of the input."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import click
import torch

import flowkit as fk
from flowkit.diagnostics import round_trip

from ._common import Column, Report, Section, bench_options, colorization
from ._common.cases import Case, cases
from ._common.chains import REDRAWN, chain, double_weights, redraw
from ._common.networks import Network, coupling_chain
from ._common.peers import Counterpart, counterparts, installed, peer_chain, quiet, random_weights
from ._common.pictures import ACCENT, counts, legend, line, worst_bars

TARGET_DEPTH, TARGET = 256, 1e-5
MISS = 0.01
REMARKS = {"FrEIA": "", "nflows": " (their mean is -0.12, so values shrink with depth)"}

NORMAL = "standard normal input: the largest absolute error |inverse(forward(x)) - x|"
BY_DTYPE = (
    Column("float64", f"{NORMAL}, in float64", ".1e"),
    Column("float32", f"{NORMAL}, in float32", ".1e"),
    Column("bf16", f"{NORMAL}, float32 values under bfloat16 autocast", ".1e"),
)
BY_SCALE = (
    Column("x 0.1", "float32, input of standard deviation 0.1: the largest |error| / (1 + |x|)", ".1e"),
    Column("x 10", "the same, input of standard deviation 10", ".1e"),
    Column("x 1000", "the same, input of standard deviation 1000", ".1e"),
)
LOG_DETS = Column("log-dets", "float32: the largest |forward's log-det + inverse's|", ".1e")
SCALES = {"x 0.1": 0.1, "x 10": 10.0, "x 1000": 1000.0}


@click.command()
@click.option(
    "--only", multiple=True, metavar="NAME", help="Only this registered bijection, and no networks. May be repeated."
)
@click.option("--rows", type=click.IntRange(min=1), default=256, show_default=True, help="Rows of data.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=50, show_default=True, help="Training steps of the trained networks."
)
@bench_options
def command(options: Any, only: tuple[str, ...], rows: int, steps: int) -> None:
    """Measure how far ops and networks can be inverted."""
    rows, steps = (min(rows, 16), min(steps, 3)) if options.quick else (rows, steps)
    report = Report("invertibility", options, rows=rows, steps=steps, only=list(only))
    found = list(cases(only, options.seed, most=2 if options.quick else 100))
    columns = (Column("bijection", ""), Column("configuration", ""), *BY_DTYPE, *BY_SCALE, LOG_DETS)
    note = "Weights random, far from the identity. Ops with a domain of their own are not scaled."
    report.measure(Section("Registered bijections", columns, note=note), (_op_row(c, rows) for c in found), len(found))
    if not only:
        _measure_networks(report, rows, steps, options.quick)
        depths = (4, 16) if options.quick else (4, 16, 64, TARGET_DEPTH)
        report.measure(_depth_section(), (_depth_row(d, rows) for d in depths), len(depths))
        columns = (
            Column("op", ""),
            Column("implementation", ""),
            *BY_DTYPE,
            BY_SCALE[1],
            LOG_DETS,
            Column("remark", ""),
        )
        pairs = list(counterparts())
        report.measure(
            Section("Beside other toolkits, op by op", columns), (_peer_row(c, rows) for c in pairs), len(pairs)
        )
    report.finish(_plot)


def _by_dtype(bijection: Any, x: Any, given: Any) -> dict[str, Any]:
    """The three dtypes, and the log-dets; the bijection is in float32."""
    wide = copy.deepcopy(bijection).double()
    plain = round_trip(bijection, x, given)
    return {
        "float64": round_trip(wide, _double(x), _double(given)).error,
        "float32": plain.error,
        "bf16": round_trip(bijection, x, given, autocast=torch.bfloat16).error,
        "log-dets": plain.log_det_error,
    }


def _double(values: Any) -> Any:
    if isinstance(values, tuple):
        return tuple(map(_double, values))
    return values.double() if isinstance(values, torch.Tensor) and values.is_floating_point() else values


def _op_row(case: Case, rows: int) -> dict[str, Any]:
    bijection = case.to(torch.float32)
    row = {"bijection": case.name, "configuration": case.detail}
    row |= _by_dtype(bijection, *case.data(rows, torch.float32))
    if not case.has_domain:
        row |= {n: round_trip(bijection, *case.data(rows, torch.float32, s)).relative for n, s in SCALES.items()}
    return row


def _measure_networks(report: Report, rows: int, steps: int, quick: bool) -> None:
    def measured() -> Iterator[dict[str, Any]]:
        yield from (_network_row(n, rows) for n in coupling_chain(8 if quick else 64, steps))
        if colorization.is_available():
            yield from (_network_row(n, min(rows, 4)) for n in colorization.small_colorization(steps, quick))

    columns = (Column("network", ""), Column("weights", REDRAWN), *BY_DTYPE, *BY_SCALE, LOG_DETS)
    note = "Trained networks are measured on data like those they learnt, in place of standard normal input."
    report.measure(Section("Networks", columns, note=note), measured(), 3 + 3 * colorization.is_available())


def _network_row(network: Network, rows: int) -> dict[str, Any]:
    x, given = network.batch(rows)
    row = {"network": network.name, "weights": network.state, **_by_dtype(network.flow, x, given)}
    return row | {name: round_trip(network.flow, scale * x, given).relative for name, scale in SCALES.items()}


def _depth_section() -> Section:
    columns = (
        Column("couplings", "affine couplings one after the other, 64 values, hidden layers 128 and 128", "d"),
        *BY_DTYPE,
        Column("relative", "float32: the largest |error| / (1 + |x|)", ".1e"),
        Column("typical", "float32: the largest absolute error of a row, the median over the rows", ".1e"),
        Column(
            "limit",
            "couplings in float64, values rounded to float32 between them: what the values' dtype alone costs",
            ".1e",
        ),
        *(
            Column(
                peer, f"{peer}'s couplings, same depth, widths and spread of log-scales: float32{REMARKS[peer]}", ".1e"
            )
            for peer in installed()
        ),
        Column(
            "weights doubled",
            "every parameter times two, float32: the error where finite, the first node that flow.trace finds bad",
        ),
    )
    note = f"{REDRAWN}. Target: float32 at most {TARGET:.0e} at depth {TARGET_DEPTH}."
    return Section("Depth", columns, note=note)


def _depth_row(depth: int, rows: int) -> dict[str, Any]:
    flow = redraw(chain(depth).float()).eval()
    x = torch.randn(rows, 64, dtype=torch.float32)
    row: dict[str, Any] = {"couplings": depth, **_by_dtype(flow, x, None)}
    row |= {"relative": round_trip(flow, x).relative, **_typical_and_limit(flow, x)}
    for peer in installed():
        with quiet():
            row[peer] = round_trip(peer_chain(peer, depth).float(), x).error
    double_weights(flow)
    return row | {"weights doubled": _first_bad(flow, x)}


@torch.no_grad()
def _typical_and_limit(flow: fk.Flow, x: torch.Tensor) -> dict[str, float]:
    back = flow.inverse(flow(x)[0])[0]
    couplings, z = list(copy.deepcopy(flow).double().network.nodes.children()), x.double()
    for coupling in couplings:
        z = coupling(z)[0].float().double()
    for coupling in reversed(couplings):
        z = coupling.inverse(z)[0].float().double()
    return {"typical": (back - x).abs().amax(1).median().item(), "limit": (z - x).abs().max().item()}


def _first_bad(flow: fk.Flow, x: torch.Tensor) -> str:
    result, trace = round_trip(flow, x), flow.trace(x)
    if result.finite:
        bad = trace.first_bad(MISS)
        return f"finite, {result.error:.1e}" + (f"; first node to miss by {MISS}: {bad.name}" if bad else "")
    bad = trace.first_bad(tolerance=float("inf"))
    return f"first node not finite: {bad.name}" if bad else "not finite, though every node alone is"


def _peer_row(counterpart: Counterpart, rows: int) -> dict[str, Any]:
    row: dict[str, Any] = {"op": counterpart.op, "implementation": counterpart.implementation}
    x = torch.randn(rows, *counterpart.shape, dtype=torch.float32)
    try:
        with quiet():
            bijection = random_weights(counterpart).float()
            row |= _by_dtype(bijection, x.clone(), None)
            row["x 10"] = round_trip(bijection, 10 * x).relative
            row["remark"] = "changes its argument" if _changes_argument(bijection, x) else None
    except Exception as error:  # a peer that fails is a finding
        row["remark"] = f"raises {type(error).__name__}: {' '.join(str(error).split())[:60]}"
    return row


def _changes_argument(bijection: fk.Bijection, x: torch.Tensor) -> bool:
    with torch.no_grad():
        given, z = x.clone(), bijection(x.clone())[0]
        bijection(given)
        kept = z.clone()
        bijection.inverse(z)
    return not (torch.equal(given, x) and torch.equal(z, kept))


def _plot(figure: Any, report: Report) -> None:
    sections = {section.title: section for section in report.sections}
    figure.set_size_inches(14, 6)
    axes = figure.subplots(1, 2) if "Depth" in sections else [figure.subplots()]
    ops: dict[str, float] = {}
    for row in sections["Registered bijections"].rows:
        ops[row["bijection"]] = max(ops.get(row["bijection"], 0.0), row["float32"])
    worst_bars(axes[0], ops, 1e-8)
    axes[0].set_xlabel("largest |inverse(forward(x)) - x|, float32, x standard normal")
    axes[0].set_title("Round trip of each bijection, its worst configuration", loc="left", fontsize=10)
    if "Depth" in sections:
        _plot_depth(axes[1], sections["Depth"].rows)


def _plot_depth(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for name in ("float32", "bf16", "float64", *installed()):
        own = name not in installed()
        line(axes, [r["couplings"] for r in rows], [r[name] for r in rows], name if own else f"{name}, float32")
    axes.axhline(TARGET, color=ACCENT, linestyle=":", linewidth=1, label=f"target in float32: {TARGET:g}")
    counts(axes, [row["couplings"] for row in rows])
    axes.set_yscale("log")
    axes.set_xlabel("couplings")
    axes.set_ylabel("largest |inverse(forward(x)) - x|")
    axes.set_title("Round trip by depth", loc="left", fontsize=10)
    legend(axes)
