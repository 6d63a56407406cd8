"""What the plots of benchmarks share: bars that are legible however many there are, curves, and axes with numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .report import Report, Section
from .statistics import Ratio

OWN, PEER, ACCENT = "#1f5fa8", "#9aa3ad", "#d1602b"  # flowkit's, everybody else's, and what they are compared with
WIDTH, BAR, AROUND = 11.0, 0.24, 1.0  # inches: of the figure, of a bar, and of what is around the bars of a panel
KEYS = ("samples", "depth", "hidden", "sides", "pass", "condition", "kernel", "subnets", "implementation")


def ratio_bars(figure: Any, report: Report) -> None:
    """A panel for each table with ratios, a bar for each of its rows, flowkit's in colour, with value and interval."""
    found = [(section, rows) for section in report.sections if (rows := _with_ratio(section.rows))]
    if not found:
        return
    heights = [BAR * max(2, len(rows)) + AROUND for _, rows in found]
    figure.set_size_inches(WIDTH, sum(heights))
    panels = figure.subplots(len(found), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (section, rows) in zip(panels, found, strict=True):
        _bars(axes, section, rows)


def _with_ratio(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row.get("ratio"), Ratio)]


def _bars(axes: Any, section: Section, rows: Sequence[dict[str, Any]]) -> None:
    ratios = [row["ratio"] for row in rows]
    names = [_name(row) for row in rows]
    places = range(len(rows))
    spread = [[max(0.0, r.value - r.low) for r in ratios], [max(0.0, r.high - r.value) for r in ratios]]
    own = ["flowkit" in name for name in names]
    colours = [OWN if mine or not any(own) else PEER for mine in own]
    error = {"ecolor": "0.3", "elinewidth": 1}
    axes.barh(places, [r.value for r in ratios], height=0.7, color=colours, xerr=spread, error_kw=error)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    edge = max(1.0, *(r.value for r in ratios))  # a wild interval of a short run does not shrink the bars
    axes.set_xlim(0, 1.15 * edge)
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
    for place, ratio in zip(places, ratios, strict=True):
        axes.text(1.01, place, str(ratio), **beside)
    axes.axvline(1, color=ACCENT, linewidth=1)
    meaning = next(column.explanation for column in section.columns if column.name == "ratio")
    axes.set_xlabel(f"ratio {meaning.split(';')[0]}; the line is 1", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(section.title, loc="left", fontsize=10)


def _name(row: dict[str, Any]) -> str:
    """What a row is about: its texts, and its numbers with their column's name."""
    said = {key: row[key] for key in KEYS if row.get(key) not in (None, "-")}
    named = {key for key, value in said.items() if key in ("sides", "kernel") or isinstance(value, int)}
    return ", ".join(f"{key} {value}" if key in named else str(value) for key, value in said.items())


def counts(axes: Any, values: Iterable[int]) -> None:
    """An x axis of doublings, with the numbers themselves in place of powers of two."""
    shown = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [f"{value:,}" for value in shown])
    axes.minorticks_off()


def magnitudes(axes: Any) -> None:
    """A logarithmic y axis with numbers on it, also where it spans less than a power of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def line(axes: Any, x: Sequence[float], y: Sequence[float], name: str) -> None:
    """A curve with its name for the legend: flowkit's are solid, those of other toolkits dashed."""
    peer = any(other in name for other in ("FrEIA", "nflows", "normflows", "zuko", "memcnn"))
    axes.plot(x, y, marker="o", markersize=4, linestyle="--" if peer else "-", label=name)


def curves(axes: Any, named: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Losses of several runs: what each step gave, faint, and over it the median of its neighbourhood."""
    for (name, (x, y)), colour in zip(named.items(), (PEER, OWN, ACCENT), strict=False):
        reach = len(y) // 100
        smooth = [statistics.median(y[max(0, i - reach) : i + reach + 1]) for i in range(len(y))]
        axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.3)
        axes.plot(x, smooth, color=colour, linewidth=1.5, marker="o" if len(y) < 10 else "", label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def worst_bars(axes: Any, worst: Mapping[str, float], floor: float) -> None:
    """A logarithmic bar for each name, those that are exact at the floor; the figure is made high enough for all."""
    figure = axes.get_figure()
    figure.set_size_inches(figure.get_size_inches()[0], max(6.0, 0.16 * len(worst) + AROUND))
    axes.barh(range(len(worst)), [max(value, floor) - floor / 2 for value in worst.values()], left=floor / 2, color=OWN)
    axes.set_yticks(range(len(worst)), list(worst), fontsize=7)
    axes.set_ylim(len(worst) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(left=floor / 2)
    axes.grid(axis="x", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Any) -> None:
    """Beside the axes, where it covers no curve."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
