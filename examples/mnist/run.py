"""A whole run: train with the label and without, judge, draw, report; every file written whole or not at all."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import flowkit as fk
from flowkit.cli.output import console, table, write_file
from flowkit.errors import ConfigError
from flowkit.training import FitResult, Progress
from flowkit.training.progress import duration
from flowkit.training.run import trainer_device
from flowkit_cinn import mnist_cinn
from flowkit_cinn.translation.images import save_image
from flowkit_cinn.translation.pictures import loss_curve

from .._common.recipes import CHECKPOINT, MODEL
from .._common.runs import INTERRUPTED, Where, begin, first_process, mean_bits, stopped, terminal
from .choices import Settings
from .digits import Digits, open_digits
from .gallery import reliability_picture, samples, transfer
from .judging import judge
from .recipes import BLIND_CHECKPOINT
from .report import Report, page
from .training import train

TITLES = (("training", CHECKPOINT), ("without label", BLIND_CHECKPOINT))


def run(settings: Settings, where: Where) -> int:
    """Train and leave everything in a run folder.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        FlowkitError: the data cannot be had or does not fit the preset, the folder cannot be written, the device is not
            there, or training failed; the run can go on from its checkpoint after the last.
    """
    out = terminal()
    trainer_device(where.device)
    digits = open_digits(settings.data, where.download)
    out.print(digits.summary, soft_wrap=True)
    flows = _flows(settings, digits)
    folder = begin(where, settings)
    count = sum(p.numel() for p in flows[0].parameters())
    out.print(
        f"Preset '{settings.preset}', {count:,} parameters: {settings.steps:,} steps of {settings.batch_size}, then as "
        f"many without the label, in {folder}. Ctrl-C keeps the state.",
        soft_wrap=True,
    )
    results: list[FitResult] = []
    for flow, (title, name) in zip(flows, TITLES, strict=True):
        results.append(
            train(
                flow,
                digits,
                settings,
                device=where.device,
                checkpoint=folder / name,
                resume=where.resume and (folder / name).is_file(),
                callbacks=[Progress(terminal(error=True), title)],
            )
        )
        if results[-1].interrupted:
            done = sum(result.steps for result in results)
            out.print(stopped("mnist", folder, done, 2 * settings.steps), soft_wrap=True)
            return INTERRUPTED
    if first_process():
        leave_results(flows, digits, settings, where.command, results, folder)
    return 0


def leave_results(
    flows: Sequence[fk.Flow],
    digits: Digits,
    settings: Settings,
    command: str,
    results: Sequence[FitResult],
    folder: Path,
) -> None:
    """The model, figures, pictures and the report of the flow and of its blind twin."""
    flow, blind = (each.eval() for each in flows)
    fk.save(flow, folder / MODEL)
    started = time.monotonic()
    judgement = judge(flow, blind, digits.held_out, settings.noise, settings.seed)
    figures = judgement.figures
    pictures = {
        "samples.png": samples(flow, settings.samples, settings.temperature, settings.seed),
        "transfer.png": transfer(flow, digits.held_out),
        "reliability.png": reliability_picture(judgement.bins, figures["expected_calibration_error"]),
    }
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    given, without = (result.losses for result in results)
    seconds = sum(result.seconds for result in results)
    metrics = {
        "held_out": figures,
        "training": {
            "steps": results[0].steps,
            "batch_size": settings.batch_size,
            "preset": settings.preset,
            "seed": settings.seed,
            "bits_per_dimension_first": mean_bits(given[:1]),
            "bits_per_dimension_last_50": mean_bits(given[-50:]),
            "bits_per_dimension_last_50_without_label": mean_bits(without[-50:]),
        },
        "data": digits.summary,
        "seconds": {"training": round(seconds, 1), "pictures": round(time.monotonic() - started, 1)},
    }
    write_file(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    curve = loss_curve({"with the label": _curve(given), "without": _curve(without)}, size=(8.0, 3.4))
    drawing = flow.network.graph.draw("svg")
    report = Report(settings, metrics, {**pictures, "curve": curve}, drawing, command)
    write_file(folder / "report.html", page(report))
    _say_what_is_there(folder, figures, seconds, results[0].steps)


def _flows(settings: Settings, digits: Digits) -> list[fk.Flow]:
    """The flow and its twin without the label.

    Raises:
        ConfigError: the preset is for digits of another size.
    """
    flows = []
    for unconditional in (False, True):
        torch.manual_seed(settings.seed)
        flows.append(mnist_cinn(settings.preset, unconditional=unconditional))
    size = flows[0].input_shapes["digit"][-1]
    if size != digits.size:
        raise ConfigError(
            f"the preset '{settings.preset}' is for digits of {size} x {size}, and these are {digits.size} x "
            f"{digits.size}: 'digits' goes with scikit-learn's, 'small' and 'paper' with --data"
        )
    return flows


def _curve(losses: Sequence[float]) -> tuple[list[int], list[float]]:
    return list(range(1, len(losses) + 1)), [loss / math.log(2) for loss in losses]


def _say_what_is_there(folder: Path, figures: dict[str, Any], seconds: float, steps: int) -> None:
    bits, without, accuracy = (
        figures[name]["mean"] for name in ("bits_per_dimension", "bits_per_dimension_without_label", "accuracy")
    )
    error = figures["expected_calibration_error"]
    rows = [
        ("bits per dimension", f"{bits:.3f}", "of normalised grey with its noise"),
        ("without the label", f"{without:.3f}", "the same flow, trained alike"),
        ("accuracy", f"{accuracy:.1%}", "of the label with the largest likelihood"),
        ("expected calibration error", f"{error:.3f}", "0 is perfect"),
        ("trained", duration(seconds), f"{steps:,} steps with the label, and as many without"),
    ]
    out = console()
    out.print()
    out.print(table(f"{figures['digits']:,} held-out digits", ("figure", "value", ""), rows, numbers=("value",)))
    for name, what in (
        ("samples.png", "a row of digits for each label"),
        ("transfer.png", "the style of held-out digits, with other labels"),
        ("reliability.png", "how sure the classifier is, and how often it is right"),
        ("report.html", "all of it on one page"),
        ("metrics.json", "the figures"),
        (MODEL, "the flow: fk.load reads it"),
        (CHECKPOINT, "the last state: --resume goes on from it"),
    ):
        out.print(f"  {folder / name}  {what}", soft_wrap=True)
