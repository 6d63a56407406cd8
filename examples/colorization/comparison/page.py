"""report.html of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..._common.page import document, made, notes, picture, section, text
from ..choices import Settings
from .table import COLUMNS, has_ablations, paper_rows, remarks, rows


def page(settings: Settings, metrics: dict[str, Any], pictures: dict[str, Image.Image], command: str) -> str:
    """The page as HTML."""
    body = [
        "<h1>Table 1: four ways to colorize a photograph</h1>",
        f"<p class=lead>A conditional flow, a VAE with a mixture density network, a conditional GAN and a regression, "
        f"on one conditioning net, trained for {metrics['steps']:,} steps of {metrics['batch_size']} each and judged "
        f"on {metrics['images']} photographs that none of them has seen.</p>",
        section("Table 1", "", _table(COLUMNS, rows(metrics, False))),
        section(
            "The paper's own", "5,000 photographs of ImageNet, trained to the end.", _table(COLUMNS[:5], paper_rows())
        ),
        section("Diversity and accuracy", "", picture(pictures["chart.png"], "Error over variance", chart=True)),
        section(
            "Samples",
            "None of these photographs was seen in training; the regression has one answer.",
            picture(pictures["comparison.png"], "Grayscale, original and samples of each system"),
        ),
    ]
    if has_ablations(metrics):
        ablations = _table(COLUMNS, rows(metrics, True))
        if "ablations.png" in pictures:
            ablations += picture(pictures["ablations.png"], "Samples of the flow without one thing")
        body.append(section("Ablations", "The flow with one thing taken away, trained as long.", ablations))
    seconds = {
        name: round(sum(f.get(f"{kind}_seconds", 0.0) for f in metrics["systems"].values()), 1)
        for name, kind in (("training", "training"), ("pictures", "judging"))
    }
    body += [notes([*remarks(metrics), metrics["data"]]), made(command, settings, seconds)]
    return document("Table 1: colorization", body)


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th class=number>{text(h)}</th>" if i else f"<th>{text(h)}</th>" for i, h in enumerate(heads))
    lines = [
        "<tr>"
        + "".join(f"<td class=number>{text(c)}</td>" if i else f"<td>{text(c)}</td>" for i, c in enumerate(row))
        + "</tr>"
        for row in cells
    ]
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"
