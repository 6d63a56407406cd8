"""The picture: for each target a row of learned densities and a row of samples, a column for each flow."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

import flowkit as fk

from .targets import EDGE

VIEW = EDGE  # the plane from -VIEW to VIEW
PIXELS = 90  # of a density, each way
POINTS = 1500
PANEL = 1.35  # inches
INK, PAPER, LINE, DOTS = "#d8d6e4", "#0b0a14", "#2c2a3d", "#ff9e4a"


def panels(flow: fk.Flow, device: str) -> tuple[Tensor, Tensor]:
    """What is drawn of a flow: its density `(PIXELS, PIXELS)`, and samples `(POINTS, 2)`, on the CPU."""
    side = torch.linspace(-VIEW, VIEW, PIXELS)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2).to(device)
    with torch.no_grad():
        density = flow.log_prob(grid).exp().nan_to_num(0, 0, 0)
    return density.reshape(PIXELS, PIXELS).cpu(), flow.sample((POINTS,)).cpu()


def draw(
    data: dict[str, Tensor],
    learned: dict[str, dict[str, tuple[Tensor, Tensor]]],
    figures: dict[str, dict[str, float | None]],
    caption: str,
) -> bytes:
    """A PNG file, as bytes.

    Args:
        data: points of every target.
        learned: for every target, the panels of every flow that did not fail.
        figures: for every target, the log-likelihood of every flow, shown in its corner; None where it is infinite.
        caption: below the panels.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise fk.MissingDependencyError(
            'the picture needs matplotlib: python -m pip install "flowkit[cinn]" brings it'
        ) from error

    flows = list(next(iter(figures.values())))
    rows, columns = 2 * len(data), 1 + len(flows)
    figure = Figure(figsize=(PANEL * columns, PANEL * rows + 0.5), dpi=110, layout="constrained", facecolor=PAPER)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, (target, points) in enumerate(data.items()):
        above, below = axes[2 * i], axes[2 * i + 1]
        histogram = torch.histogramdd(points, [PIXELS // 2] * 2, range=[-VIEW, VIEW] * 2).hist.T
        _density(above[0], histogram)
        _samples(below[0], points[:POINTS])
        above[0].set_ylabel(target, color=INK, fontsize=9)
        for j, name in enumerate(flows):
            if name not in learned[target]:
                for ax in (above[j + 1], below[j + 1]):
                    _frame(ax)
                    ax.set_aspect("equal")
                above[j + 1].text(
                    0.5, 0.5, "failed", ha="center", transform=above[j + 1].transAxes, color=INK, fontsize=8
                )
                continue
            density, samples = learned[target][name]
            _density(above[j + 1], density)
            _samples(below[j + 1], samples)
            _corner(above[j + 1], figures[target][name])
    for ax, title in zip(axes[0], ("data", *flows), strict=True):
        ax.set_title(title, color=INK, fontsize=9)
    figure.supxlabel(caption, color=INK, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=PAPER)
    return file.getvalue()


def _density(ax: Any, values: Tensor) -> None:
    # The root, so that the faint bridges between modes are seen; the brightest hundredth may saturate.
    shown = values.sqrt()
    brightest = shown.flatten().quantile(0.995).item()
    extent = (-VIEW, VIEW, -VIEW, VIEW)
    ax.imshow(shown.numpy(), extent=extent, origin="lower", cmap="magma", vmin=0, vmax=max(brightest, 1e-6))
    _frame(ax)


def _corner(ax: Any, figure: float | None) -> None:
    from matplotlib.patheffects import withStroke

    said = "-inf" if figure is None else f"{figure:.2f}"
    edge = [withStroke(linewidth=2, foreground=PAPER)]  # legible on a bright density, too
    style = {"color": INK, "fontsize": 6.5, "path_effects": edge, "transform": ax.transAxes}
    ax.text(0.97, 0.03, said, ha="right", va="bottom", **style)


def _samples(ax: Any, points: Tensor) -> None:
    ax.scatter(*points.T.numpy(), s=1.2, color=DOTS, alpha=0.5, linewidths=0)
    ax.set_xlim(-VIEW, VIEW)
    ax.set_ylim(-VIEW, VIEW)
    ax.set_aspect("equal")
    _frame(ax)


def _frame(ax: Any) -> None:
    ax.set_facecolor(PAPER)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(LINE)
