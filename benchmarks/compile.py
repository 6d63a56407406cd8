"""Compiled flows: compile time by depth, speed against compiled bare subnets, graph breaks, recompilations, memory."""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit.memory import saved_bytes

from ._common import Column, Report, Section, bench_options, ratio
from ._common.agreement import agree
from ._common.allocator import keep_freed_memory
from ._common.breaks import measure_breaks
from ._common.limit import (
    LIMIT_NAME,
    TARGET,
    Bare,
    above_bare,
    bare_step,
    both,
    judged,
    measured,
    train_step,
    without_gradients,
)
from ._common.peers import quiet
from ._common.pictures import ratio_bars
from ._common.stacks import Ours, Peer, Spec, build, stacks

PARTS = ("cold", "vectors", "small", "breaks", "memory")
MIB = 2**20
TRAINING, INVERSE, FORWARD = "training step", "inverse", "forward"
FRUGAL_LIMIT = "bare subnets + one more forward"
TOLERANCE = 1e-4  # of the compiled loss to the eager one, in float32
COLD = """
import json, sys
from flowkit.cli.catalog import BENCHMARKS
print(json.dumps(BENCHMARKS.module("compile").cold(**json.loads(sys.argv[1]))))
"""


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Only this part. May be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved turns.")
@click.option("--cold", "colds", type=click.IntRange(min=1), default=3, show_default=True, help="Cold compilations.")
@click.option("--backend", default="inductor", show_default=True, help="Of torch.compile; --quick takes eager.")
@bench_options
def command(options: Any, only: tuple[str, ...], rounds: int, colds: int, backend: str) -> None:
    """Measure compiled flows."""
    if options.quick:
        rounds, colds, backend = min(rounds, 2), 1, "eager"
    keep_freed_memory()
    report = Report("compile", options, rounds=rounds, cold=colds, backend=backend, only=list(only))
    for name in only or PARTS:
        torch._dynamo.reset()  # torch limits the artifacts of one function
        if name == "cold":
            _cold(report, colds, backend, options.quick)
        elif name == "breaks":
            measure_breaks(report, options.quick)
        elif name == "memory":
            _memory(report, backend, options.quick)
        else:
            (_vectors if name == "vectors" else _small)(report, rounds, backend, options.quick)
    torch._dynamo.reset()
    report.finish(ratio_bars)


# ---------------------------------------------------------------------- compile time


def _cold(report: Report, colds: int, backend: str, quick: bool) -> None:
    depths, hidden = ((1, 2), (8, 8)) if quick else ((8, 32), (128, 128))
    columns = (
        Column("depth", "couplings, MLP, D 64, C 8", "d"),
        Column("training", "seconds of the first forward and backward pass, less a warm one, median", ".2f"),
        Column("inverse", "the same of the inverse", ".2f"),
        Column("ratio", f"of both together to depth {depths[0]}, and its interval of 95 %"),
        TARGET,
    )

    def rows() -> Iterator[dict[str, Any]]:
        found: dict[int, list[dict[str, float]]] = {depth: [] for depth in depths}
        for _ in range(colds):
            for depth in depths:
                found[depth].append(_in_new_process(depth=depth, hidden=hidden, backend=backend))
        totals = {depth: [run["training"] + run["inverse"] for run in runs] for depth, runs in found.items()}
        for depth, runs in found.items():
            row: dict[str, Any] = {"depth": depth}
            row |= {key: statistics.median(run[key] for run in runs) for key in ("training", "inverse")}
            if depth != depths[0]:
                share = ratio(totals[depth], totals[depths[0]])
                row |= {"ratio": share, **judged(share, 1.3)}
            yield row

    note = f"fk.compile, backend {backend}, {colds} times each in a process and a cache directory of its own."
    report.measure(Section("Cold compile time by depth", columns, note=note), rows(), len(depths))


