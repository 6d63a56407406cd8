"""The pictures of a run: samples of each label, the style of a digit given to others, and the reliability."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from flowkit import Flow
from flowkit_cinn.translation.pictures import figure_image, grid, new_figure

from .digits import CLASSES, grey_of

CELL = 64  # pixels of a digit
BAR, TRUE = "#1f5fa8", "#d1602b"


@torch.no_grad()
def samples(flow: Flow, count: int, temperature: float, seed: int) -> Image.Image:
    """A row for each label: digits drawn from q(x | label), each with a code of its own."""
    z = torch.randn(CLASSES, count, flow.dim, generator=torch.Generator().manual_seed(seed))
    rows = [list(_digits(flow, temperature * z[label], torch.full((count,), label))) for label in range(CLASSES)]
    title = "Digits drawn from q(digit | label)"
    return grid(rows, row_titles=[str(label) for label in range(CLASSES)], title=title, cell=CELL)


@torch.no_grad()
def transfer(flow: Flow, held_out: TensorDataset) -> Image.Image:
    """A row for the first held-out digit of each label: the digit, and its code decoded with every label."""
    x, labels = held_out.tensors
    rows = []
    every = torch.arange(CLASSES)
    for label in labels.unique():
        first = int((labels == label).nonzero()[0])
        z, _ = flow(x[first : first + 1], given=labels[first : first + 1])
        rows.append([grey_of(x[first]), *_digits(flow, z.expand(CLASSES, -1), every)])
    heads = ["digit", *(str(label) for label in range(CLASSES))]
    return grid(rows, column_titles=heads, title="The style of a held-out digit, with other labels", cell=CELL)


def reliability_picture(bins: list[dict[str, float]], error: float) -> Image.Image:
    """Accuracy over confidence; below, how many digits are that sure."""
    figure = new_figure((5.6, 5.2))
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centres = [(each["from"] + each["to"]) / 2 for each in bins]
    width = bins[0]["to"] - bins[0]["from"]
    axes.plot([0, 1], [0, 1], color="#8a8d91", linewidth=1, linestyle="--", label="as sure as right")
    axes.bar(centres, [each["accuracy"] for each in bins], 0.92 * width, color=BAR, label="right")
    sure = [each["confidence"] for each in bins]
    axes.plot(centres, sure, "o", color=TRUE, markersize=5, label="mean confidence")
    axes.set_ylabel("share of digits")
    axes.set_ylim(0, 1.02)
    axes.set_title(f"Expected calibration error {error:.3f}", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left")
    counts.bar(centres, [each["digits"] for each in bins], 0.92 * width, color=BAR)
    counts.set_yscale("log")
    counts.set_ylim(bottom=0.5)  # so that a bin of one digit is seen
    counts.set_xlim(0, 1)
    counts.set_ylabel("digits")
    counts.set_xlabel("confidence: the largest q(label | digit)")
    _tidy(axes)
    _tidy(counts)
    return figure_image(figure)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _digits(flow: Flow, z: Tensor, labels: Tensor) -> Tensor:
    x, _ = flow.inverse(z, given=labels)
    assert isinstance(x, Tensor)  # a flow on digits has one input
    return grey_of(x)
