"""Training memory: bytes that autograd keeps and the peak of a step, by mode and depth, beside FrEIA; and the time."""

from __future__ import annotations

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

from ._common import Column, Report, Section, bench_options
from ._common.allocator import keep_freed_memory
from ._common.peers import installed, quiet

SHAPE, CONDITION, HIDDEN = (8, 32, 32), (8, 32, 32), 32
MIB = 2**20
COLUMNS = (
    Column(
        "blocks", f"one-sided affine couplings on {SHAPE} given {CONDITION}, two 3x3 convolutions, {HIDDEN} hidden", "d"
    ),
    Column("gradients", "how they are computed; FrEIA knows one way"),
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
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of the timing.")
@bench_options
def command(options: Any, blocks: tuple[int, ...], batch: int, rounds: int) -> None:
    """Measure training memory, by mode and depth.

    Bytes are counted, not read off an allocator: they are the same on every machine.
    """
    if options.quick:
        blocks, batch, rounds = (2, 4), 2, 1
    keep_freed_memory()
    report = Report("memory", options, blocks=blocks, batch=batch, rounds=rounds)
    section = Section(f"Gradients of a chain of convolutional couplings, batch {batch}", COLUMNS)
    report.measure(section, _rows(blocks, batch, rounds), len(blocks) * (len(WAYS) + 1))
    report.finish(_plot)


def _rows(blocks: tuple[int, ...], batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    x, c = torch.randn(batch, *SHAPE), torch.randn(batch, *CONDITION)
    for depth in blocks:
        flow, steps, measured = chain(depth), {}, []
        for way in WAYS:
            loss = _ours(flow, way, x, c)
            measured.append(_measure(way.name, loss, flow, [x, c]))
            steps[way.name] = _step(loss, flow)
        if "FrEIA" in installed():
            with quiet():
                peer = FreiaChain(depth)
            measured.append(_measure("FrEIA", lambda peer=peer: peer.nll(x, c), peer, [x, c]))
            steps["FrEIA"] = _step(lambda peer=peer: peer.nll(x, c), peer)
            for row in measured:
                row["to FrEIA"] = row["peak"] / measured[-1]["peak"]
        medians = {name: statistics.median(series) for name, series in timings(steps, rounds=rounds, warm_up=1).items()}
        for row in measured:
            yield {"blocks": depth, **row, "time": medians[row["gradients"]] / medians["plain"]}


def chain(depth: int) -> fk.Flow:
    """The chain, its weights moved away from the identity."""
    graph = fk.Graph()
    c, x = graph.condition("c", CONDITION), graph.input("x", SHAPE)
    for i in range(depth):
        x = graph.add(
            fk.AffineCoupling, x, given=c, subnet=fk.ConvNet(hidden=HIDDEN), active=("second", "first")[i % 2]
        )
    graph.output("z", x)
    flow = fk.Flow(graph)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return flow


class FreiaChain(nn.Module):
    """The same chain of FrEIA's couplings, the halves exchanged in between."""

    def __init__(self, depth: int):
        super().__init__()
        from FrEIA.modules import AffineCouplingOneSided

        def subnet(c_in: int, c_out: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(c_in, HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(HIDDEN, c_out, 3, padding=1)
            )

        self.blocks = nn.ModuleList(
            AffineCouplingOneSided([SHAPE], dims_c=[CONDITION], subnet_constructor=subnet) for _ in range(depth)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.1)

    def nll(self, x: Tensor, c: Tensor) -> Tensor:
        """The mean negative log-likelihood."""
        total = x.new_zeros(len(x))
        for block in self.blocks:
            (x,), log_det = block((x,), c=[c])
            x, total = x.flip(1), total + log_det
        return (0.5 * x.square().sum((1, 2, 3)) - total).mean()


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
        loss().backward()

    return step


def _measure(name: str, loss: Callable[[], Tensor], module: nn.Module, data: list[Tensor]) -> dict[str, Any]:
    step = _step(loss, module)
    step()  # what is made once is not counted
    module.zero_grad()
    gradients = sum(p.numel() * p.element_size() for p in module.parameters())
    with LiveBytes() as counter:
        step()
    inverted = isinstance(module, fk.Flow) and module.backprop == "reverse" and module.network.snapshots
    drift = module.drift if inverted else None
    saved = saved_bytes(loss, besides=[*data, *module.parameters(), *module.buffers()])
    return {"gradients": name, "saved": saved / MIB, "peak": (counter.peak - gradients) / MIB, "drift": drift}


def _plot(figure: Any, report: Report) -> None:
    axes, rows = figure.subplots(), report.sections[0].rows
    for name in dict.fromkeys(row["gradients"] for row in rows):
        mine = [row for row in rows if row["gradients"] == name]
        axes.plot([r["blocks"] for r in mine], [r["peak"] for r in mine], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("blocks")
    axes.set_ylabel("peak of a step, MiB")
    axes.set_title(report.sections[0].title, loc="left", fontsize=11)
    axes.legend(frameon=False)
