"""report.html: one page that needs no other file and no network, in light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from flowkit_cinn.translation.sources import SourceReport

from .._common.page import document, figures, made, network, notes, picture, section, short, text, tiles
from .choices import Settings
from .recipes import METRIC_SAMPLES

MOST_SKIPPED_NAMES = 50


@dataclass(frozen=True)
class Report:
    """What the page shows: settings, metrics.json's content, pictures by name, the graph's SVG, command and data."""

    settings: Settings
    metrics: dict[str, Any]
    pictures: dict[str, Image.Image]
    drawing: str
    command: str
    data: SourceReport


def page(report: Report) -> str:
    """The page as HTML."""
    held_out = report.metrics["held_out"]
    best, gray = held_out["ab"]["best_of_n_mse"]["mean"], held_out["ab"]["grayscale_mse"]["mean"]
    verdict = "below" if best < gray else "not below"
    data = "the bundled photographs" if report.data.data == "bundled" else report.data.data
    body = [
        "<h1>Diverse colorizations</h1>",
        f"<p class=lead>A conditional normalizing flow that models the colours of a photograph given its lightness, "
        f"trained by maximum likelihood for {report.metrics['training']['steps']:,} steps on "
        f"{text(data)}. "
        f"Of {METRIC_SAMPLES} samples the best one's error is {best:.1f}, {verdict} the {gray:.1f} of leaving the "
        f"photograph gray (Lab units squared).</p>",
        _tiles(held_out),
        section(
            "Colorizations",
            "None of these regions was seen in training. Each sample is drawn from q(ab | L) with a code of its own.",
            picture(report.pictures["colorizations.png"], "Grayscale, original and samples for held-out images"),
        ),
        section(
            "Temperature",
            "The same code, scaled. At 0 it is the most typical colorization; beyond 1 it is bolder than the model.",
            picture(report.pictures["temperature.png"], "One code at five temperatures"),
        ),
        section(
            "Training",
            "-log2 q(ab | L) / D of each batch: bits per dimension of normalised ab with its noise; the line is the "
            "moving median. A density has no floor at zero: negative values are in order.",
            picture(report.pictures["curve"], "Bits per dimension over the steps", chart=True),
        ),
        section("Figures", "On held-out images, with bootstrap errors of the mean.", _figures(held_out)),
        network(report.drawing),
        made(report.command, report.settings, report.metrics["seconds"]),
        _notes(report),
    ]
    return document("Colorization report", body)


def _tiles(of: dict[str, Any]) -> str:
    ab = of["ab"]
    return tiles(
        [
            (short(of["bits_per_dimension"]["mean"]), "bits per dimension", "held out; lower is better"),
            (
                short(ab["best_of_n_mse"]["mean"]),
                f"best-of-{METRIC_SAMPLES} MSE",
                f"grayscale: {short(ab['grayscale_mse']['mean'])}",
            ),
            (short(ab["variance"]["mean"]), f"variance of {METRIC_SAMPLES} samples", "per pixel, Lab units squared"),
            (str(of["images"]), "held-out images", "never seen in training"),
        ]
    )


def _figures(of: dict[str, Any]) -> str:
    rows = [("bits per dimension", of["bits_per_dimension"], of["bits_per_dimension_of"])]
    for units in ("ab", "rgb"):
        part = of[units]
        rows += [
            (f"best-of-{METRIC_SAMPLES} MSE, {units}", part["best_of_n_mse"], part["units"]),
            (f"grayscale's MSE, {units}", part["grayscale_mse"], part["units"]),
            (f"variance of {METRIC_SAMPLES}, {units}", part["variance"], part["units"]),
        ]
    return figures(rows)


def _notes(report: Report) -> str:
    said = [report.data.summary(MOST_SKIPPED_NAMES)]
    if not report.data.checked:
        said.append(
            "The images are too many to look at beforehand: unusable ones are skipped, and counted, when "
            "they are first read."
        )
    said.append(
        "Left out: FID and the top-5 accuracy of the paper's table, which need networks whose weights must be "
        "downloaded."
    )
    said.append("The paper gives no units for its MSE and variance, so its figures cannot be compared with these.")
    said.append(
        "Pictures show the flow's colours brought to their size by joint bilateral upsampling; figures are measured at "
        "the flow's own size."
    )
    return notes(said)
