"""A benchmark's figures: tables on the terminal as they come, then a JSON file and a plot, whole or not there."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import flowkit as fk
from flowkit.cli.output import console, table, write_file

from .options import Options
from .statistics import Ratio

VERDICT = re.compile(r"\b(met|missed|noise)$")


@dataclass(frozen=True)
class Column:
    """A column: its head, what it says in a line, and how its numbers are written."""

    name: str
    explanation: str
    style: str = ""  # a format of `format()`; "" for text

    def text(self, value: Any) -> str:
        """A value as the table shows it."""
        if value is None:
            return "-"
        if isinstance(value, float) and not math.isfinite(value):
            return "not finite"
        return format(value, self.style) if isinstance(value, int | float) and self.style else str(value)


@dataclass
class Section:
    """One table: a row is a dictionary by column name; what a row lacks is shown as "-"."""

    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""


class Report:
    """Collects and shows what a benchmark measures.

    Args:
        name: of the benchmark.
        options: what `bench_options` passed.
        settings: what else the figures depend on.
    """

    def __init__(self, name: str, options: Options, **settings: Any):
        self.name, self.options, self.settings = name, options, settings
        self.sections: list[Section] = []

    def measure(self, section: Section, rows: Iterable[dict[str, Any]], total: int | None = None) -> Section:
        """Measure the rows of a table, one after the other with a progress bar, then show it."""
        from rich.progress import track

        self.sections.append(section)
        for row in track(rows, section.title, total=total, console=console(error=True), transient=True):
            section.rows.append(row)
        self._show(section)
        return section

    def _show(self, section: Section) -> None:
        out = console()
        rows = [[self._text(column, row.get(column.name)) for column in section.columns] for row in section.rows]
        numbers = [column.name for column in section.columns if column.style]
        out.print(table(section.title, [column.name for column in section.columns], rows, numbers))
        for column in section.columns:
            if column.explanation:
                out.print(f"  {column.name}: {column.explanation}", style="dim", markup=False)
        if section.note:
            out.print(f"  {section.note}", style="dim", markup=False)
        out.print()

    def _text(self, column: Column, value: Any) -> str:
        text = column.text(value)
        # At the sizes of --quick a target says nothing, and "missed" would be read as a fault.
        return VERDICT.sub("not judged", text) if self.options.quick and column.name.endswith("target") else text

    def finish(self, plot: Callable[[Any, Report], None] | None = None) -> None:
        """Write the JSON file and the plot, where they were asked for.

        Args:
            plot: draws on a matplotlib figure, given it and this report.
        """
        if self.options.json:
            write_file(self.options.json, json.dumps(_plain(self.as_dict()), indent=1) + "\n")
        if self.options.plot and plot:
            write_file(self.options.plot, self._draw(plot, self.options.plot))
        written = [str(path) for path in (self.options.json, self.options.plot) if path]
        if written:
            console().print(f"written: {', '.join(written)}", soft_wrap=True, markup=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as the JSON file holds it."""
        return {
            "benchmark": self.name,
            "environment": {
                "flowkit": fk.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "threads": torch.get_num_threads(),
                "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
            "settings": {"quick": self.options.quick, "seed": self.options.seed, **self.settings},
            "sections": [
                {
                    "title": section.title,
                    "columns": {column.name: column.explanation for column in section.columns},
                    "rows": section.rows,
                    "note": section.note,
                }
                for section in self.sections
            ],
        }

    def _draw(self, plot: Callable[[Any, Report], None], path: Path) -> bytes:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise fk.MissingDependencyError(
                'a plot needs matplotlib: python -m pip install "flowkit[cinn]" brings it'
            ) from error
        figure = Figure(figsize=(11, 6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure, self)
        file = io.BytesIO()
        figure.savefig(file, format=path.suffix[1:].lower())
        return file.getvalue()


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: those become texts."""
    if isinstance(value, Ratio):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
