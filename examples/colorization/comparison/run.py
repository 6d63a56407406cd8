"""The whole comparison: each system trained, judged and drawn; what is done is kept, and `--resume` does the rest."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import flowkit as fk
from flowkit.cli.output import write_file
from flowkit.errors import ConfigError, NonFiniteError, StorageError
from flowkit.training.processes import launched
from flowkit.training.progress import duration
from flowkit.training.run import trainer_device
from flowkit_cinn.translation.baselines import Colorizer
from flowkit_cinn.translation.crops import held_out_batch
from flowkit_cinn.translation.images import save_image
from flowkit_cinn.translation.realism import inception_or_substitute
from flowkit_cinn.translation.sources import Source, open_source

from ..._common.runs import INTERRUPTED, Where, begin, terminal
from ..choices import Settings
from ..recipes import COMPARED_IMAGES
from .judging import Judges, drawn, judge, judge_grayscale, judge_truth, judges
from .page import page
from .pictures import SHOWN, comparison_pictures
from .systems import FIXED_NET, System, systems
from .table import GRAY, TRUTH, print_tables
from .training import train_system

METRICS, SHOWN_SAMPLES = "metrics.json", 3


def run(settings: Settings, where: Where) -> int:
    """Train and judge every system, and leave table, pictures and report in a run folder.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        FlowkitError: the data cannot be had, the folder cannot be written, the device is not there; the comparison can
            go on from what was done.
    """
    if launched() is not None:
        raise ConfigError("--compare trains one system after another in one process: start it without torchrun")
    out = terminal()
    trainer_device(where.device)
    source = open_source(settings.data, root=settings.root, download=where.download)
    compared = systems(settings.preset, settings.ablations)
    out.print(source.report.summary(), soft_wrap=True)
    folder = begin(where, settings)
    out.print(
        f"Comparing {len(compared)} systems, each trained for {settings.steps:,} steps of {settings.batch_size}, in "
        f"{folder}. Ctrl-C keeps what is done.",
        soft_wrap=True,
    )
    metrics = read_metrics(folder) if where.resume else {"systems": {}}
    having = judges_of(settings, source, compared[0])
    metrics.update(described(settings, source, having))
    shown: dict[str, Tensor] = {}
    for number, system in enumerate(compared, 1):
        torch.manual_seed(settings.seed)
        model = system.build()
        weights, checkpoint = (folder / f"{system.file}.{kind}" for kind in ("safetensors", "ckpt"))
        entry = metrics["systems"].get(system.name)
        if entry is None:
            out.print(f"{number} of {len(compared)}: {system.name}, {parameters_of(model):,} parameters")
            if system.name == FIXED_NET:
                take_over_net(model, compared, folder)
            entry = trained_and_judged(model, system, source, settings, where.device, having, checkpoint)
            if entry is None:
                go_on = f"flowkit examples colorization --compare --resume --out {shlex.quote(str(folder))}"
                out.print(f"What is done is kept. Go on with:\n  {go_on}", soft_wrap=True)
                return INTERRUPTED
            if "diverged" not in entry:
                write_weights(model, weights)
            metrics["systems"][system.name] = entry
            write_metrics(folder, metrics)
            checkpoint.unlink(missing_ok=True)
        elif "diverged" not in entry:
            read_weights(model, weights)
        if "diverged" not in entry:
            photos = having.crops["photo"][:SHOWN]
            shown[system.name] = drawn(model.eval(), photos, SHOWN_SAMPLES, settings.seed, settings.temperature)
    leave_results(settings, where.command, metrics, having, shown, folder, out)
    return 0


def judges_of(settings: Settings, source: Source, system: System) -> Judges:
    """Held-out photographs, others to compare features with, and the networks that look at them."""
    sizes = {"photo_size": (system.photo_size,) * 2, "ab_size": (system.size,) * 2}
    crops, names = held_out_batch(source.held_out, **sizes, count=COMPARED_IMAGES)
    reference, _ = held_out_batch(source.train, **sizes, count=len(names))
    extractor = inception_or_substitute()
    return judges(crops, names, reference, source, extractor, settings=settings)


def described(settings: Settings, source: Source, having: Judges) -> dict[str, Any]:
    """What metrics.json says beside the figures of the systems."""
    return {
        "images": len(having.ab),
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "preset": settings.preset,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "data": source.report.summary(),
        "fid_features": having.extractor.name,
        "fid_note": having.extractor.note,
        "fid_reference": f"{len(having.reference)} training photographs",
        "top5_without": having.without,
        "bits_per_dimension_of": f"-log2 q(ab | L) / D, of normalised ab with noise of {settings.noise}",
        GRAY: judge_grayscale(having),
        TRUTH: judge_truth(having),
    }


def trained_and_judged(
    model: nn.Module,
    system: System,
    source: Source,
    settings: Settings,
    device: str,
    having: Judges,
    checkpoint: Path,
) -> dict[str, Any] | None:
    """One system's entry in metrics.json: its figures, or how it diverged; None after Ctrl-C."""
    out, show = terminal(), terminal(error=True)
    try:
        result = train_system(model, system, source, settings, device=device, checkpoint=checkpoint, show=show)
        if result.interrupted:
            out.print(f"Stopped in {system.name} after step {result.steps:,} of {settings.steps:,}.", soft_wrap=True)
            return None
        started = time.monotonic()
        figures = judge(model.eval(), having)
    except NonFiniteError as error:
        out.print(f"  {system.name} diverged: {error}", soft_wrap=True)
        return {"diverged": str(error)}
    figures["training_seconds"], figures["judging_seconds"] = result.seconds, time.monotonic() - started
    figures["parameters"], figures["ablation"] = parameters_of(model), system.ablation
    best, variance = (figures["ab"][name]["mean"] for name in ("best_of_n_mse", "variance"))
    out.print(
        f"  {system.name}: best of 8 {best:.1f}, variance {variance:.1f} (Lab units squared), "
        f"trained in {duration(result.seconds)}",
        soft_wrap=True,
    )
    return figures


