"""A whole run: train, judge, draw; every file written whole or not at all."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch

import flowkit as fk
from flowkit.cli.output import console, table, write_file
from flowkit.training import FitResult, Progress
from flowkit.training.progress import duration
from flowkit.training.run import trainer_device
from flowkit_cinn import day2night_cinn
from flowkit_cinn.translation.day_night import Cameras, open_cameras
from flowkit_cinn.translation.images import save_image
from flowkit_cinn.translation.metrics import bootstrap
from flowkit_cinn.translation.pictures import loss_curve

from .._common.recipes import CHECKPOINT, MODEL
from .._common.runs import INTERRUPTED, Where, announcement, begin, first_process, mean_bits, stopped, terminal
from .gallery import samples_picture, temperatures_picture
from .report import page
from .settings import Settings
from .training import bits_of_each, held_out, train


def run(settings: Settings, where: Where) -> int:
    """Train and leave everything in a run folder.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        FlowkitError: the data cannot be had, the folder cannot be written, the device is not there, or training failed;
            the run can go on from its checkpoint after the last.
    """
    show = terminal()
    trainer_device(where.device)
    cameras = open_cameras(settings.data)
    show.print(cameras.summary(), soft_wrap=True)
    torch.manual_seed(settings.seed)
    flow = day2night_cinn(settings.preset, unconditional=settings.without_condition)
    folder = begin(where, settings)
    count = sum(p.numel() for p in flow.parameters())
    show.print(announcement(settings, count, folder), soft_wrap=True)
    result = train(
        flow,
        cameras,
        settings,
        device=where.device,
        checkpoint=folder / CHECKPOINT,
        resume=where.resume,
        callbacks=[Progress(terminal(error=True))],
    )
    if result.interrupted:
        show.print(stopped("day2night", folder, result.steps, settings.steps), soft_wrap=True)
        return INTERRUPTED
    if first_process():
        leave_results(flow, cameras, settings, where.command, result, folder)
    return 0


def leave_results(
    flow: fk.Flow, cameras: Cameras, settings: Settings, command: str, result: FitResult, folder: Path
) -> None:
    """The model, figures, pictures and the report of a trained flow."""
    flow.eval()
    fk.save(flow, folder / MODEL)
    started = time.monotonic()
    pairs, names = held_out(flow, cameras)
    bits = bits_of_each(flow, pairs, settings.noise, settings.seed)
    estimate = bootstrap(bits)
    of_camera = {
        name: float(bits[torch.tensor([other == name for other in names])].mean()) for name in dict.fromkeys(names)
    }
    curve = [loss / math.log(2) for loss in result.losses]
    pictures = {
        "nights.png": samples_picture(flow, pairs, names, settings.samples, settings.temperature, settings.seed),
        "temperature.png": temperatures_picture(flow, pairs, names, settings.seed),
    }
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    metrics = {
        "held_out": {
            "pairs": len(names),
            "bits_per_dimension": {
                "mean": estimate.mean,
                "error": None if math.isnan(estimate.error) else estimate.error,  # JSON has no nan
            },
            "bits_per_dimension_of": f"-log2 q(night | day) / D, of (RGB - 0.5) / 0.25 with noise {settings.noise}",
            "by_camera": of_camera,
        },
        "training": {
            "steps": result.steps,
            "batch_size": settings.batch_size,
            "preset": settings.preset,
            "seed": settings.seed,
            "without_condition": settings.without_condition,
            "bits_per_dimension_first": mean_bits(result.losses[:1]),
            "bits_per_dimension_last_50": mean_bits(result.losses[-50:]),
        },
        "data": cameras.summary(),
        "seconds": {"training": round(result.seconds, 1), "pictures": round(time.monotonic() - started, 1)},
    }
    write_file(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    steps = loss_curve({"training": (list(range(1, len(curve) + 1)), curve)}, size=(8.0, 3.4))
    graph = flow.network.graph.draw("svg")
    write_file(folder / "report.html", page(settings, metrics, {**pictures, "curve": steps}, graph, command))
    show = console()
    rows = [("all", f"{estimate.mean:.3f}"), *((name, f"{value:.3f}") for name, value in of_camera.items())]
    show.print()
    show.print(
        table(f"{len(names)} held-out pairs", ("camera", "bits per dimension"), rows, numbers=("bits per dimension",))
    )
    show.print(f"Trained in {duration(result.seconds)}, {result.steps:,} steps in all.")
    for name, what in (
        ("nights.png", "diverse nights of places that training never saw"),
        ("temperature.png", "one latent code at five temperatures"),
        ("report.html", "all of it on one page"),
        ("metrics.json", "the figures"),
        (MODEL, "the flow: fk.load reads it"),
        (CHECKPOINT, "the last state: --resume goes on from it"),
    ):
        show.print(f"  {folder / name}  {what}", soft_wrap=True)
