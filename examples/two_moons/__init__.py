"""A conditional flow learns two moons, each by its label; its density and samples as a picture (under a minute).

Read from top to bottom: the flow, the training loop, what is measured. Data is in moons.py, the picture in picture.py.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from rich.progress import track
from torch import Tensor

import flowkit as fk
from flowkit.cli.options import device_option, seed_option
from flowkit.cli.output import console, run_folder, write_file

from . import moons

HELD_OUT = 20_000  # points


def build(blocks: int = 8, hidden: int = 64) -> fk.Flow:
    """x in the plane, given an integer label: affine couplings, each followed by a swap of the two coordinates."""
    graph = fk.Graph()
    label = graph.condition("label", (), dtype=torch.int64)
    one_hot = graph.features(fk.OneHot(2), label)
    x = graph.input("x", (2,))
    for _ in range(blocks):
        x = graph.add(fk.AffineCoupling, x, given=one_hot, subnet=fk.MLP(hidden=(hidden, hidden)))
        x = graph.add(fk.Permute, x)
    graph.output("z", x)
    return fk.Flow(graph)


def train(flow: fk.Flow, steps: int, batch_size: int, device: str) -> list[float]:
    """Maximum likelihood, in plain PyTorch; returns the loss of every step, in nats."""
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    losses = []
    for _ in track(range(steps), "training", console=console(error=True)):
        x, label = moons.sample(batch_size)
        loss = -flow.log_prob(x.to(device), given=label.to(device)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def densities(flow: fk.Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """The flow's log p(x | upper) and log p(x | lower)."""
    with torch.no_grad():
        upper, lower = (flow.log_prob(x, given=torch.full((len(x),), label, device=x.device)) for label in (0, 1))
    return upper, lower


def evaluate(flow: fk.Flow, count: int, device: str) -> dict[str, float]:
    """The flow's and the truth's negative log-likelihood of the same held-out points, in nats.

    The truth's is the entropy: no model can do better, and the gap is an estimate of the Kullback-Leibler divergence.
    """
    x, label = moons.sample(count, torch.Generator().manual_seed(2**31))  # of no training run
    flow_given, true_given = (
        densities(flow, x.to(device)),
        (moons.log_prob(x, label * 0), moons.log_prob(x, label * 0 + 1)),
    )
    figures = {}
    for who, (upper, lower) in (("nll", flow_given), ("entropy", true_given)):
        upper, lower = upper.cpu(), lower.cpu()
        figures[f"{who}_given_label"] = -torch.where(label == 0, upper, lower).mean().item()
        figures[f"{who}_marginal"] = -moons.mixture(upper, lower).mean().item()
    for which in ("given_label", "marginal"):
        figures[f"gap_{which}"] = figures[f"nll_{which}"] - figures[f"entropy_{which}"]
    return figures


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=1200, show_default=True, help="Training steps.")
@click.option("--batch-size", type=click.IntRange(min=1), default=512, show_default=True, help="Points a step.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/two-moons"),
    show_default=True,
    help="Where the files go; a folder with a run is kept.",
)
@seed_option
@device_option
def command(steps: int, batch_size: int, out: Path, seed: int, device: str) -> None:
    """Learn two moons, each by its label, and draw the density."""
    from .picture import draw

    folder = run_folder(out)
    torch.manual_seed(seed)
    started = time.perf_counter()
    flow = build().to(device)
    losses = train(flow, steps, batch_size, device)
    flow.eval()
    figures = evaluate(flow, HELD_OUT, device)
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed, "device": device}
    metrics = {**settings, "seconds": round(time.perf_counter() - started, 1), **figures}

    fk.save(flow, folder / "model.safetensors")
    write_file(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_file(folder / "two-moons.png", draw(flow, losses, metrics))
    show = console()
    for which, said in (("given_label", "given its label"), ("marginal", "without label")):
        nll, entropy = figures[f"nll_{which}"], figures[f"entropy_{which}"]
        gap = f"{nll - entropy:.4f} from the truth's entropy"
        show.print(f"held-out points {said}: {nll:.4f} nats, {gap} of {entropy:.4f}", soft_wrap=True)
    show.print(f"{folder}: two-moons.png, metrics.json, model.safetensors", soft_wrap=True)
