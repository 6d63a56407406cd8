"""Training memory: bytes that autograd keeps and the peak of a step, by mode and depth, beside the peers; and time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit.diagnostics import timings
from flowkit.memory import LiveBytes, saved_bytes

from ._common import Column, Report, Section, bench_options, gradient_error
from ._common.agreement import agree
from ._common.allocator import keep_freed_memory
from ._common.frugal_peers import Checkpointed, Memcnn, ResizedBytes, frugal_peers
from ._common.peers import quiet
from ._common.pictures import counts, legend, line, magnitudes
from ._common.stacks import Spec, build, stacks

SHAPE, CONDITION, HIDDEN = (8, 32, 32), (8, 32, 32), 32
MIB = 2**20
TOLERANCE = 1e-3  # of losses and gradients, in float32
COLUMNS = (
    Column(
        "blocks", f"one-sided affine couplings on {SHAPE} given {CONDITION}, two 3x3 convolutions, {HIDDEN} hidden", "d"
    ),
    Column("gradients", "how they are computed; checkpoint and memcnn around FrEIA's blocks, which know one way"),
    Column("saved", "MiB that autograd keeps for backward, parameters and data left out", ".3f"),
    Column(
        "peak", "MiB created and alive at once in a forward and backward pass, gradients of parameters left out", ".2f"
    ),
    Column("to FrEIA", "that peak over FrEIA's", ".3f"),
    Column("time", "of a forward and backward pass over the plain one's, medians", ".2f"),
    Column("drift", "the largest relative distance of an inverted value from its snapshot", ".0e"),
)


@dataclass(frozen=True)
class Way:
    """A way to compute gradients, as arguments of `fk.Flow`."""

    name: str
    options: dict[str, Any]


WAYS = (
    Way("plain", {"backprop": "plain"}),
    Way("checkpoint", {"backprop": "checkpoint"}),
    Way("reverse", {"backprop": "reverse"}),
    Way("reverse, no snapshots", {"backprop": "reverse", "snapshots": 0}),
    Way("reverse, no snapshots, chunk 1", {"backprop": "reverse", "snapshots": 0, "chunk": 1}),
)


@click.command()
@click.option("--blocks", type=click.IntRange(min=1), multiple=True, default=(4, 16, 64), show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved turns of the timing."
)
@bench_options
def command(options: Any, blocks: tuple[int, ...], batch: int, rounds: int) -> None:
    """Measure training memory, by mode and depth.

    Bytes are counted, not read off an allocator: they are the same on every machine.
    """
    if options.quick:
        blocks, batch, rounds = (2, 4), 2, 1
    keep_freed_memory()
    report = Report("memory", options, blocks=blocks, batch=batch, rounds=rounds)
    if any(depth % 2 for depth in blocks):
        raise click.BadParameter("FrEIA's blocks transform both halves: --blocks must be even.")
    note = (
        "Equal weights: z, log-det and the way back were compared with a plain formula before measuring. "
        "FrEIA's blocks transform both halves, so half as many do the same."
    )
    section = Section(f"Gradients of a chain of convolutional couplings, batch {batch}", COLUMNS, note=note)
    report.measure(section, _rows(blocks, batch, rounds))
    few = {"depths": (2, 9), "seeds": 3, "steps": 2} if options.quick else {}
    errors = Section("Errors of float32 gradients", gradient_error.COLUMNS)
    report.measure(errors, gradient_error.rows(**few), gradient_error.count(few.get("depths", gradient_error.DEPTHS)))
    report.finish(_plot)


def _rows(blocks: tuple[int, ...], batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    for depth in blocks:
        spec = Spec(depth, SHAPE, CONDITION, (HIDDEN,))
        flow, (x, c) = build(spec), spec.data(batch)
        steps, measured, loss = {}, [], -flow.log_prob(x, given=c).mean()
        for way in WAYS:
            ours = _ours(flow, way, x, c)
            measured.append(_measure(way.name, ours, flow, [x, c]))
            steps[way.name] = _step(ours, flow)
        with quiet():
            peers: dict[str, Any] = stacks(spec, flow, 2)
            if "FrEIA" in peers:
                peers |= frugal_peers(peers["FrEIA"])
                _same(
                    peers["FrEIA"],
                    {n: p for n, p in peers.items() if n.startswith("FrEIA,")},
                    x,
                    c,
                    loss,
                    math.prod(SHAPE),
                )
            for name, peer in peers.items():
                theirs = _theirs(peer, x, c)
                measured.append(_measure(name, theirs, peer, [x, c]))
                steps[name] = _step(theirs, peer)
        freia = [row["peak"] for row in measured if row["gradients"] == "FrEIA"]
        medians = {name: statistics.median(series) for name, series in timings(steps, rounds=rounds, warm_up=1).items()}
        for row in measured:
            share = {"to FrEIA": row["peak"] / freia[0]} if freia else {}
            yield {"blocks": depth, **row, **share, "time": medians[row["gradients"]] / medians["plain"]}


def _same(freia: Any, wrapped: dict[str, Any], x: Tensor, c: Tensor, loss: Tensor, dim: int) -> None:
    """The frugal forms of FrEIA's blocks give flowkit's loss, and FrEIA's gradients."""
    constant = 0.5 * math.log(2 * math.pi) * dim
    _step(_theirs(freia, x, c), freia)()
    wanted = torch.cat([p.grad.flatten() for p in freia.parameters()])
    for name, peer in wrapped.items():
        agree(name, "loss", peer.nll(x, c) + constant, loss, TOLERANCE)
        _step(_theirs(peer, x, c), peer)()
        agree(name, "gradient", torch.cat([p.grad.flatten() for p in peer.parameters()]), wanted, TOLERANCE)


