"""A whole run: train, judge, draw, report; every file written whole or not at all."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console

import flowkit as fk
from flowkit.cli.output import table, write_file
from flowkit.training import FitResult, Progress
from flowkit.training.progress import duration
from flowkit.training.run import trainer_device
from flowkit_cinn import colorization_cinn
from flowkit_cinn.translation.images import save_image
from flowkit_cinn.translation.pictures import loss_curve
from flowkit_cinn.translation.sources import Source, open_source
from flowkit_cinn.translation.streams import open_stream

from .._common.recipes import CHECKPOINT, MODEL
from .._common.runs import INTERRUPTED, Where, announcement, begin, first_process, mean_bits, stopped, terminal
from .choices import Settings
from .gallery import colorizations, temperatures
from .pretraining import Pretraining, pretrain
from .recipes import METRIC_SAMPLES
from .report import Report, page
from .scoring import judge
from .training import held_out, train


def run(settings: Settings, where: Where) -> int:
    """Train and leave everything in a run folder.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        FlowkitError: the data cannot be had, the folder cannot be written, the device is not there, or training failed;
            the run can go on from its checkpoint after the last.
    """
    out = terminal()
    trainer_device(where.device)
    if settings.stream:
        source = open_stream(settings.data, settings.held_out)
    else:
        source = open_source(settings.data, root=settings.root, download=where.download)
    out.print(source.report.summary(), soft_wrap=True)
    torch.manual_seed(settings.seed)
    flow = colorization_cinn(settings.preset)
    folder = begin(where, settings)
    count = sum(p.numel() for p in flow.parameters())
    out.print(announcement(settings, count, folder), soft_wrap=True)
    pretraining = None
    if settings.pretrain:
        pretraining = pretrain(flow, source, settings, device=where.device, folder=folder, show=terminal(error=True))
        if pretraining.interrupted:
            steps = len(pretraining.losses)
            out.print(stopped("colorization", folder, steps, settings.pretrain, "of pre-training"), soft_wrap=True)
            return INTERRUPTED
    result = train(
        flow,
        source,
        settings,
        device=where.device,
        checkpoint=folder / CHECKPOINT,
        resume=where.resume and (folder / CHECKPOINT).is_file(),
        callbacks=[Progress(terminal(error=True))],
    )
    if result.interrupted:
        out.print(stopped("colorization", folder, result.steps, settings.steps), soft_wrap=True)
        return INTERRUPTED
    if first_process():
        leave_results(flow, source, settings, where.command, result, folder, out, pretraining)
    return 0


def leave_results(
    flow: fk.Flow,
    source: Source,
    settings: Settings,
    command: str,
    result: FitResult,
    folder: Path,
    out: Console,
    pretraining: Pretraining | None = None,
) -> None:
    """The model, figures, pictures and the report of a trained flow."""
    flow.eval()
    fk.save(flow, folder / MODEL)
    started = time.monotonic()
    crops, _ = held_out(flow, source)
    figures = judge(flow, crops, settings.noise, settings.seed)
    seed, images = settings.seed, source.held_out
    pictures = {
        "colorizations.png": colorizations(flow, images, settings.samples, settings.temperature, seed),
        "temperature.png": temperatures(flow, images, seed),
    }
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    metrics = {
        "held_out": figures,
        "training": {
            "steps": result.steps,
            "batch_size": settings.batch_size,
            "preset": settings.preset,
            "seed": settings.seed,
            "bits_per_dimension_first": mean_bits(result.losses[:1]),
            "bits_per_dimension_last_50": mean_bits(result.losses[-50:]),
        },
        "data": {
            "name": source.report.data,
            "images": source.report.used,
            "held_out": source.report.held_out,
            "split": source.report.split,
            "skipped": [[skip.name, skip.reason] for skip in source.report.skipped],
        },
        "seconds": {"training": round(result.seconds, 1), "pictures": round(time.monotonic() - started, 1)},
    }
    if pretraining is not None:
        metrics["pretraining"] = {
            "steps": len(pretraining.losses),
            "nats_per_pixel_first": pretraining.losses[0],
            "nats_per_pixel_last_50": mean(pretraining.losses[-50:]),
        }
        metrics["seconds"]["pretraining"] = round(pretraining.seconds, 1)
    write_file(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    bits = [loss / math.log(2) for loss in result.losses]
    curve = loss_curve({"training": (list(range(1, len(bits) + 1)), bits)}, size=(8.0, 3.4))
    drawing = flow.network.graph.draw("svg")
    report = Report(settings, metrics, {**pictures, "curve": curve}, drawing, command, source.report)
    write_file(folder / "report.html", page(report))
    _say_what_is_there(out, folder, figures, result)


def _say_what_is_there(out: Console, folder: Path, figures: dict[str, Any], result: FitResult) -> None:
    best, gray, variance = (figures["ab"][name]["mean"] for name in ("best_of_n_mse", "grayscale_mse", "variance"))
    rows = [
        ("bits per dimension", f"{figures['bits_per_dimension']['mean']:.3f}", "of normalised ab with its noise"),
        (f"best-of-{METRIC_SAMPLES} MSE", f"{best:.1f}", f"the grayscale's is {gray:.1f} (Lab units squared)"),
        (f"variance of {METRIC_SAMPLES}", f"{variance:.1f}", "per pixel (Lab units squared)"),
        ("trained", duration(result.seconds), f"{result.steps:,} steps in all"),
    ]
    out.print()
    out.print(table(f"{figures['images']} held-out images", ("figure", "value", ""), rows, numbers=("value",)))
    for name, what in (
        ("colorizations.png", "diverse samples for held-out images"),
        ("temperature.png", "one latent code at five temperatures"),
        ("report.html", "all of it on one page"),
        ("metrics.json", "the figures"),
        (MODEL, "the flow: fk.load reads it"),
        (CHECKPOINT, "the last state: --resume goes on from it"),
    ):
        out.print(f"  {folder / name}  {what}", soft_wrap=True)
    out.print("Colorize your own photographs with it: flowkit examples colorization PHOTO...", soft_wrap=True)
