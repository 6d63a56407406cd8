"""The authors' small colorization network in FrEIA against flowkit's: training steps, and what equal steps give."""

from __future__ import annotations

import copy
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor

import flowkit as fk
from flowkit.diagnostics import timings

from ._common import Column, Options, Report, Section, bench_options, ratio
from ._common.agreement import agree
from ._common.limit import LIMIT_NAME, Bare, bare_step, threads
from ._common.peers import quiet
from ._common.pictures import curves
from ._common.published import FreiaTwin, concatenated, small_network
from ._common.racers import LOG_SQRT_2PI, Racer, clip_always, clip_where_needed

THEIRS, OURS, HALF = "FrEIA, the authors' training", "flowkit", "flowkit, bfloat16"
TARGETS = {OURS: 1.5, HALF: 2.5}  # times the authors' steps per second
CLOSE = 0.01  # nats per dimension between bfloat16 and float32 after equal steps
LR, CLIP, NOISE = 1e-3, 10.0, 0.005  # the small preset's
FIRST_TOLERANCE = 1e-4
SAME = (
    "Equal weights at the start, equal crops and noise in the same order, Adam 1e-3, gradient norm at most 10; the "
    "conditioning net is part of a step. flowkit's alone: channels_last, Adam fused, and gradients multiplied only "
    "where their norm is above the limit. FrEIA has no divisor in its clamp, so its last layers begin divided by the "
    "limit, and Adam's steps are other ones: the losses of the two drift apart."
)


@click.command()
@click.option("--data", default="bundled", show_default=True, help="As colorization's.")
@click.option("--batch-size", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Timed steps of each.")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Then trained, each.")
@click.option("--compile", "compiled", is_flag=True, help="flowkit's compiled as a whole too, which takes minutes.")
@bench_options
def command(options: Any, data: str, batch_size: int, rounds: int, steps: int, compiled: bool) -> None:
    """Time training steps of the authors' small colorization network in FrEIA and flowkit's, and train both alike."""
    for module, extra in (("FrEIA", "interop"), ("kornia", "cinn")):
        if importlib.util.find_spec(module) is None:
            raise fk.MissingDependencyError(
                f'the race needs {module}: python -m pip install "flowkit[{extra}]" brings it'
            )
    if options.quick:
        batch_size, rounds, steps = 2, 2, 2
    run(options, data, batch_size, rounds, steps, compiled)


def run(options: Options, data: str, batch_size: int, rounds: int, steps: int, compiled: bool) -> None:
    """Build all, time single steps in turns, then train each for equal steps and judge."""
    from flowkit_cinn.translation.sources import open_source

    source = open_source(data)
    torch.manual_seed(options.seed)
    flow, size = small_network(options.quick)
    crops = Crops(source, size, batch_size, options.seed)
    report = Report("colorization-race", options, data=source.report.summary(), batch_size=batch_size, steps=steps)
    racers = entrants(flow, crops, compiled)
    title = f"A training step, {size} x {size}, batch {batch_size}, {threads()}"
    columns = (
        Column("network", "the limit is the subnets and the conditioning net alone, without an optimiser"),
        Column("ms", "median", ".0f"),
        Column("times the speed", "time of the authors' step over this one's, and its interval of 95 %"),
        Column("target", ""),
    )
    report.measure(Section(title, columns, note=SAME), _step_rows(racers, flow, crops, rounds), None)
    columns = (
        Column("network", ""),
        Column("loss", "of training, (|z|^2 / 2 - log|J|) / D in nats, mean of the last 50 steps", ".4f"),
        Column("log-likelihood", "nats per dimension of held-out normalised ab without noise", ".4f"),
        Column("to float32", "the difference to flowkit's in float32", ".4f"),
        Column("target", f"bfloat16 within {CLOSE} of float32"),
    )
    section = Section(f"After {steps} equal steps", columns)
    report.measure(section, _trained_rows(racers, crops, steps), len(racers))
    report.settings["losses"] = {racer.name: racer.losses for racer in racers}
    report.finish(_plot)


class Crops:
    """Batches of normalised ab, with noise, and L by their number; and held-out ones."""

    def __init__(self, source: Any, size: int, batch_size: int, seed: int):
        from flowkit_cinn.translation.crops import ColorCrops, held_out_batch

        sizes = {"photo_size": (size, size), "ab_size": (size, size)}
        self.crops = ColorCrops(source.train, **sizes, seed=seed, length=2**40)
        self.batch_size, self.seed = batch_size, seed
        held_out, _ = held_out_batch(source.held_out, **sizes, count=128)
        self.held_out = held_out["ab"].float(), held_out["photo"].float()

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        items = range(number * self.batch_size, (number + 1) * self.batch_size)
        found = self.crops.__getitems__(items)
        ab, photo = (torch.stack([crop[name] for crop in found]).float() for name in ("ab", "photo"))
        return ab + NOISE * fk.training.keyed_noise(ab, self.seed, "noise", items), photo