def take_over_net(model: nn.Module, compared: list[System], folder: Path) -> None:
    """Give a flow the conditioning net that the regression, the first system, was trained with.

    Raises:
        StorageError: that one's weights are not there: it diverged, or they were removed.
    """
    teacher = compared[0].build()
    assert isinstance(model, fk.Flow)
    assert isinstance(teacher, Colorizer)
    read_weights(teacher, folder / f"{compared[0].file}.safetensors")
    net: nn.Module = model.network.nodes["pyramid"]
    net.load_state_dict(teacher.pyramid.state_dict())


def leave_results(
    settings: Settings,
    command: str,
    metrics: dict[str, Any],
    having: Judges,
    shown: dict[str, Tensor],
    folder: Path,
    out: Console,
) -> None:
    """Pictures, the report, and the tables on the terminal."""
    pictures: dict[str, Image.Image] = comparison_pictures(having, shown, metrics["systems"])
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    write_metrics(folder, metrics)
    write_file(folder / "report.html", page(settings, metrics, pictures, command))
    print_tables(out, metrics)
    for name in (*pictures, "report.html", METRICS):
        out.print(f"  {folder / name}", soft_wrap=True)


def write_weights(model: nn.Module, path: Path) -> None:
    """A flow as `fk.load` reads it; a baseline's weights."""
    if isinstance(model, fk.Flow):
        fk.save(model, path)
    else:
        write_file(path, save({name: value.contiguous() for name, value in model.state_dict().items()}))


def read_weights(model: nn.Module, path: Path) -> None:
    """Weights that `write_weights` wrote, into a model of the same build.

    Raises:
        StorageError: they are missing, damaged, or another model's.
    """
    try:
        state = fk.load(path).state_dict() if isinstance(model, fk.Flow) else load_file(path)
        model.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(f"'{path}' is missing, damaged, or holds another model: remove it to train again") from error


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json as it was left; without systems where there is none.

    Raises:
        StorageError: it is damaged.
    """
    path = folder / METRICS
    if not path.is_file():
        return {"systems": {}}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["systems"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"'{path}' is damaged, so the comparison cannot go on: move it away") from error
    return found


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json, whole or not at all."""
    write_file(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


def parameters_of(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
