"""Training and inverse against the physical limit, the bare subnets, beside every installed toolkit."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit.diagnostics import timings
from flowkit.memory import saved_bytes

from ._common import Column, Ratio, Report, Section, bench_options, colorization, ratio, stacked
from ._common.agreement import agree
from ._common.allocator import keep_freed_memory
from ._common.limit import (
    LIMIT_NAME,
    TARGET,
    Bare,
    above_bare,
    bare_run,
    bare_step,
    both,
    judged,
    measured,
    train_step,
    without_gradients,
)
from ._common.peers import installed
from ._common.pictures import ratio_bars
from ._common.published import FreiaTwin, check_forms, concatenated, small_network
from ._common.stacks import Ours, Peer, Spec, build, stacks

PARTS = ("vectors", "small", "convolutions", "colorization")
MIB = 2**20
TRAINING, INVERSE, FORWARD = "training step", "inverse", "forward"
FRUGAL_LIMIT = "bare subnets + one more forward"
MODES = ("checkpoint", "reverse")
GRADIENT_TOLERANCE = 1e-3  # float32
TOO_SLOW = 5  # times the published form, where a processor computes in bfloat16 by way of float32
REDUCED = 0.05  # bfloat16 in the subnets: relative to the largest value
EQUAL = (
    "Equal weights in all: z, log-det and the way back were compared before timing, each toolkit with its own clamp. "
    "FrEIA's couplings transform both halves in one block; normflows' are its inverse direction; zuko's inverse "
    "leaves out the log-det, as its sampling does."
)
WAYS = (
    Column("pass", "training step: forward and backward of the NLL; inverse: without gradients"),
    Column("implementation", "bare subnets: the same nets on equal tensors, nothing else"),
    Column("ms", "median", ".2f"),
    Column("ratio", "to the bare subnets, and its interval of 95 %; checkpoint and reverse: to those and a forward"),
    TARGET,
)


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Only this part. May be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved turns.")
@bench_options
def command(options: Any, only: tuple[str, ...], rounds: int) -> None:
    """Measure time against the bare subnets, and beside other toolkits."""
    rounds = min(rounds, 2) if options.quick else rounds
    keep_freed_memory()
    report = Report("speed", options, rounds=rounds, only=list(only))
    parts: dict[str, Callable[[Report, int, bool], None]] = {
        "vectors": _vectors,
        "small": _small,
        "convolutions": _convolutions,
        "colorization": _colorization,
    }
    for name in only or PARTS:
        if name != "colorization" or colorization.is_available():
            parts[name](report, rounds, options.quick)
    report.finish(ratio_bars)


# ---------------------------------------------------------------------- stacks


def _vectors(report: Report, rounds: int, quick: bool) -> None:
    depth, batch = (2, 32) if quick else (8, 4096)
    spec = Spec(depth, (64,), (8,), (16, 16) if quick else (128, 128))
    title = f"{depth} affine couplings, MLP {' x '.join(map(str, spec.hidden))}, D 64, C 8, batch {batch}"
    rows = _stack_rows(spec, batch, rounds, {"flowkit": 1.3}, {"flowkit": 1.5})
    report.measure(Section(title, WAYS, note=EQUAL), rows)


def _convolutions(report: Report, rounds: int, quick: bool) -> None:
    depth, size, batch = (2, 8, 2) if quick else (8, 32, 16)
    spec = Spec(depth, (8, size, size), (8, size, size), (8,) if quick else (32,))
    title = f"{depth} convolutional couplings on {spec.shape} given {spec.condition}, 3 x 3, {spec.hidden[0]} hidden"
    rows = _stack_rows(spec, batch, rounds, {"flowkit, reverse": 1.10}, {})
    report.measure(Section(f"{title}, batch {batch}", WAYS, note=EQUAL), rows)


def _stack_rows(
    spec: Spec, batch: int, rounds: int, training: dict[str, float], inverse: dict[str, float]
) -> Iterator[dict[str, Any]]:
    flow = build(spec)
    peers = stacks(spec, flow)
    x, c = spec.data(batch)
    bare, ours = Bare(flow, x, c), Ours(flow)
    step = bare_step(bare)
    steps = {LIMIT_NAME: step, FRUGAL_LIMIT: both(step, bare_run(bare))}
    steps["flowkit"] = train_step(flow, lambda: ours.nll(x, c))
    limits = {LIMIT_NAME: LIMIT_NAME, FRUGAL_LIMIT: FRUGAL_LIMIT}
    for mode in MODES:
        twin = Ours(copy.deepcopy(flow))
        twin.flow.backprop = mode
        steps[name := f"flowkit, {mode}"] = train_step(twin, lambda twin=twin: twin.nll(x, c))
        limits[name] = FRUGAL_LIMIT
        _same_gradients(name, steps["flowkit"], flow, steps[name], twin)
    steps |= {name: train_step(peer, lambda peer=peer: peer.nll(x, c)) for name, peer in peers.items()}
    yield from ({"pass": TRAINING, **row} for row in measured(steps, rounds, limits=limits, targets=training))
    with torch.no_grad():
        z = ours(x, c)[0]
    steps = {LIMIT_NAME: bare_run(bare), "flowkit": without_gradients(ours.inverse, z, c)}
    steps["flowkit, no log-det"] = without_gradients(ours.sample, z, c)
    steps |= {name: without_gradients(peer.sample, z, c) for name, peer in peers.items()}
    yield from ({"pass": INVERSE, **row} for row in measured(steps, rounds, targets=inverse))


def _same_gradients(name: str, step: Callable[[], None], plain: nn.Module, other: Callable[[], None], twin: nn.Module):
    step()
    other()
    found, wanted = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (twin, plain))
    agree(name, "gradient", found, wanted, GRADIENT_TOLERANCE)


# ---------------------------------------------------------------------- small problems


def _small(report: Report, rounds: int, quick: bool) -> None:
    depth, batch, widths = (2, 8, (4,)) if quick else (8, 256, (32, 128))
    columns = (
        Column("sides", "one: each block transforms the second half; both: each block transforms both halves"),
        Column("hidden", "width of both hidden layers", "d"),
        Column("pass", f"{FORWARD}: without gradients; {TRAINING}: forward and backward of the NLL"),
        Column("implementation", ""),
        Column("bare", "microseconds that the bare subnets take, for each subnet", ".1f"),
        Column("above", "microseconds above that, for each subnet, medians of the rounds' differences", ".1f"),
        Column("ratio", "of those to the smaller of FrEIA's and nflows', and its interval of 95 %"),
        TARGET,
    )
    rows = (
        row
        for sides in ("second", "both")
        for hidden in widths
        for row in _small_rows(Spec(depth, (2,), None, (hidden, hidden), sides), batch, rounds)
    )
    title = f"Small problems, eager: {depth} subnets, D 2, no condition, batch {batch}"
    report.measure(Section(title, columns, note=EQUAL), rows)


def _small_rows(spec: Spec, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    flow = build(spec)
    peers: dict[str, Peer] = stacks(spec, flow)
    x, c = spec.data(batch)
    bare, ours = Bare(flow, x, c), Ours(flow)
    passes: dict[str, dict[str, Callable[[], None]]] = {
        FORWARD: {
            LIMIT_NAME: bare_run(bare),
            "flowkit": without_gradients(flow, x),
            **{name: without_gradients(peer, x, c) for name, peer in peers.items()},
        },
        TRAINING: {
            LIMIT_NAME: bare_step(bare),
            "flowkit": train_step(flow, lambda: ours.nll(x, c)),
            **{name: train_step(peer, lambda peer=peer: peer.nll(x, c)) for name, peer in peers.items()},
        },
    }
    fixed = {"sides": "both" if spec.sides == "both" else "one", "hidden": spec.hidden[0]}
    for name, steps in passes.items():
        for row in above_bare(steps, spec.depth, rounds):
            yield {**fixed, "pass": name, **row}


# ---------------------------------------------------------------------- the colorization network


def _colorization(report: Report, rounds: int, quick: bool) -> None:
    (flow, size), batch = small_network(quick), 2 if quick else 16
    ab, photo = torch.randn(batch, 2, size, size), torch.randn(batch, 1, size, size)
    columns = (
        Column("implementation", "bare subnets include the conditioning net; published: float32, contiguous"),
        *WAYS[2:3],
        Column(
            "ratio",
            "to the bare subnets of its form (checkpoint and reverse: and one more forward), with its interval; the "
            "last three: to flowkit's published form",
        ),
        TARGET,
    )
    title = f"The small colorization network, {size} x {size}, batch {batch}: a training step"
    note = (
        "Equal weights, z and log-det compared before timing; with bfloat16 to 5 %. What takes more than "
        f"{TOO_SLOW} times the published form on two rows (bfloat16 on a processor without it) is timed once, on those."
    )
    report.measure(Section(title, columns, note=note), _colorization_rows(flow, ab, photo, rounds))
    columns = (
        Column("subnets", "of the network above, on features that are given"),
        *WAYS[2:3],
        Column("ratio", "of the time to concatenation, and its interval of 95 %"),
        TARGET,
        Column("saved", "MiB that autograd keeps, parameters and data left out", ".1f"),
        Column("saved ratio", "of those bytes to concatenation", ".3f"),
        Column("saved target", "of that ratio"),
    )
    section = Section(f"Image training: conditions split off or concatenated, batch {batch}", columns)
    report.measure(section, _split_rows(flow, ab, photo, rounds), 2)
    section = Section(f"The conditions' parts of all blocks stacked, batch {batch}", stacked.COLUMNS)
    report.measure(section, stacked.rows(flow, ab, photo, rounds))


def _colorization_rows(flow: fk.Flow, ab: Tensor, photo: Tensor, rounds: int) -> Iterator[dict[str, Any]]:
    published = concatenated(flow)
    forms: dict[str, Any] = {"flowkit, published form": published}
    if "FrEIA" in installed():
        forms["FrEIA, published form"] = FreiaTwin(flow)
    check_forms(flow, forms, ab[:2], photo[:2])
    bare, bare_published = Bare(flow, ab, photo), Bare(published, ab, photo)
    steps = {
        LIMIT_NAME: bare_step(bare),
        f"{LIMIT_NAME}, published form": bare_step(bare_published),
        "flowkit": train_step(flow, lambda: -flow.log_prob(ab, given=photo).mean()),
    }
    steps[FRUGAL_LIMIT] = both(steps[LIMIT_NAME], bare_run(bare))
    limits = {FRUGAL_LIMIT: LIMIT_NAME, "flowkit, published form": f"{LIMIT_NAME}, published form"}
    for mode in MODES:
        twin = copy.deepcopy(flow)
        twin.backprop = mode
        limits[name := f"flowkit, {mode}"] = FRUGAL_LIMIT
        steps[name] = train_step(twin, lambda twin=twin: -twin.log_prob(ab, given=photo).mean())
        _same_gradients(name, steps["flowkit"], flow, steps[name], twin)
    steps["flowkit, published form"] = train_step(published, lambda: -published.log_prob(ab, given=photo).mean())
    if "FrEIA, published form" in forms:
        twin = forms["FrEIA, published form"]
        steps["FrEIA, published form"] = train_step(twin, lambda: twin.nll(ab, photo))
        limits["FrEIA, published form"] = f"{LIMIT_NAME}, published form"
    reduced = {
        "flowkit, bfloat16": (torch.bfloat16, torch.contiguous_format),
        "flowkit, channels_last": (torch.float32, torch.channels_last),
        "flowkit, channels_last, bfloat16": (torch.bfloat16, torch.channels_last),
    }
    targets = {"flowkit": 1.02, "flowkit, reverse": 1.10, "flowkit, channels_last, bfloat16": 0.4}
    slow = {name: _far_too_slow(name, flow, published, ab[:2], photo[:2], *form) for name, form in reduced.items()}
    for name, form in reduced.items():
        if slow[name] is None:
            steps[name] = _in_format(name, flow, ab, photo, *form)
    series = timings(steps, rounds=rounds)
    for name, seconds in series.items():
        row: dict[str, Any] = {"implementation": name, "ms": statistics.median(seconds) * 1e3}
        limit = "flowkit, published form" if name in reduced else limits.get(name, LIMIT_NAME)
        if name != LIMIT_NAME:
            found = ratio(seconds, series[limit])
            row |= {"ratio": found, **judged(found, targets.get(name))}
        yield row
    for name, found in slow.items():
        if found is not None:
            yield {"implementation": f"{name}, two rows, once", "ratio": found, **judged(found, targets.get(name))}


def _far_too_slow(
    name: str, flow: fk.Flow, published: fk.Flow, ab: Tensor, photo: Tensor, dtype: torch.dtype, layout: Any
) -> Ratio | None:
    """The ratio to the published form where it is so large that it can be seen from one step on few rows."""
    steps = {"form": _in_format(name, flow, ab, photo, dtype, layout)}
    steps["published"] = train_step(published, lambda: -published.log_prob(ab, given=photo).mean())
    steps["published"]()
    seconds = {key: _seconds(step) for key, step in steps.items()}
    found = ratio([seconds["form"]], [seconds["published"]])
    return found if found.value > TOO_SLOW else None


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _in_format(
    name: str, flow: fk.Flow, ab: Tensor, photo: Tensor, dtype: torch.dtype, layout: torch.memory_format
) -> Callable[[], None]:
    twin = copy.deepcopy(flow).to(memory_format=layout)
    x, given = ab.to(memory_format=layout), photo.to(memory_format=layout)

    def loss() -> Tensor:
        with torch.autocast(ab.device.type, dtype, enabled=dtype != torch.float32):
            return -twin.log_prob(x, given=given).mean()

    with torch.no_grad(), torch.autocast(ab.device.type, dtype, enabled=dtype != torch.float32):
        agree(name, "z", twin(x, given)[0], flow(ab, photo)[0], REDUCED)
    return train_step(twin, loss)


def _split_rows(flow: fk.Flow, ab: Tensor, photo: Tensor, rounds: int) -> Iterator[dict[str, Any]]:
    forms = {"concatenated": Bare(concatenated(flow), ab, photo, features=False)}
    forms["split"] = Bare(flow, ab, photo, features=False)
    for mine, theirs in zip(forms["split"].outputs(), forms["concatenated"].outputs(), strict=True):
        agree("split conditions", "output of a subnet", mine, theirs, GRADIENT_TOLERANCE)
    saved = {name: saved_bytes(bare, besides=bare.given_tensors) for name, bare in forms.items()}
    steps = {name: bare_step(bare) for name, bare in forms.items()}
    for row in measured(steps, rounds, targets={"split": 0.97}, label="subnets"):
        row["saved"] = saved[row["subnets"]] / MIB
        if row["subnets"] == "split":
            share = saved["split"] / saved["concatenated"]
            row |= {"saved ratio": share, "saved target": f"<= 0.6: {'met' if share <= 0.6 else 'missed'}"}
        yield row
