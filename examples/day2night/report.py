"""report.html: one page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from .._common.page import document, figures, made, network, picture, section, text
from .settings import Settings


def page(
    settings: Settings, metrics: Mapping[str, Any], pictures: Mapping[str, Image.Image], graph: str, command: str
) -> str:
    """The page as HTML, from metrics.json's content, the pictures by name and the graph's SVG."""
    held_out = metrics["held_out"]
    given = "blind to the day" if settings.without_condition else "given a photograph of the place by day"
    of = held_out["bits_per_dimension_of"]
    rows = [("all cameras", held_out["bits_per_dimension"], of)]
    rows += [(name, {"mean": value, "error": None}, of) for name, value in held_out["by_camera"].items()]
    body = [
        "<h1>Nights from days</h1>",
        f"<p class=lead>A normalizing flow that models the night of a place, {given}, trained by maximum likelihood "
        f"for {metrics['training']['steps']:,} steps. {text(metrics['data'])}</p>",
        section(
            "Nights",
            "None of these cameras was seen in training. Each sample has a code of its own, the same for every row.",
            picture(pictures["nights.png"], "Day, real night and samples"),
        ),
        section(
            "Temperature",
            "The same code, scaled. At 0 it is the most typical night.",
            picture(pictures["temperature.png"], "One code at five temperatures"),
        ),
        section(
            "Training",
            "-log2 q(night | day) / D of each batch; the line is the moving median. A density has no floor at zero.",
            picture(pictures["curve"], "Bits per dimension over the steps", chart=True),
        ),
        section("Figures", "On held-out cameras, with the bootstrap error of the mean over pairs.", figures(rows)),
        network(graph),
        made(command, settings, metrics["seconds"]),
    ]
    return document("Day to night", body)
