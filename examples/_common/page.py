"""The parts of a report.html: one page that needs no other file and no network, in light and dark."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

import flowkit as fk
from flowkit_cinn.translation.pictures import png_bytes

from .report_style import STYLE


def document(title: str, body: Iterable[str]) -> str:
    """The page, from its parts."""
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, said: str, content: str) -> str:
    """A heading, what is said below it, and what it is about."""
    return f"<section><h2>{text(title)}</h2>{f'<p>{text(said)}</p>' if said else ''}{content}</section>"


def picture(image: Image.Image, alt: str, chart: bool = False) -> str:
    """A picture within the page; a chart's colours are inverted where the page is dark."""
    data = base64.b64encode(png_bytes(image)).decode()
    kind = "chart" if chart else "grid"
    image_tag = f"<img alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<div class='scroll {kind}'>{image_tag}</div>"


def tiles(of: Iterable[tuple[str, str, str]]) -> str:
    """The figures that matter most: value, name, and a word more."""
    cells = "".join(
        f"<div class=tile><b>{text(v)}</b><span>{text(n)}</span><small>{text(s)}</small></div>" for v, n, s in of
    )
    return f"<div class=tiles>{cells}</div>"


def figures(rows: Iterable[tuple[str, dict[str, Any], str]]) -> str:
    """A table of estimates: name, mean and error, what it is of."""
    lines = [
        f"<tr><td>{text(name)}</td><td class=number>{short(value['mean'])}</td>"
        f"<td class=number>{'' if value['error'] is None else '± ' + short(value['error'])}</td>"
        f"<td>{text(units)}</td></tr>"
        for name, value, units in rows
    ]
    head = "<tr><th>figure</th><th class=number>mean</th><th class=number>error</th><th>of</th></tr>"
    return f"<div class=scroll><table>{head}{''.join(lines)}</table></div>"


def network(drawing: str) -> str:
    """The section with the graph's SVG."""
    return section(
        "Network", "", f"<details><summary>The graph, node by node</summary><div class=graph>{drawing}</div></details>"
    )


def made(command: str, settings: Any, seconds: dict[str, float]) -> str:
    """How it was made: the command, the settings, how long it took, and the versions of what took part."""
    facts = [(n.replace("_", " "), value) for n, value in asdict(settings).items() if value not in (None, "")]
    facts += [("training", f"{seconds['training']} s"), ("figures and pictures", f"{seconds['pictures']} s")]
    facts += list(versions().items())
    rows = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in facts)
    return section("How it was made", "", f"<pre>{text(command)}</pre><div class=scroll><table>{rows}</table></div>")


def notes(said: Sequence[str]) -> str:
    """The section of remarks."""
    return section("Notes", "", "<ul>" + "".join(f"<li>{text(note)}</li>" for note in said) + "</ul>")


def versions() -> dict[str, str]:
    """Versions of what took part."""
    found = {"flowkit": fk.__version__, "Python": platform.python_version(), "PyTorch": torch.__version__}
    for name in ("lightning", "kornia", "numpy", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    threads = torch.get_num_threads()
    used = f"{threads} thread" if threads == 1 else f"{threads} threads"
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {used}"
    return found


def short(value: float) -> str:
    """A number as it is read."""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def text(value: Any) -> str:
    """A value as HTML's text."""
    return html.escape(str(value))
