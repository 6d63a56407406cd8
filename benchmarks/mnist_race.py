"""The authors' MNIST network, built in FrEIA from the recipe, raced against flowkit's: same data, same time."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor

import flowkit as fk
from flowkit.cli.catalog import EXAMPLES
from flowkit.diagnostics import timings

from ._common import Column, Options, Report, Section, bench_options, ratio
from ._common.agreement import agree
from ._common.limit import LIMIT_NAME, Bare, bare_step, threads
from ._common.peers import quiet
from ._common.pictures import curves
from ._common.racers import (
    LOG_SQRT_2PI,
    NOISE,
    Batches,
    Racer,
    authors_network,
    authors_racer,
    begin_alike,
    our_racer,
    race,
)

THEIRS, OURS = "FrEIA, the authors' training", "flowkit"
STEPS_TARGET = 1.5  # times the authors' steps
FIRST_TOLERANCE = 1e-4  # float32, of the log-likelihoods before training
TOGETHER = 50  # steps over which training losses are averaged
COMPILE = {"no": None, "blocks": False, "whole": True}
SAME = (
    "Both: float32, batches and noise the same and in the same order, weights and permutations equal at the start, "
    "Adam 5e-4, weight decay 1e-5, gradient norm at most 10. "
)
DIFFERENT = (
    "flowkit's alone: {compiled}torch.optim.Adam(fused=True), and gradients multiplied only where their norm is above "
    "the limit. Compiling counts as training."
)


@dataclass(frozen=True)
class Race:
    """What is raced, and how."""

    minutes: float
    turn: float
    batch_size: int
    compiled: str
    held_out: int | None
    rounds: int


@click.command()
@click.option("--data", help="A folder with MNIST's IDX files.  [default: scikit-learn's 8x8 digits]")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=10, show_default=True, help="Of training, each."
)
@click.option(
    "--turn", type=click.FloatRange(min=0, min_open=True), default=15, show_default=True, help="Seconds of a turn."
)
@click.option("--batch-size", type=click.IntRange(min=2), default=256, show_default=True)
@click.option(
    "--compile", "compiled", type=click.Choice(list(COMPILE)), default="whole", show_default=True, help="Of flowkit's."
)
@click.option("--held-out", "count", type=click.IntRange(min=2), help="Judge on so many only.  [default: all]")
@click.option(
    "--rounds", type=click.IntRange(min=0), default=15, show_default=True, help="Timed turns of single steps."
)
@bench_options
def command(
    options: Any,
    data: str | None,
    minutes: float,
    turn: float,
    batch_size: int,
    compiled: str,
    count: int | None,
    rounds: int,
) -> None:
    """Race the authors' MNIST network in FrEIA against flowkit's, in turns, each on a clock of its own."""
    if importlib.util.find_spec("FrEIA") is None:
        raise fk.MissingDependencyError('the race needs FrEIA: python -m pip install "flowkit[interop]" brings it')
    if options.quick:
        minutes, turn, batch_size, compiled, rounds = min(minutes, 0.02), 0.3, 16, "no", min(rounds, 2)
    run(options, data, Race(minutes, turn, batch_size, compiled, count, rounds))


def run(options: Options, data: str | None, settings: Race) -> None:
    """Build both, race, judge, and time single steps."""
    digits = _example("digits").open_digits(data)
    report = Report("mnist-race", options, data=digits.summary, **vars(settings))
    racers, flow = entrants(digits, settings, options)
    different = DIFFERENT.format(compiled=_compiled_as(settings.compiled))
    title = f"{settings.minutes:g} minutes each, batch {settings.batch_size}, {threads()}"
    report.measure(Section(title, _race_columns(), note=SAME + different), _race_rows(racers, settings), 2)
    x, labels = (part[: settings.held_out] for part in digits.held_out.tensors)
    judgement = Section(f"On {len(x):,} held-out digits", _judged_columns())
    report.measure(judgement, _judged_rows(racers, x.float(), labels, options.seed), 3)
    if settings.rounds:
        note = "Interleaved, after the race. The first is what was raced; the limit has no optimiser."
        report.measure(Section("A training step", _step_columns(), note=note), _step_rows(racers, flow, settings), None)
    report.settings["curves"] = {r.name: {"seconds": r.times, "loss": r.losses} for r in racers}
    report.settings["turns"] = {r.name: [vars(turn) for turn in r.turns] for r in racers}
    report.finish(_plot)


def entrants(digits: Any, settings: Race, options: Options) -> tuple[list[Racer], fk.Flow]:
    """The authors' and ours, alike at the start; and ours before it is compiled.

    Raises:
        MismatchError: they are not alike.
    """
    from flowkit_cinn import mnist_cinn
    from flowkit_cinn.models import MNIST

    sizes = {"blocks": 2, "hidden": 16} if options.quick else {}
    recipe = MNIST["paper"]
    torch.manual_seed(options.seed)
    flow = mnist_cinn("paper", size=digits.size, **sizes)
    blocks, hidden = (sizes.get(name, getattr(recipe, name)) for name in ("blocks", "hidden"))
    with quiet():
        network = authors_network(digits.size, blocks, hidden, recipe.limit)
    begin_alike(network, flow)
    x, labels = digits.train.tensors
    views = [Batches(x.float(), labels, settings.batch_size, options.seed) for _ in range(2)]
    plain = copy.deepcopy(flow)
    if COMPILE[settings.compiled] is not None:
        fk.compile(flow, whole=bool(COMPILE[settings.compiled]))
    racers = [authors_racer(THEIRS, network, flow.dim, views[0]), our_racer(OURS, flow, views[1])]
    some, of = views[0][0]
    with torch.no_grad():
        agree(
            "FrEIA", "log-likelihood", racers[0].density.log_prob(some, of), plain.log_prob(some, of), FIRST_TOLERANCE
        )
    return racers, plain


# ---------------------------------------------------------------------- the race


def _race_columns() -> tuple[Column, ...]:
    return (
        Column("network", ""),
        Column("steps", "done in that time", ",d"),
        Column("first", "seconds of the first step, compiling included", ".1f"),
        Column("ms", "a step: median over the turns after the first", ".0f"),
        Column("times the steps", "of the authors', in all", ".2f"),
        Column("times the speed", "the ratio of those medians, and its interval of 95 % over the turns"),
        Column("target", f"at least {STEPS_TARGET} times the steps"),
        Column(
            "loss", f"of training, (|z|^2 / 2 - log|J|) / D in nats, mean of the last {TOGETHER} steps of each", ".4f"
        ),
        Column("loss at equal steps", f"mean of the last {TOGETHER} steps that both have done", ".4f"),
    )


def _race_rows(racers: list[Racer], settings: Race) -> Iterator[dict[str, Any]]:
    from rich.progress import Progress

    from flowkit.cli.output import console

    seconds = 60 * settings.minutes
    with Progress(console=console(error=True), transient=True) as progress:
        task = progress.add_task("racing", total=seconds * len(racers))
        for done in race(racers, seconds, settings.turn):
            progress.advance(task, done)
    theirs = racers[0]
    shared = min(len(r.losses) for r in racers)
    speeds = [_seconds_a_step(r) for r in racers]
    rounds = min(map(len, speeds))
    for racer, own in zip(racers, speeds, strict=True):
        row: dict[str, Any] = {
            "network": racer.name,
            "steps": len(racer.losses),
            "first": racer.times[0],
            "ms": statistics.median(own) * 1e3,
            "loss": statistics.fmean(racer.losses[-TOGETHER:]),
            "loss at equal steps": statistics.fmean(racer.losses[max(0, shared - TOGETHER) : shared]),
        }
        if racer is not theirs:
            times = len(racer.losses) / len(theirs.losses)
            met = times >= STEPS_TARGET
            row |= {
                "times the steps": times,
                "times the speed": ratio(speeds[0][:rounds], own[:rounds]),
                "target": f">= {STEPS_TARGET}: {'met' if met else 'missed'}",
                "met": met,
            }
        yield row


def _seconds_a_step(racer: Racer) -> list[float]:
    turns = racer.turns[1:] or racer.turns  # the first one compiles
    return [turn.seconds / turn.steps for turn in turns]


# ---------------------------------------------------------------------- what they have learned


def _judged_columns() -> tuple[Column, ...]:
    return (
        Column("network", "flowkit - FrEIA: digit by digit; its error is that of the mean difference"),
        Column("log-likelihood", "nats per dimension of the normalised digits without noise; higher is better", ".4f"),
        Column("error", "bootstrap standard deviation of that mean", ".4f"),
        Column("loss", "(|z|^2 / 2 - log|J|) / D of the same, as the authors print it", ".4f"),
        Column("with noise", f"log-likelihood of digits with noise of {NOISE}, as trained", ".4f"),
        Column("accuracy", "of the label with the largest likelihood", ".4f"),
        Column("calibration error", "expected, of that classifier's posterior; 0 is perfect", ".4f"),
        Column("target", "a log-likelihood that is no lower"),
    )


def _judged_rows(racers: list[Racer], x: Tensor, labels: Tensor, seed: int) -> Iterator[dict[str, Any]]:
    from flowkit_cinn.translation.metrics import bootstrap

    found = []
    for racer in racers:
        row, each = judged(racer, x, labels, seed)
        found.append((row, each))
        yield row
    (theirs, theirs_each), (ours, ours_each) = found
    gain = bootstrap(ours_each - theirs_each)
    met = gain.mean >= 0
    names = ("loss", "with noise", "accuracy", "calibration error")
    yield {
        "network": "flowkit - FrEIA",
        "log-likelihood": gain.mean,
        "error": gain.error,
        **{name: ours[name] - theirs[name] for name in names},
        "target": f">= 0: {'met' if met else 'missed'}",
        "met": met,
    }


def judged(racer: Racer, x: Tensor, labels: Tensor, seed: int) -> tuple[dict[str, Any], Tensor]:
    """A row on the held-out digits, and the log-likelihood of each, per dimension."""
    from flowkit_cinn.translation.metrics import bootstrap

    judging, keyed = _example("judging"), fk.training.keyed_noise
    density: Any = racer.density
    if isinstance(density, fk.Flow):
        density = copy.deepcopy(density).eval()  # a copy is not compiled: these batches come once
    noisy = x + NOISE * keyed(x, seed, "held out", range(len(x)))
    log_prob = judging.log_prob_of_labels(density, x)
    each = log_prob.gather(1, labels[:, None]).squeeze(1) / density.dim
    estimate = bootstrap(each)
    posterior = judging.posteriors(log_prob)
    return {
        "network": racer.name,
        "log-likelihood": estimate.mean,
        "error": estimate.error,
        "loss": -estimate.mean - LOG_SQRT_2PI,
        "with noise": -math.log(2) * judging.bits_of_each(density, noisy, labels).mean().item(),
        "accuracy": (posterior.argmax(1) == labels).double().mean().item(),
        "calibration error": judging.calibration_error(judging.reliability(posterior, labels)),
    }, each


# ---------------------------------------------------------------------- a step, taken apart


def _step_columns() -> tuple[Column, ...]:
    return (
        Column("training step", ""),
        Column("ms", "median", ".0f"),
        Column("authors'", "time of the authors' step over this one's, and its interval of 95 %"),
        Column("of the limit", "time of this step over that of the bare subnets' matrix products and ReLUs", ".2f"),
    )


def _step_rows(racers: list[Racer], plain: fk.Flow, settings: Race) -> Iterator[dict[str, Any]]:
    theirs, ours = racers
    batch = ours.batches[0]
    fused = authors_racer("FrEIA, Adam fused", theirs.density.network, ours.density.dim, theirs.batches, fused=True)
    eager = our_racer("flowkit, not compiled", plain, ours.batches)
    unfused = our_racer("flowkit, not compiled, the authors' optimiser", copy.deepcopy(plain), ours.batches)
    unfused.optimizer = torch.optim.Adam(unfused.parameters, lr=1e-4, weight_decay=1e-5)
    unfused.clip = theirs.clip
    entered = [ours, theirs, fused, *([eager] if settings.compiled != "no" else []), unfused]
    steps: dict[str, Callable[[], object]] = {r.name: lambda r=r: r.step(*batch) for r in entered}
    steps[LIMIT_NAME] = bare_step(Bare(plain, *batch))
    series = timings(steps, rounds=settings.rounds)
    limit = statistics.median(series[LIMIT_NAME])
    for name, seconds in series.items():
        row = {"training step": name, "ms": statistics.median(seconds) * 1e3}
        if name != LIMIT_NAME:
            row |= {"authors'": ratio(series[theirs.name], seconds), "of the limit": statistics.median(seconds) / limit}
        yield row


def _compiled_as(compiled: str) -> str:
    calls = {"no": "", "blocks": "fk.compile(flow), ", "whole": "fk.compile(flow, whole=True), "}
    return calls[compiled]


def _example(part: str) -> Any:
    """A module of the mnist example: its digits, and its judgement of them."""
    return importlib.import_module(f"{EXAMPLES.module('mnist').__name__}.{part}")


def _plot(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    named = {}
    for name, curve in report.settings["curves"].items():
        minutes = [second / 60 for second in curve["seconds"]]
        named[f"{name}: {len(minutes):,} steps"] = minutes, curve["loss"]
    curves(axes, named)
    axes.set_xlabel("minutes of its own training")
    axes.set_ylabel("training loss, nats per dimension")
    axes.set_title(report.sections[0].title, loc="left", fontsize=11)
