"""What rational-quadratic couplings cost beyond their subnets, beside nflows' in the same run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn

import flowkit as fk

from ._common import Column, Report, Section, bench_options
from ._common.limit import (
    LIMIT_NAME,
    TARGET,
    Bare,
    bare_run,
    bare_step,
    measured,
    train_step,
    without_gradients,
)
from ._common.peers import installed, quiet
from ._common.pictures import ratio_bars

DIM, CONDITIONS, HIDDEN, BATCH, DEPTH, BINS = 64, 8, (128, 128), 4096, 8, 8
EAGER_TRAINING, EAGER_INVERSE, COMPILED = 2.0, 2.5, 1.3
COMPILED_LIMIT = "bare subnets, compiled"
TRAINING, INVERSE = "forward and backward", "inverse"


@click.command()
@click.option("--bins", type=click.IntRange(min=2), default=BINS, show_default=True, help="Of each spline.")
@click.option("--depth", type=click.IntRange(min=1), default=DEPTH, show_default=True, help="Couplings.")
@click.option("--batch", type=click.IntRange(min=1), default=BATCH, show_default=True, help="Rows.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved turns.")
@click.option("--compiled/--eager", default=True, show_default=True, help="Also measure what torch.compile makes.")
@bench_options
def command(options: Any, bins: int, depth: int, batch: int, rounds: int, compiled: bool) -> None:
    """Measure rational-quadratic couplings against their bare subnets and nflows'."""
    hidden, dim = HIDDEN, DIM
    if options.quick:
        depth, batch, rounds, hidden, dim, compiled = 1, 16, 2, (8,), 4, False
    report = Report("splines", options, bins=bins, depth=depth, batch=batch, rounds=rounds)
    columns = (
        Column("pass", ""),
        Column("implementation", ""),
        Column("ms", "median", ".1f"),
        Column("ratio", "of the time to the bare subnets', those compiled for what is compiled, and its 95 % interval"),
        TARGET,
    )
    note = "Weights are drawn apart; that a spline equals nflows' number by number is a test."
    title = f"{depth} couplings, {bins} bins, {dim} dimensions, {CONDITIONS} conditions, hidden {hidden}, batch {batch}"
    rows = _rows(bins, depth, batch, rounds, hidden, dim, compiled)
    report.measure(Section(title, columns, note=note), rows)
    report.finish(ratio_bars)


def _flow(bins: int, depth: int, hidden: tuple[int, ...], dim: int) -> fk.Flow:
    graph = fk.Graph()
    y, x = graph.condition("y", (CONDITIONS,)), graph.input("x", (dim,))
    for layer in range(depth):
        side = ("second", "first")[layer % 2]
        x = graph.add(fk.SplineCoupling, x, given=y, subnet=fk.MLP(hidden=hidden), bins=bins, active=side)
    graph.output("z", x)
    flow = fk.Flow(graph)
    with torch.no_grad():  # the last layers start at zero, as the identity
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow


def _rows(
    bins: int, depth: int, batch: int, rounds: int, hidden: tuple[int, ...], dim: int, compiled: bool
) -> Iterator[dict[str, Any]]:
    flow = _flow(bins, depth, hidden, dim)
    x, y = torch.randn(batch, dim), torch.randn(batch, CONDITIONS)
    bare = Bare(flow, x, y)

    def nll(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: -model.log_prob(x, given=y).mean()  # type: ignore[operator]

    training = {LIMIT_NAME: bare_step(bare), "flowkit": train_step(flow, nll(flow))}
    with torch.no_grad():
        z = flow(x, given=y)[0]
    inverse = {LIMIT_NAME: bare_run(bare), "flowkit": without_gradients(flow.inverse, z, y)}
    targets = {"flowkit": EAGER_TRAINING}, {"flowkit": EAGER_INVERSE}
    limits: dict[str, str] = {}
    if "nflows" in installed():
        peer = _nflows(bins, depth, hidden, dim)
        training["nflows"] = train_step(peer, lambda: -peer.log_prob(x, context=y).mean())
        inverse["nflows"] = without_gradients(peer._transform.inverse, z, y)
    if compiled:
        fast, fast_bare = copy.deepcopy(flow), torch.compile(bare)
        fk.compile(fast)
        training[COMPILED_LIMIT] = bare_step(bare, fast_bare)
        training["flowkit, compiled"] = train_step(fast, nll(fast))
        inverse[COMPILED_LIMIT] = without_gradients(fast_bare)
        inverse["flowkit, compiled"] = without_gradients(fast.inverse, z, y)
        limits["flowkit, compiled"] = COMPILED_LIMIT
        for each in targets:
            each["flowkit, compiled"] = COMPILED
    yield from ({"pass": TRAINING, **row} for row in measured(training, rounds, limits=limits, targets=targets[0]))
    yield from ({"pass": INVERSE, **row} for row in measured(inverse, rounds, limits=limits, targets=targets[1]))


class _Net(nn.Module):
    """The subnet that nflows' coupling calls, the condition concatenated."""

    def __init__(self, c_in: int, c_out: int, hidden: tuple[int, ...]):
        super().__init__()
        self.hidden_features = hidden[-1]  # by whose root nflows divides what goes into its softmax
        widths = (c_in + CONDITIONS, *hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], c_out))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.layers(torch.cat((x, context), 1))


def _nflows(bins: int, depth: int, hidden: tuple[int, ...], dim: int) -> Any:
    with quiet():
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
    parts = []
    for layer in range(depth):
        mask = (torch.arange(dim) < dim // 2).int() if layer % 2 else (torch.arange(dim) >= dim // 2).int()
        parts.append(
            PiecewiseRationalQuadraticCouplingTransform(
                mask, lambda c_in, c_out: _Net(c_in, c_out, hidden), num_bins=bins, tails="linear", tail_bound=3.0
            )
        )
    return Flow(CompositeTransform(parts), StandardNormal([dim]))
