"""Colorizations of the systems side by side, and the table's two columns as a chart."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowkit_cinn.translation.color import lab_to_rgb, stack_lab
from flowkit_cinn.translation.pictures import figure_image, grid, new_figure

from .judging import Judges
from .systems import OURS

SHOWN = 8  # photographs
CELL = 96
TABLE_ONE = (OURS, "VAE-MDN", "cGAN", "CNN")
FORMS = ("o", "s", "^", "D")


def comparison_pictures(having: Judges, shown: dict[str, Tensor], figures: dict[str, Any]) -> dict[str, Image.Image]:
    """`comparison.png` and `chart.png`, and `ablations.png` where there are any.

    Args:
        having: whose first photographs are shown.
        shown: samples of ab in Lab units by system, `(n, B, 2, h, w)`.
        figures: of metrics.json, by system.
    """
    baselines = {name: shown[name] for name in TABLE_ONE if name in shown}
    pictures = {
        "comparison.png": _side_by_side(having, baselines, "Samples of the systems of Table 1, held-out photographs"),
        "chart.png": _chart(figures),
    }
    others = {name: samples[:2] for name, samples in shown.items() if name not in TABLE_ONE}
    if others:
        of_ours = {OURS: shown[OURS][:2], **others} if OURS in shown else others
        pictures["ablations.png"] = _side_by_side(
            having, of_ours, "The flow with one thing taken away, two samples each"
        )
    return pictures


def _side_by_side(having: Judges, shown: dict[str, Tensor], title: str) -> Image.Image:
    lightness, truth = having.lightness[:SHOWN], having.ab[:SHOWN]
    columns = [("grayscale", torch.zeros_like(truth)), ("original", truth)]
    for name, samples in shown.items():
        different = samples if name != "CNN" else samples[:1]
        columns += [(name if len(different) == 1 else f"{name} {i + 1}", ab) for i, ab in enumerate(different)]
    images = [lab_to_rgb(stack_lab(lightness, ab)) for _, ab in columns]
    rows = [[column[i] for column in images] for i in range(len(truth))]
    return grid(rows, column_titles=[name for name, _ in columns], title=title, cell=CELL)


def _chart(figures: dict[str, Any]) -> Image.Image:
    """Best-of-8 error over variance."""
    figure = new_figure((7.2, 4.4))
    axes = figure.add_subplot()
    for number, name in enumerate(n for n, f in figures.items() if "ab" in f):
        best, variance = (figures[name]["ab"][key] for key in ("best_of_n_mse", "variance"))
        axes.errorbar(
            variance["mean"],
            best["mean"],
            xerr=variance["error"],
            yerr=best["error"],
            marker=FORMS[number % len(FORMS)],
            markersize=9 if name == OURS else 6,
            linestyle="none",
            label=name,
            zorder=3 if name == OURS else 2,
        )
    axes.set_xlabel("variance of 8 samples (Lab units squared)")
    axes.set_ylabel("MSE of the best of 8 (Lab units squared)")
    axes.set_title("A lower error is better; a regression has no variance", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure_image(figure)
