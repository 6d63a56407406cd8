"""Table 1 and the table of ablations, with the paper's figures beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from flowkit.cli.output import table

TRUTH = "ground truth"
GRAY = "grayscale"
COLUMNS = ("system", "MSE best of 8", "variance", "FID", "VGG top-5", "bits/dim", "parameters", "trained")
# Table 1 of the paper: no units are given for the first two, and its FID is of Inception's features on 5,000 images.
PAPER: dict[str, tuple[str, str, str, str]] = {
    "cINN": ("3.53 ± 0.04", "35.2 ± 0.3", "25.13 ± 0.30", "85.00 ± 0.48"),
    "VAE-MDN": ("4.06 ± 0.04", "21.1 ± 0.2", "25.98 ± 0.28", "85.00 ± 0.48"),
    "cGAN": ("9.75 ± 0.06", "0.0 ± 0.0", "24.41 ± 0.27", "84.62 ± 0.53"),
    "CNN": ("6.77 ± 0.05", "", "24.95 ± 0.27", "86.86 ± 0.41"),
    GRAY: ("", "", "30.91 ± 0.27", "86.02 ± 0.43"),
    TRUTH: ("", "", "14.69 ± 0.18", "91.66 ± 0.43"),
}
UNITS = "MSE and variance: Lab units squared over a and b (about -128 to 127), a mean over channels and pixels"


def rows(metrics: dict[str, Any], ablations: bool) -> list[tuple[str, ...]]:
    """The cells of one of the tables; the flow itself is in both."""
    systems = metrics["systems"]
    order = ["cINN", "VAE-MDN", "cGAN", "CNN"] if not ablations else ["cINN"]
    if ablations:
        order += [name for name in systems if name not in PAPER]
    cells = [_row(name, systems[name]) for name in order if name in systems]
    if not ablations:
        cells += [_row(GRAY, metrics[GRAY]), _row(TRUTH, metrics[TRUTH])]
    return cells


def paper_rows() -> list[tuple[str, ...]]:
    """The paper's own table."""
    return [(name, *values) for name, values in PAPER.items()]


def has_ablations(metrics: dict[str, Any]) -> bool:
    """Whether any was trained."""
    return any(name not in PAPER for name in metrics["systems"])


def remarks(metrics: dict[str, Any]) -> list[str]:
    """What one must know to read the tables."""
    said = [
        f"{UNITS}; errors are bootstrap errors of the mean over {metrics['images']} held-out photographs. The paper "
        f"gives no units for its own figures, which therefore stand beside these and cannot be compared.",
        f"FID: torchmetrics, on features of {metrics['fid_features']}, one sample a photograph, against "
        f"{metrics['fid_reference']}.",
    ]
    if metrics["fid_note"]:
        said.append(f"{metrics['fid_note']}, so these distances are not the usual FID.")
    if metrics["top5_without"]:
        said.append(f"VGG top-5 accuracy is left out: {metrics['top5_without']}.")
    said += [f"{n} diverged: {f['diverged']}" for n, f in metrics["systems"].items() if "diverged" in f]
    said.append(f"Samples of the flows are drawn at temperature {metrics['temperature']:g}, all others as trained.")
    said.append(f"Bits per dimension: {metrics['bits_per_dimension_of']}.")
    return said


def print_tables(out: Console, metrics: dict[str, Any]) -> None:
    """All of it on a terminal."""
    numbers = COLUMNS[1:]
    title = f"Table 1, on {metrics['images']} held-out photographs"
    out.print()
    out.print(table(title, COLUMNS, rows(metrics, False), numbers=numbers))
    out.print(
        table("The paper's Table 1 (5,000 ImageNet photographs)", COLUMNS[:5], paper_rows(), numbers=COLUMNS[1:5])
    )
    if has_ablations(metrics):
        out.print(table("The flow without ...", COLUMNS, rows(metrics, True), numbers=numbers))
    for remark in remarks(metrics):
        out.print(remark, soft_wrap=True)


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    if "diverged" in figures:
        return (name, "diverged", "", "", "", "", "", "")
    ab = figures.get("ab", {})
    seconds, count = figures.get("training_seconds"), figures.get("parameters")
    return (
        name,
        _cell(ab.get("best_of_n_mse"), _one),
        _cell(ab.get("variance"), _one),
        _cell(figures.get("fid"), _three),
        _cell(figures.get("top5"), _percent),
        _cell(figures.get("bits_per_dimension"), _three),
        "" if count is None else f"{count:,}",
        "" if seconds is None else f"{seconds / 60:.1f} min",
    )


def _cell(value: dict[str, float | None] | None, form: Callable[[float], str]) -> str:
    if value is None or value["mean"] is None:
        return "–"
    error = value["error"]
    return form(value["mean"]) if error is None else f"{form(value['mean'])} ± {form(error)}"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _three(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
