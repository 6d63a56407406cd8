"""Every ready flow on two-dimensional targets: densities and samples in one picture, log-likelihoods (minutes).

Read from top to bottom: which flows there are, the training loop, what is measured. Targets are in targets.py, the
picture in picture.py.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import flowkit as fk
from flowkit.cli.options import device_option, seed_option
from flowkit.cli.output import console, run_folder, table, write_file

from .targets import TARGETS, sample

HELD_OUT = 10_000  # points
LARGEST_GRADIENT = 5.0  # norm: a first step on a density that jumps may be wild


# Steps of a fixed number need no package, and cost the same on every target.
SETTINGS: dict[str, dict[str, Any]] = {"ffjord": {"solver": "rk4", "steps": 8}}


def build(name: str) -> fk.Flow:
    """A ready flow of two features."""
    flow: fk.Flow = getattr(fk.flows, name)(2, **SETTINGS.get(name, {}))
    return flow


def ready_flows() -> tuple[list[str], dict[str, str]]:
    """The names in `fk.flows` that make a flow of two features, and for the others why not."""
    able, unable = [], {}
    for name in fk.flows.__all__:
        try:
            with torch.random.fork_rng(devices=[]):
                build(name)
        except fk.FlowkitError as error:  # it is for images, or needs a package that is not installed
            unable[name] = str(error)
        else:
            able.append(name)
    return able, unable


def train(flow: fk.Flow, target: str, steps: int, batch_size: int, seed: int, device: str, tick: Any) -> None:
    """Maximum likelihood, in plain PyTorch; a step whose loss is not finite is left out."""
    draws = torch.Generator().manual_seed(seed)
    flow.initialize(sample(target, batch_size, draws).to(device))
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        loss = -flow.log_prob(sample(target, batch_size, draws).to(device)).mean()
        if loss.isfinite():
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), LARGEST_GRADIENT)
            optimizer.step()
        schedule.step()
        tick()


def held_out(flow: fk.Flow, target: str, device: str) -> float:
    """The mean log-likelihood of points that no run trains on, in nats; minus infinity where one has density 0."""
    points = sample(target, HELD_OUT, torch.Generator().manual_seed(2**31)).to(device)
    with torch.no_grad():
        return flow.log_prob(points).double().mean().item()


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"


def _names(what: str, known: list[str]) -> Any:
    def chosen(_: click.Context, __: click.Parameter, value: str) -> list[str]:
        names = known if value == "all" else [name.strip() for name in value.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            wrong = unknown[0] if unknown else value
            raise click.BadParameter(f"there is no {what} '{wrong}'; there are {', '.join(known)}.")
        return list(dict.fromkeys(names))

    return chosen


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Training steps of each.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Points a step.")
@click.option("--flows", default="all", show_default=True, help="Names of ready flows, with commas between them.")
@click.option(
    "--targets",
    default="all",
    show_default=True,
    callback=_names("target", list(TARGETS)),
    help="Names of targets, with commas between them.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/gallery"),
    show_default=True,
    help="Where the files go; a folder with a run is kept.",
)
@seed_option
@device_option
@click.pass_context
def command(
    context: click.Context,
    steps: int,
    batch_size: int,
    flows: str,
    targets: list[str],
    out: Path,
    seed: int,
    device: str,
) -> None:
    """Train every ready flow on every target, and draw what they learned."""
    from .picture import draw, panels

    able, unable = ready_flows()
    parameter = next(p for p in context.command.params if p.name == "flows")
    try:
        names = _names("ready flow of two features", able)(context, parameter, flows)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, context, parameter) from error
    folder, show = run_folder(out), console()
    if flows == "all" and unable:
        left = "; ".join(f"{name} ({why})" for name, why in unable.items())
        show.print(f"left out, as they cannot be built for two features here: {left}", soft_wrap=True)
    started = time.perf_counter()
    learned: dict[str, dict[str, tuple[Tensor, Tensor]]] = {target: {} for target in targets}
    figures: dict[str, dict[str, dict[str, float | None]]] = {target: {} for target in targets}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console(error=True)) as progress:
        task = progress.add_task("", total=len(targets) * len(names) * steps)
        for target in targets:
            for name in names:
                progress.update(task, description=f"{name} on {target}")
                torch.manual_seed(seed)  # for each anew: a choice of flows and targets changes no figure
                begun = time.perf_counter()
                try:  # what fails is said and left out: the others go on
                    flow = build(name).to(device)
                    train(flow, target, steps, batch_size, seed, device, lambda: progress.advance(task))
                    flow.eval()
                    found = held_out(flow, target, device)
                    learned[target][name] = panels(flow, device)
                except fk.FlowkitError as error:
                    progress.console.print(f"{name} on {target} failed: {error}", soft_wrap=True)
                    found = -math.inf
                figures[target][name] = {
                    "log_likelihood": found if math.isfinite(found) else None,
                    "seconds": round(time.perf_counter() - begun, 1),
                }
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "held_out": HELD_OUT}
    metrics = {**settings, "seconds": round(time.perf_counter() - started, 1), "targets": figures}
    write_file(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    data = {target: sample(target, 20_000, torch.Generator().manual_seed(seed)) for target in targets}
    found = {target: {name: each["log_likelihood"] for name, each in of.items()} for target, of in figures.items()}
    caption = f"{steps:,} steps of {batch_size:,} points each; in the corners the held-out log-likelihood, nats"
    write_file(folder / "gallery.png", draw(data, learned, found, caption))
    rows = [(name, *(_shown(figures[target][name]["log_likelihood"]) for target in targets)) for name in names]
    show.print(table("held-out log-likelihood, nats", ("flow", *targets), rows, numbers=targets))
    show.print(f"{folder}: gallery.png, metrics.json", soft_wrap=True)
