"""The picture: conditional densities and their mixture on top; data, samples and the training curve below."""

from __future__ import annotations

import io

import torch
from torch import Tensor

import flowkit as fk

from . import densities, moons

VIEW = (-2.1, 2.1, -1.4, 1.4)
PIXELS = (300, 200)
UPPER, LOWER, INK = "#ff9e4a", "#5aa9ff", "#d8d6e4"
PAPER = "#0b0a14"


def draw(flow: fk.Flow, losses: list[float], metrics: dict) -> bytes:
    """A PNG file, as bytes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise fk.MissingDependencyError(
            'the picture needs matplotlib: python -m pip install "flowkit[cinn]" brings it'
        ) from error

    device = next(flow.parameters()).device
    upper, lower = (d.cpu() for d in densities(flow, _grid().to(device)))
    figure = Figure(figsize=(13.2, 6.6), dpi=150, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for ax, values, title in zip(
        axes[0],
        (upper, lower, moons.mixture(upper, lower)),
        ("p(x | upper moon)", "p(x | lower moon)", "p(x), the mixture of the two"),
        strict=True,
    ):
        density = values.exp().reshape(PIXELS[1], PIXELS[0])
        ax.imshow(
            density.sqrt().numpy(), extent=VIEW, origin="lower", cmap="magma", aspect="auto", interpolation="bilinear"
        )
        _frame(ax, title)

    count = 2500
    generator = torch.Generator().manual_seed(0)
    _scatter(axes[1, 0], *moons.sample(count, generator), "data")
    label = (torch.arange(count) % 2).to(device)
    samples = flow.sample((), given=label).cpu()
    _scatter(axes[1, 1], samples, label.cpu(), "samples of the flow, by label")
    _curve(axes[1, 2], losses, metrics)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=PAPER)
    return file.getvalue()


def _grid() -> Tensor:
    left, right, bottom, top = VIEW
    x, y = torch.linspace(left, right, PIXELS[0]), torch.linspace(bottom, top, PIXELS[1])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def _frame(ax, title: str) -> None:
    ax.set_title(title, color=INK, fontsize=11, loc="left")
    ax.set_facecolor(PAPER)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("#2c2a3d")


def _scatter(ax, x: Tensor, label: Tensor, title: str) -> None:
    for which, colour in ((0, UPPER), (1, LOWER)):
        ax.scatter(*x[label == which].T.numpy(), s=4, color=colour, alpha=0.55, linewidths=0)
    ax.set_xlim(VIEW[:2])
    ax.set_ylim(VIEW[2:])
    _frame(ax, title)


def _curve(ax, losses: list[float], metrics: dict) -> None:
    _frame(ax, "loss given the label, nats, by step; dashed: the true entropy")
    window = max(1, len(losses) // 100)
    smooth = torch.tensor(losses).unfold(0, window, window).mean(1)
    ax.plot(range(1, len(losses) + 1), losses, color="#7d6bd6", alpha=0.35, linewidth=0.7)
    ax.plot([(i + 0.5) * window for i in range(len(smooth))], smooth.tolist(), color="#b9a8ff", linewidth=1.8)
    entropy, nll = metrics["entropy_given_label"], metrics["nll_given_label"]
    ax.axhline(entropy, color=UPPER, linestyle="--", linewidth=1)
    ax.set_ylim(entropy - 0.15, entropy + 1.6)
    ax.yaxis.tick_right()  # the labels at the edge of the picture, not between the panels
    ax.tick_params(colors=INK, labelsize=9)
    ax.xaxis.set_major_locator(_ticks())
    ax.yaxis.set_major_locator(_ticks())
    ax.text(
        0.97,
        0.93,
        f"held out: {nll:.3f}\nentropy:  {entropy:.3f}",
        transform=ax.transAxes,
        ha="right",
        va="top",
        color=INK,
        family="monospace",
    )


def _ticks():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)