class Published:
    """FrEIA's build as a density."""

    condition_shapes: dict[str, tuple] = {"photo": ()}  # noqa: RUF012

    def __init__(self, network: FreiaTwin, dim: int):
        self.network, self.dim = network, dim

    def log_prob(self, ab: Tensor, given: Tensor) -> Tensor:
        """log q(ab | L) of each row."""
        z, log_det = self.network(ab, given)
        return log_det - 0.5 * z.square().sum(1) - self.dim * LOG_SQRT_2PI


def entrants(flow: fk.Flow, crops: Crops, compiled: bool = False) -> list[Racer]:
    """The authors' network in FrEIA and flowkit's in float32 and bfloat16, and compiled, with equal weights.

    Raises:
        MismatchError: they are not alike.
    """
    with quiet():
        twin = FreiaTwin(flow)
    ab, photo = crops[0]
    theirs = Published(twin, flow.dim)
    with torch.no_grad():
        agree("FrEIA", "log-likelihood", theirs.log_prob(ab, photo), flow.log_prob(ab, given=photo), FIRST_TOLERANCE)
    trained = [p for p in twin.parameters() if p.requires_grad]
    made = [Racer(THEIRS, theirs, _loss(theirs), trained, torch.optim.Adam(trained, lr=LR), clip_always(CLIP), crops)]
    forms = [(OURS, False, False), (HALF, True, False)]
    if compiled:
        forms += [(f"{OURS}, compiled", False, True), (f"{HALF}, compiled", True, True)]
    for name, half, whole in forms:
        own = copy.deepcopy(flow).to(memory_format=torch.channels_last)
        if whole:
            fk.compile(own, whole=True)
        trained = list(own.parameters())
        optimizer = torch.optim.Adam(trained, lr=LR, fused=True)
        made.append(Racer(name, own, _loss(own, half), trained, optimizer, clip_where_needed(CLIP), crops))
    return made


def _loss(density: Any, half: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(ab: Tensor, photo: Tensor) -> Tensor:
        with torch.autocast(ab.device.type, torch.bfloat16, enabled=half):
            return -density.log_prob(ab, given=photo).mean() / density.dim - LOG_SQRT_2PI

    return loss


def _step_rows(racers: list[Racer], flow: fk.Flow, crops: Crops, rounds: int) -> Iterator[dict[str, Any]]:
    batch = crops[0]
    kept = [copy.deepcopy(list(racer.parameters)) for racer in racers]
    steps: dict[str, Callable[[], object]] = {r.name: lambda r=r: r.step(*batch) for r in racers}
    steps[LIMIT_NAME] = bare_step(Bare(flow, *batch))
    last = copy.deepcopy(flow).to(memory_format=torch.channels_last)
    steps[f"{LIMIT_NAME}, channels_last"] = bare_step(
        Bare(last, *(part.to(memory_format=torch.channels_last) for part in batch))
    )
    steps[f"{LIMIT_NAME}, published form"] = bare_step(Bare(concatenated(flow), *batch))
    series = timings(steps, rounds=rounds)
    for racer, before in zip(racers, kept, strict=True):  # what is trained afterwards begins alike
        with torch.no_grad():
            for parameter, value in zip(racer.parameters, before, strict=True):
                parameter.copy_(value)
        racer.optimizer.state.clear()
    for name, seconds in series.items():
        row: dict[str, Any] = {"network": name, "ms": statistics.median(seconds) * 1e3}
        if name != THEIRS:
            found = ratio(series[THEIRS], seconds)
            row["times the speed"] = found
            target = TARGETS.get(name.removesuffix(", compiled"))
            if target is not None:
                met = found.value >= target
                row |= {"target": f">= {target}: {'met' if met else 'missed'}", "met": met}
        yield row


def _trained_rows(racers: list[Racer], crops: Crops, steps: int) -> Iterator[dict[str, Any]]:
    ab, photo = crops.held_out
    reference = math.nan
    for racer in racers:
        for number in range(steps):
            racer.losses.append(racer.step(*crops[number]))
        density: Any = racer.density
        with torch.no_grad(), torch.autocast(ab.device.type, torch.bfloat16, enabled=racer.name.startswith(HALF)):
            pieces = zip(ab.split(16), photo.split(16), strict=True)
            found = torch.cat([density.log_prob(x, given=c) for x, c in pieces]).mean().item() / density.dim
        row: dict[str, Any] = {
            "network": racer.name,
            "loss": statistics.fmean(racer.losses[-50:]),
            "log-likelihood": found,
        }
        if racer.name == OURS:
            reference = found
        if racer.name.startswith(HALF):
            met = abs(found - reference) <= CLOSE
            row |= {
                "to float32": found - reference,
                "target": f"within {CLOSE}: {'met' if met else 'missed'}",
                "met": met,
            }
        yield row


def _plot(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    losses = report.settings["losses"]
    curves(axes, {name: (range(1, len(each) + 1), each) for name, each in losses.items()})
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("training step")
    axes.set_ylabel("training loss, nats per dimension")
    axes.set_title("Equal steps from equal weights", loc="left", fontsize=11)
