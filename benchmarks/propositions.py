"""The paper's two propositions, measured: what a jointly trained conditioning net knows, and whether q is p(x | y)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn

import flowkit as fk

from ._common import Column, Report, Section, bench_options
from ._common.pictures import ACCENT, OWN
from ._common.posteriors import GaussianMixture, LinearGaussian, deviation_bound, rank_deviation, ranks

FEATURES = 2  # of the conditioning net: as many as a sufficient statistic of the linear-Gaussian problem has
HIDDEN, BLOCKS, BATCH = 64, 8, 512
HELD_OUT, CALIBRATED, SAMPLES = 20_000, 1000, 99
KL_TARGET = 0.02  # nats
JOINT, FIXED, NONE = "trained jointly", "fixed at its random start", "none: y itself"


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True, help="Training steps of each.")
@bench_options
def command(options: Any, steps: int) -> None:
    """Measure the information in a conditioning net's features, and how near a flow comes to known posteriors."""
    steps, count = (2, 200) if options.quick else (steps, HELD_OUT)
    report = Report("propositions", options, steps=steps, held_out=count)
    _information(report, steps, count, options.seed)
    _posteriors(report, steps, count, options.seed)
    report.finish(_plot)


def build(problem: Any, net: nn.Module | None) -> fk.Flow:
    """A small conditional flow for x, given y or the features that `net` makes of it."""
    graph = fk.Graph()
    given: Any = graph.condition("y", (problem.observed,))
    if net is not None:
        given = graph.features(net, given)
    x = graph.input("x", (problem.size,))
    net_inside = fk.MLP(hidden=(HIDDEN, HIDDEN), activation="silu")
    for _ in range(BLOCKS):
        # Separate modes need steep scales, and axes that change: one-sided couplings under tanh came to 0.08 nats.
        x = graph.add(fk.AffineCoupling, x, given=given, subnet=net_inside, two_sided=True, clamp="softsign", limit=3.0)
        x = graph.add(fk.FixedRotation, x)
    x = graph.add(fk.ElementwiseAffine, x)
    graph.output("z", x)
    return fk.Flow(graph)


def conditioning_net(observed: int) -> nn.Module:
    """A small feed-forward net with a bottleneck."""
    return nn.Sequential(nn.Linear(observed, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES))


def train(flow: fk.Flow, problem: Any, steps: int) -> fk.Flow:
    """Maximum likelihood on fresh pairs."""
    optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, y = problem.sample(BATCH)
        loss = -flow.log_prob(x, given=y).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return flow.eval()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def _information(report: Report, steps: int, count: int, seed: int) -> None:
    problem = LinearGaussian()
    columns = (
        Column("conditioning net", f"{problem.observed} observations to {FEATURES} features"),
        Column(
            "information", "E[log q(x | phi(y))] - E[log p(x)], held out: a lower bound of I(x, phi(y)), nats", ".4f"
        ),
        Column("error", "standard error of that mean", ".4f"),
        Column("share", "of I(x, y), the most that any features can have", ".3f"),
    )
    title = f"Proposition 1: {problem.name}, I(x, y) = {problem.information:.4f} nats"
    report.measure(Section(title, columns), _information_rows(problem, steps, count, seed), 3)


def _information_rows(problem: LinearGaussian, steps: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for name in (JOINT, FIXED, NONE):
        torch.manual_seed(seed)
        net = None if name == NONE else conditioning_net(problem.observed)
        if net is not None:
            net.requires_grad_(name == JOINT)
        flow = train(build(problem, net), problem, steps)
        torch.manual_seed(seed + 1)  # the same held-out pairs for all
        x, y = problem.sample(count)
        with torch.no_grad():
            gained = flow.log_prob(x, given=y) - problem.log_prior(x)
        mean, error = mean_and_error(gained)
        yield {"conditioning net": name, "information": mean, "error": error, "share": mean / problem.information}


def _posteriors(report: Report, steps: int, count: int, seed: int) -> None:
    bound = deviation_bound(CALIBRATED)
    columns = (
        Column("posterior", ""),
        Column("KL", "E[log p(x | y) - log q(x | y)], held out, nats", ".4f"),
        Column("error", "standard error of that mean", ".4f"),
        Column("target", f"met where KL is below {KL_TARGET} nats"),
        Column(
            "calibration",
            f"largest deviation of x's ranks among {SAMPLES} samples of q from uniform, over dimensions",
            ".4f",
        ),
        Column(
            "bound", f"{bound:.4f}: what exact samples stay below for 99 of 100 seeds, {CALIBRATED} pairs, a dimension"
        ),
    )
    title = f"Proposition 2: known posteriors, {BLOCKS} two-sided affine couplings"
    report.measure(Section(title, columns), _posterior_rows(steps, count, seed, bound), 2)


def _posterior_rows(steps: int, count: int, seed: int, bound: float) -> Iterator[dict[str, Any]]:
    for problem in (LinearGaussian(), GaussianMixture()):
        torch.manual_seed(seed)
        flow = train(build(problem, None), problem, steps)
        x, y = problem.sample(count)
        with torch.no_grad():
            divergence = problem.log_posterior(x, y) - flow.log_prob(x, given=y)
        mean, error = mean_and_error(divergence)
        x, y = problem.sample(CALIBRATED)
        rank = ranks(x, flow.sample((SAMPLES,), given=y))
        deviation = max(rank_deviation(rank[:, dim], SAMPLES) for dim in range(problem.size))
        yield {
            "posterior": problem.name,
            "KL": mean,
            "error": error,
            "target": "met" if mean < KL_TARGET else "missed",
            "calibration": deviation,
            "bound": "kept" if deviation < bound else "exceeded",
        }


def _plot(figure: Any, report: Report) -> None:
    rows = report.sections[0].rows
    figure.set_size_inches(8, 5)
    axes = figure.subplots()
    found, errors = [row["information"] for row in rows], [row["error"] for row in rows]
    error = {"ecolor": "0.3", "elinewidth": 1}
    bars = axes.bar([row["conditioning net"] for row in rows], found, yerr=errors, error_kw=error, color=OWN, width=0.5)
    axes.bar_label(bars, [f"{row['information']:.3f}" for row in rows], padding=4)
    most = LinearGaussian().information
    axes.axhline(most, color=ACCENT, linewidth=1)
    axes.text(
        1,
        most,
        f"I(x, y) = {most:.3f}, the most there is ",
        ha="right",
        va="bottom",
        transform=axes.get_yaxis_transform(),
    )
    axes.set_ylim(top=1.12 * most)
    axes.set_ylabel("information about x in the features, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Proposition 1: what a conditioning net knows about x", loc="left", fontsize=11)