def _theirs(peer: Any, x: Tensor, c: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with quiet():  # memcnn calls what torch has deprecated
            return peer.nll(x, c)

    return loss


def _ours(flow: fk.Flow, way: Way, x: Tensor, c: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        # One flow serves all ways, which differ in nothing but this.
        flow.network.snapshots, flow.network.chunk = way.options.get("snapshots", 8), way.options.get("chunk")
        flow.backprop = way.options["backprop"]
        return -flow.log_prob(x, given=c).mean()

    return loss


def _step(loss: Callable[[], Tensor], module: nn.Module) -> Callable[[], None]:
    def step() -> None:
        module.zero_grad()
        with quiet():
            loss().backward()

    return step


def _measure(name: str, loss: Callable[[], Tensor], module: nn.Module, data: list[Tensor]) -> dict[str, Any]:
    step = _step(loss, module)
    step()  # what is made once is not counted
    module.zero_grad()
    gradients = sum(p.numel() * p.element_size() for p in module.parameters())
    counter: Any = ResizedBytes() if isinstance(module, Memcnn) else LiveBytes()
    with counter:
        step()
    inverted = isinstance(module, fk.Flow) and module.backprop == "reverse" and module.network.snapshots
    drift = module.drift if inverted else None
    known = [*data, *module.parameters(), *module.buffers()]
    # torch's checkpointing and memcnn hold tensors where the hooks of autograd do not see them.
    saved = None if isinstance(module, Checkpointed | Memcnn) else saved_bytes(loss, besides=known) / MIB
    return {"gradients": name, "saved": saved, "peak": (counter.peak - gradients) / MIB, "drift": drift}


def _plot(figure: Any, report: Report) -> None:
    axes, rows = figure.subplots(), report.sections[0].rows
    for name in dict.fromkeys(row["gradients"] for row in rows):
        mine = [row for row in rows if row["gradients"] == name]
        line(axes, [r["blocks"] for r in mine], [r["peak"] for r in mine], name)
    counts(axes, [row["blocks"] for row in rows])
    magnitudes(axes)
    axes.set_xlabel("blocks")
    axes.set_ylabel("peak of a training step, MiB")
    axes.set_title(report.sections[0].title, loc="left", fontsize=11)
    legend(axes)
