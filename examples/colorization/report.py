"""report.html: one page that needs no other file and no network, in light and dark."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

import flowkit as fk
from flowkit_cinn.translation.pictures import png_bytes
from flowkit_cinn.translation.sources import SourceReport

from .choices import Settings
from .recipes import METRIC_SAMPLES
from .report_style import STYLE

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
    figures = report.metrics["held_out"]
    best, gray = figures["ab"]["best_of_n_mse"]["mean"], figures["ab"]["grayscale_mse"]["mean"]
    verdict = "below" if best < gray else "not below"
    body = [
        "<h1>Diverse colorizations</h1>",
        f"<p class=lead>A conditional normalizing flow that models the colours of a photograph given its lightness, "
        f"trained by maximum likelihood for {report.metrics['training']['steps']:,} steps on "
        f"{_text(report.data.data)}. "
        f"Of {METRIC_SAMPLES} samples the best one's error is {best:.1f}, {verdict} the {gray:.1f} of leaving the "
        f"photograph gray.</p>",
        _tiles(figures),
        _section(
            "Colorizations",
            "None of these regions was seen in training. Each sample is drawn from q(ab | L) with a code of its own.",
            _picture(report.pictures["colorizations.png"], "Grayscale, original and samples for held-out images"),
        ),
        _section(
            "Temperature",
            "The same code, scaled. At 0 it is the most typical colorization; beyond 1 it is bolder than the model.",
            _picture(report.pictures["temperature.png"], "One code at five temperatures"),
        ),
        _section(
            "Training",
            "-log2 q(ab | L) / D of each batch: bits per dimension of normalised ab with its noise; the line is the "
            "moving median. A density has no floor at zero: negative values are in order.",
            _picture(report.pictures["curve"], "Bits per dimension over the steps", chart=True),
        ),
        _section("Figures", "On held-out images, with bootstrap errors of the mean.", _figures(figures)),
        _section(
            "Network",
            "",
            f"<details><summary>The graph, node by node</summary><div class=graph>{report.drawing}</div></details>",
        ),
        _section("How it was made", "", _made(report)),
        _section("Notes", "", _notes(report)),
    ]
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"<title>Colorization report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _tiles(figures: dict[str, Any]) -> str:
    ab = figures["ab"]
    tiles = [
        (_short(figures["bits_per_dimension"]["mean"]), "bits per dimension", "held out; lower is better"),
        (
            _short(ab["best_of_n_mse"]["mean"]),
            f"best-of-{METRIC_SAMPLES} MSE",
            f"grayscale: {_short(ab['grayscale_mse']['mean'])}",
        ),
        (_short(ab["variance"]["mean"]), f"variance of {METRIC_SAMPLES} samples", "per pixel, Lab units squared"),
        (str(figures["images"]), "held-out images", "never seen in training"),
    ]
    cells = "".join(
        f"<div class=tile><b>{_text(v)}</b><span>{_text(n)}</span><small>{_text(s)}</small></div>" for v, n, s in tiles
    )
    return f"<div class=tiles>{cells}</div>"


def _figures(figures: dict[str, Any]) -> str:
    rows = [("bits per dimension", figures["bits_per_dimension"], figures["bits_per_dimension_of"])]
    for units in ("ab", "rgb"):
        part = figures[units]
        rows += [
            (f"best-of-{METRIC_SAMPLES} MSE, {units}", part["best_of_n_mse"], part["units"]),
            (f"grayscale's MSE, {units}", part["grayscale_mse"], part["units"]),
            (f"variance of {METRIC_SAMPLES}, {units}", part["variance"], part["units"]),
        ]
    lines = [
        f"<tr><td>{_text(name)}</td><td class=number>{_short(value['mean'])}</td>"
        f"<td class=number>{'' if value['error'] is None else '± ' + _short(value['error'])}</td>"
        f"<td>{_text(units)}</td></tr>"
        for name, value, units in rows
    ]
    head = "<tr><th>figure</th><th class=number>mean</th><th class=number>error</th><th>of</th></tr>"
    return f"<div class=scroll><table>{head}{''.join(lines)}</table></div>"


def _made(report: Report) -> str:
    seconds = report.metrics["seconds"]
    facts = [(name.replace("_", " "), value) for name, value in asdict(report.settings).items()]
    facts += [("training", f"{seconds['training']} s"), ("figures and pictures", f"{seconds['pictures']} s")]
    facts += [(name, version) for name, version in versions().items()]
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts)
    return f"<pre>{_text(report.command)}</pre><div class=scroll><table>{rows}</table></div>"


def _notes(report: Report) -> str:
    notes = [report.data.summary(MOST_SKIPPED_NAMES)]
    if not report.data.checked:
        notes.append(
            "The images are too many to look at beforehand: unusable ones are skipped, and counted, when "
            "they are first read."
        )
    notes.append(
        "Left out: FID and the top-5 accuracy of the paper's table, which need networks whose weights must be "
        "downloaded."
    )
    notes.append("The paper gives no units for its MSE and variance, so its figures cannot be compared with these.")
    notes.append(
        "Pictures show the flow's colours brought to their size by joint bilateral upsampling; figures are measured at "
        "the flow's own size."
    )
    return "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>"


def versions() -> dict[str, str]:
    """Versions of what took part."""
    found = {"flowkit": fk.__version__, "Python": platform.python_version(), "PyTorch": torch.__version__}
    for name in ("lightning", "kornia", "numpy", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["machine"] = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    return found


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{f'<p>{_text(text)}</p>' if text else ''}{content}</section>"


def _picture(image: Image.Image, alt: str, chart: bool = False) -> str:
    data = base64.b64encode(png_bytes(image)).decode()
    kind = "chart" if chart else "grid"
    image_tag = f"<img alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<div class='scroll {kind}'>{image_tag}</div>"


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def _text(value: Any) -> str:
    return html.escape(str(value))