def _in_new_process(**arguments: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        none = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
        environment = {**os.environ, **none, "TORCHINDUCTOR_CACHE_DIR": folder}
        command = [sys.executable, "-c", COLD, json.dumps({**arguments, "threads": torch.get_num_threads()})]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise fk.FlowkitError(f"compiling in a new process failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cold(depth: int, hidden: list[int], backend: str, threads: int) -> dict[str, float]:
    """Seconds that the first training step and the first inverse take longer than the second; for a new process."""
    torch.set_num_threads(threads)
    spec = Spec(depth, (64,), (8,), tuple(hidden))
    flow = fk.compile(build(spec), backend=backend)
    ours, (x, c) = Ours(flow), spec.data(256)
    steps = {
        "training": train_step(flow, lambda: ours.nll(x, c)),
        "inverse": without_gradients(ours.inverse, x, c),
    }
    found = {}
    for name, step in steps.items():
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        found[name] = seconds[0] - seconds[1]
    return found


# ---------------------------------------------------------------------- speed


def _vectors(report: Report, rounds: int, backend: str, quick: bool) -> None:
    depth, batch = (2, 32) if quick else (8, 4096)
    spec = Spec(depth, (64,), (8,), (16, 16) if quick else (128, 128))
    columns = (
        Column("pass", "training step: forward and backward of the NLL; inverse: without gradients"),
        Column(
            "implementation", "all compiled; flowkit by fk.compile, block by block or as a whole, the others as a whole"
        ),
        Column("ms", "median", ".2f"),
        Column("ratio", "to the compiled bare subnets, and its interval of 95 %; reverse: to those and a forward"),
        TARGET,
        Column("remark", "breaks: of the graph"),
    )
    only = ("FrEIA", "nflows") if quick else ()  # zuko takes a minute to compile
    title = f"{depth} affine couplings, D 64, C 8, batch {batch}, compiled"
    note = f"Backend {backend}. Equal weights, results compared before compiling, and losses after."
    report.measure(Section(title, columns, note=note), _vector_rows(spec, batch, rounds, backend, only))


def _vector_rows(spec: Spec, batch: int, rounds: int, backend: str, only: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    flow = build(spec)
    peers = stacks(spec, flow, only=only)
    x, c = spec.data(batch)
    remarks: dict[str, str] = {}
    bare = Bare(flow, x, c)
    step, run = _compiled_bare(bare, backend)
    wanted = Ours(flow).nll(x, c)
    steps = {LIMIT_NAME: step, FRUGAL_LIMIT: both(step, run)}
    inverses = {LIMIT_NAME: run}
    ways = {"flowkit": {}, "flowkit, as a whole": {"whole": True}, "flowkit, reverse": {}}
    for name, options in ways.items():
        twin = Ours(fk.compile(copy.deepcopy(flow), backend=backend, **options))
        if name == "flowkit, reverse":
            twin.flow.backprop = "reverse"
        agree(f"{name}, compiled", "loss", twin.nll(x, c), wanted, TOLERANCE)
        steps[name] = train_step(twin, lambda twin=twin: twin.nll(x, c))
        if twin.flow.backprop == "plain":
            inverses |= {
                name: without_gradients(twin.inverse, x, c),
                f"{name}, no log-det": without_gradients(twin.sample, x, c),
            }
    for name, peer in peers.items():
        for table, made in ((steps, _compiled_step), (inverses, _compiled_sample)):
            call = made(name, peer, x, c, backend, remarks)
            if call is not None:
                table[name] = call
    limits = {"flowkit, reverse": FRUGAL_LIMIT}
    targets = {"flowkit": 1.08, "flowkit, as a whole": 1.08, "flowkit, reverse": 1.15}
    for name, table, aims in ((TRAINING, steps, targets), (INVERSE, inverses, {})):
        for row in measured(table, rounds, limits=limits, targets=aims):
            yield {"pass": name, "remark": remarks.get(row["implementation"]), **row}
        for peer in sorted(set(peers) - set(table)):
            yield {"pass": name, "implementation": peer, "remark": remarks[peer]}


def _compiled_bare(bare: Bare, backend: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward, and forward alone."""
    loss = torch.compile(bare.forward, backend=backend, fullgraph=True)
    forward = torch.compile(lambda: list(bare.outputs()), backend=backend, fullgraph=True)
    agree("compiled bare subnets", "loss", loss(), bare(), TOLERANCE)
    return bare_step(bare, loss), without_gradients(forward)


def _compiled_step(
    name: str, peer: Peer, x: Tensor, c: Tensor | None, backend: str, remarks: dict[str, str]
) -> Callable[[], None] | None:
    compiled = torch.compile(peer.nll, backend=backend)
    call = train_step(peer, lambda: compiled(x, c))
    works = _works(name, call, lambda: agree(name, "loss", compiled(x, c), peer.nll(x, c), TOLERANCE), remarks)
    return call if works else None


def _compiled_sample(
    name: str, peer: Peer, x: Tensor, c: Tensor | None, backend: str, remarks: dict[str, str]
) -> Callable[[], None] | None:
    call = without_gradients(torch.compile(peer.sample, backend=backend), x, c)
    return call if _works(name, call, lambda: _count_breaks(name, peer, x, c, remarks), remarks) else None


def _works(name: str, call: Callable[[], None], then: Callable[[], None], remarks: dict[str, str]) -> bool:
    """Whether a peer runs compiled; what it raises is remarked, and no fault of the benchmark."""
    with quiet():
        try:
            call()
        except Exception as error:
            remarks[name] = f"raises {type(error).__name__} when compiled"
            return False
        then()
    return True


def _count_breaks(name: str, peer: Peer, x: Tensor, c: Tensor | None, remarks: dict[str, str]) -> None:
    explained = torch._dynamo.explain(peer.nll)(x, c)
    if explained.graph_break_count:
        remarks[name] = f"{explained.graph_break_count} breaks"


def _small(report: Report, rounds: int, backend: str, quick: bool) -> None:
    depth, batch, widths = (2, 8, (4,)) if quick else (8, 256, (32, 128))
    columns = (
        Column("hidden", "width of both hidden layers; every block transforms the second half", "d"),
        Column("pass", f"{FORWARD}: without gradients; {TRAINING}: forward and backward of the NLL"),
        Column(
            "implementation", "all compiled; flowkit by fk.compile, block by block or as a whole, the others as a whole"
        ),
        Column("bare", "microseconds that the compiled bare subnets take, for each subnet", ".1f"),
        Column("above", "microseconds above that, for each subnet, medians of the rounds' differences", ".1f"),
        Column("ratio", "of those to the smaller of FrEIA's and nflows', and its interval of 95 %"),
        TARGET,
        Column("remark", ""),
    )
    rows = (
        row
        for hidden in widths
        for row in _small_rows(Spec(depth, (2,), None, (hidden, hidden), "second"), batch, rounds, backend)
    )
    title = f"Small problems, compiled: {depth} subnets, D 2, no condition, batch {batch}"
    report.measure(Section(title, columns, note=f"Backend {backend}. Equal weights, results compared."), rows)


def _small_rows(spec: Spec, batch: int, rounds: int, backend: str) -> Iterator[dict[str, Any]]:
    torch._dynamo.reset()
    flow = build(spec)
    peers = stacks(spec, flow, only=("FrEIA", "nflows"))
    x, c = spec.data(batch)
    bare, remarks = Bare(flow, x, c), {}
    step, run = _compiled_bare(bare, backend)
    twin = Ours(fk.compile(copy.deepcopy(flow), backend=backend))
    whole = Ours(fk.compile(copy.deepcopy(flow), whole=True, backend=backend))
    agree("flowkit, compiled as a whole", "loss", whole.nll(x, c), Ours(flow).nll(x, c), TOLERANCE)
    agree("flowkit, compiled", "loss", twin.nll(x, c), Ours(flow).nll(x, c), TOLERANCE)
    passes = {
        FORWARD: {LIMIT_NAME: run, "flowkit": without_gradients(twin.flow, x)},
        TRAINING: {LIMIT_NAME: step, "flowkit": train_step(twin, lambda: twin.nll(x, c))},
    }
    passes[FORWARD]["flowkit, as a whole"] = without_gradients(whole.flow, x)
    passes[TRAINING]["flowkit, as a whole"] = train_step(whole, lambda: whole.nll(x, c))
    for name, peer in peers.items():
        call = _compiled_step(name, peer, x, c, backend, remarks)
        if call is not None:
            passes[TRAINING][name] = call
            passes[FORWARD][name] = without_gradients(torch.compile(peer, backend=backend), x, c)
    for name, steps in passes.items():
        for row in above_bare(steps, spec.depth, rounds):
            yield {"hidden": spec.hidden[0], "pass": name, "remark": remarks.get(row["implementation"]), **row}


# ---------------------------------------------------------------------- memory


def _memory(report: Report, backend: str, quick: bool) -> None:
    depths, batch, size = ((1, 2), 2, 8) if quick else ((4, 16), 16, 32)
    columns = (
        Column("implementation", "compiled"),
        *[Column(f"depth {depth}", "MiB that autograd keeps, parameters and data left out", ".3f") for depth in depths],
        Column("target", "the same at both depths"),
        Column("remark", ""),
    )
    ways: dict[str, dict[str, Any]] = {
        "flowkit": {},
        "flowkit, reverse": {"backprop": "reverse"},
        "flowkit, reverse, no snapshots": {"backprop": "reverse", "snapshots": 0},
    }

    def rows() -> Iterator[dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = {}
        for depth in depths:
            spec = Spec(depth, (8, size, size), (8, size, size), (8,) if quick else (32,), "second")
            for name, found in _saved(spec, batch, ways, backend):
                row = kept.setdefault(name, {"implementation": name})
                row[f"depth {depth}" if isinstance(found, float) else "remark"] = found
        first, second = (f"depth {depth}" for depth in depths)
        for name, row in kept.items():
            if name.endswith("no snapshots"):
                met = row[second] <= row[first]
                row |= {"met": met, "target": "equal: met" if met else "equal: missed"}
            yield row

    title = f"Saved bytes of compiled convolutional couplings, batch {batch}"
    report.measure(Section(title, columns, note=f"Backend {backend}."), rows())


def _saved(spec: Spec, batch: int, ways: dict[str, dict[str, Any]], backend: str) -> Iterator[tuple[str, float | str]]:
    """Name and MiB of every compiled stack, or what it raises."""
    torch._dynamo.reset()
    flow = build(spec)
    x, c = spec.data(batch)
    losses: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {}
    for name, way in ways.items():
        twin = copy.deepcopy(flow)
        twin.network.snapshots = way.get("snapshots", twin.network.snapshots)
        twin.backprop = way.get("backprop", "plain")
        ours = Ours(fk.compile(twin, backend=backend))
        losses[name] = (twin, lambda ours=ours: ours.nll(x, c))
    for name, peer in stacks(spec, flow, 2, only=("FrEIA",)).items():
        compiled = torch.compile(peer.nll, backend=backend)
        losses[name] = (peer, lambda compiled=compiled: compiled(x, c))
    for name, (module, loss) in losses.items():
        remarks: dict[str, str] = {}
        if _works(name, lambda loss=loss: loss().backward(), lambda: None, remarks):
            yield name, saved_bytes(loss, besides=[*module.parameters(), *module.buffers(), x, c]) / MIB
        else:
            yield name, remarks[name]
