"""Pictures for reports: labelled grids of images, and loss curves. Nothing global is touched: no pyplot, no style."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowkit.errors import ConfigError, MissingDependencyError
from flowkit_cinn.translation.images import to_image

INK, PALE, PAPER = (32, 33, 36), (232, 233, 236), (255, 255, 255)
CURVE_COLOURS = ("#1f5fa8", "#d1602b", "#3a8a4d", "#7a4fa3")

AnyPicture = Image.Image | Tensor


def grid(
    rows: Sequence[Sequence[AnyPicture | None]],
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: str = "",
    cell: int = 128,
    gap: int = 4,
) -> Image.Image:
    """Images in rows and columns, with titles. Each keeps its aspect, centred in its cell.

    Args:
        rows: of PIL images, or tensors as `to_image` takes them; None leaves a cell empty. Rows may differ in length.
        row_titles: at the left, one a row, broken into lines where they are long; or none.
        column_titles: on top, one a column; or none.
        title: of the whole.
        cell: width and height of a cell, in pixels. Smaller images are enlarged with visible pixels.
        gap: between cells, in pixels.

    Returns:
        An RGB image.

    Raises:
        ConfigError: no images, a cell under 8 pixels, or titles that are neither none nor one for each.

    Example:
        >>> red = Image.new("RGB", (8, 8), "red")
        >>> picture = grid([[red, None]], row_titles=["red"], column_titles=["a", "b"], cell=32)
        >>> picture.mode
        'RGB'
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns or cell < 8:
        raise ConfigError(
            f"a grid needs images, and cells of 8 pixels or more: got {columns} columns and cells of {cell}"
        )
    for kind, titles, count in (("row", row_titles, len(rows)), ("column", column_titles, columns)):
        if titles and len(titles) != count:
            raise ConfigError(f"{count} {kind}s need {count} {kind} titles, or none, got {len(titles)}")
    size = max(11, min(20, cell // 8))
    text, heading = _font(size), _font(round(size * 1.35), bold=True)
    margin, line = 2 * gap + 6, round(size * 1.3)
    labels = [_wrapped(label, text, round(1.5 * cell), max(1, cell // line)) for label in row_titles]
    heads = [_wrapped(label, text, cell, 3) for label in column_titles]
    left = margin + (round(max(text.getlength(part) for label in labels for part in label)) + margin if labels else 0)
    title_height = round(size * 1.35 * 1.3) + gap + 2 if title else 0
    head_height = max(map(len, heads)) * line + gap if heads else 0
    top = margin + title_height + head_height
    width = left + columns * (cell + gap) - gap + margin
    if title:
        width = max(width, round(heading.getlength(title)) + 2 * margin)
    picture = Image.new("RGB", (width, top + len(rows) * (cell + gap) - gap + margin), PAPER)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((margin, margin), title, fill=INK, font=heading)
    for column, head in enumerate(heads):
        centre = left + column * (cell + gap) + cell / 2
        for place, part in enumerate(head):
            draw.text((centre, top - gap - (len(head) - place) * line), part, fill=INK, font=text, anchor="ma")
    for number, row in enumerate(rows):
        y = top + number * (cell + gap)
        label = labels[number] if labels else []
        for place, part in enumerate(label):
            middle = y + cell / 2 + (place - (len(label) - 1) / 2) * line
            draw.text((left - margin, middle), part, fill=INK, font=text, anchor="rm")
        for column, item in enumerate(row):
            if item is not None:
                _put(picture, item, left + column * (cell + gap), y, cell)
    return picture


def _put(picture: Image.Image, item: AnyPicture, x: int, y: int, cell: int) -> None:
    image = item.convert("RGB") if isinstance(item, Image.Image) else to_image(item)
    scale = cell / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shown = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    if size != (cell, cell):
        picture.paste(PALE, (x, y, x + cell, y + cell))
    picture.paste(shown, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))


def _wrapped(label: str, font: ImageFont.FreeTypeFont, width: float, most_lines: int) -> list[str]:
    lines: list[str] = []
    for paragraph in label.splitlines() or [""]:
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], lines[most_lines - 1] + " …"]
    return [_shortened(part, font, width) for part in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def loss_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "step",
    y_label: str = "bits per dimension",
    title: str = "",
    size: tuple[float, float] = (6.4, 3.6),
) -> Image.Image:
    """Curves over the training steps. Many points are drawn pale, with their moving median on top.

    Args:
        curves: name and (steps, values); values that are not finite leave a gap.
        x_label: under the figure.
        y_label: beside it.
        title: above it.
        size: width and height in inches, at 150 dots each.

    Returns:
        An RGB image.

    Raises:
        ConfigError: no curves, or steps and values of different length.

    Example:
        >>> loss_curve({"training": ([0, 1, 2], [3.0, 2.0, 1.5])}).mode
        'RGB'
    """
    if not curves:
        raise ConfigError("a figure needs at least one curve")
    figure = new_figure(size)
    axes = figure.add_subplot()
    everything: list[float] = []
    for number, (name, (steps, values)) in enumerate(curves.items()):
        if len(steps) != len(values):
            raise ConfigError(f"the curve '{name}' has {len(steps)} steps and {len(values)} values: as many are needed")
        colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
        window = max(1, len(values) // 50)
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
        marker = "o" if len(values) < 20 else None
        smooth = _moving_median(values, window)
        axes.plot(steps, smooth, color=colour, linewidth=1.6, label=name, marker=marker, markersize=3.5)
        everything += smooth
    _limit(axes, everything)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure_image(figure)


def _limit(axes: Any, values: Sequence[float]) -> None:
    """A first loss of thousands must not flatten the rest: the axis shows the lower 95 %, and a margin."""
    finite = sorted(v for v in values if abs(v) < float("inf"))
    if len(finite) < 20:
        return
    low, high = finite[0], finite[int(0.95 * (len(finite) - 1))]
    if finite[-1] - low > 2 * (high - low) > 0:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))


def _moving_median(values: Sequence[float], window: int) -> list[float]:
    smooth = []
    for i in range(len(values)):
        near = sorted(v for v in values[max(0, i - window + 1) : i + 1] if v == v)
        smooth.append(near[len(near) // 2] if near else float("nan"))
    return smooth


def new_figure(size: tuple[float, float] = (6.4, 3.6)) -> Any:
    """A matplotlib figure outside pyplot, for `figure_image`: no window, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'figures need matplotlib: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    return Figure(figsize=size, dpi=150, layout="constrained")


def figure_image(figure: Any) -> Image.Image:
    """A matplotlib figure, drawn by Agg, as an RGB image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def png_bytes(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file, for a page that embeds it.

    >>> png_bytes(Image.new("RGB", (2, 2)))[:4]
    b'\\x89PNG'
    """
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings and which has Greek, Cyrillic and mathematics."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            'labels need matplotlib: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size)
