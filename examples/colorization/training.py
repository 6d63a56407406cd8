"""The training itself: photographs, crops, maximum likelihood; and the figure that judges it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowkit import Flow
from flowkit.errors import ConfigError
from flowkit.training import FitResult, FlowModule, Schedule, batches, fit, keyed_noise, streamed_batches
from flowkit_cinn.translation.crops import ColorCrops, Crop, StreamedCrops, held_out_batch
from flowkit_cinn.translation.metrics import Estimate, bits_per_dimension, bootstrap
from flowkit_cinn.translation.sources import Source

from .choices import Settings
from .recipes import RECIPES

HELD_OUT_IMAGES = 128  # at most so many are judged
ROWS = 16  # of them at a time
WORKERS_BESIDE_A_GPU = 4


@dataclass(frozen=True)
class Sizes:
    """What a colorization flow works on: (H, W) of L, (h, w) of ab."""

    photo: tuple[int, int]
    ab: tuple[int, int]


def sizes_of(flow: Flow, name: str = "the flow") -> Sizes:
    """The sizes that a colorization flow has; a flow without a condition sees ab alone.

    Raises:
        ConfigError: it is no colorization flow.
    """
    inputs, conditions = flow.input_shapes, flow.condition_shapes
    ab, photo = inputs.get("ab", ()), conditions.get("photo", (1, *inputs.get("ab", ())[1:]))
    fits = len(ab) == 3 and len(photo) == 3 and ab[0] == 2 and photo[0] == 1 and ab[1] * photo[2] == ab[2] * photo[1]
    if set(inputs) != {"ab"} or not set(conditions) <= {"photo"} or not fits:
        raise ConfigError(
            f"{name} is no colorization flow: it needs the input 'ab' (2, h, w) and the condition 'photo' (1, H, W) "
            f"of one aspect, and has the inputs {dict(inputs)} and the conditions {dict(conditions)}"
        )
    return Sizes((photo[1], photo[2]), (ab[1], ab[2]))


def train(
    flow: Flow,
    source: Source,
    settings: Settings,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Maximum likelihood of ab given L, on random crops, with noise on ab; feature net included.

    A flow without the condition `photo` is trained on ab alone.
    """
    recipe, sizes = RECIPES[settings.preset], sizes_of(flow)
    flow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # measured: a sixth less time on two cores
    module = FlowModule(
        flow,
        lr=settings.lr,
        weight_decay=recipe.weight_decay,
        schedule=Schedule(recipe.schedule, warmup=20, milestones=recipe.milestones),
        noise=settings.noise,
        clip=recipe.clip,
        seed=settings.seed,
        ema=recipe.ema,
        about={"preset": settings.preset},
    )
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    loader = crop_batches(source, sizes, module, settings, on_gpu=on_gpu)
    result = fit(
        module, loader, steps=settings.steps, checkpoint=checkpoint, resume=resume, device=device, callbacks=callbacks
    )
    if module.average is not None and not result.interrupted:
        module.average.install()
    return result


def crop_batches(source: Source, sizes: Sizes, run: Any, settings: Settings, *, on_gpu: bool) -> Iterable[Any]:
    """Batches `{"ab": (B, 2, h, w), "photo": (B, 1, H, W)}` from where `run` is to the last of `settings.steps`.

    Where the source names shards to stream, they are read front to back, otherwise images by their number.
    """
    workers = WORKERS_BESIDE_A_GPU if on_gpu else 0
    if source.shards:
        streamed = StreamedCrops(photo_size=sizes.photo, ab_size=sizes.ab, seed=settings.seed)
        return streamed_batches(
            source.shards,
            run,
            decode=streamed,
            collate=streamed.collate,
            batch_size=settings.batch_size,
            steps=settings.steps,
            seed=settings.seed,
            workers=workers,
        )
    crops = ColorCrops(
        source.train,
        photo_size=sizes.photo,
        ab_size=sizes.ab,
        seed=settings.seed,
        length=settings.steps * settings.batch_size,
        report=source.report,
    )
    return batches(
        crops,
        run,
        batch_size=settings.batch_size,
        steps=settings.steps,
        shuffle=False,  # the crops' own order is shuffled already
        seed=settings.seed,
        workers=workers,
    )


def held_out(flow: Flow, source: Source) -> tuple[Crop, list[str]]:
    """The held-out crops that a flow is judged on, and their names."""
    sizes = sizes_of(flow)
    return held_out_batch(source.held_out, photo_size=sizes.photo, ab_size=sizes.ab, count=HELD_OUT_IMAGES)


def held_out_bits(flow: Flow, crops: Crop, noise: float, seed: int = 0) -> Estimate:
    """-log2 q(ab | L) / D of held-out crops, of normalised ab with the noise that it was trained with."""
    return bootstrap(bits_of_each(flow, crops, noise, seed))


@torch.no_grad()
def bits_of_each(flow: Flow, crops: Crop, noise: float, seed: int = 0) -> torch.Tensor:
    """The same for every crop, `(B,)`."""
    ab = crops["ab"] + noise * keyed_noise(crops["ab"], seed, "held out", range(len(crops["ab"])))
    log_prob = [
        flow.log_prob(ab[rows], given=crops["photo"][rows] if flow.condition_shapes else None)
        for rows in row_slices(len(ab))
    ]
    return bits_per_dimension(torch.cat(log_prob), flow.dim)


def train_and_judge(
    flow: Flow, source: Source, settings: Settings, *, device: str = "auto", callbacks: Sequence[Any] = ()
) -> torch.Tensor:
    """Train any colorization flow, conditional or not, for `settings.steps`: the bits of each held-out image.

    So the conditional flow can be compared, image by image, with the same flow trained without its condition.
    """
    train(flow, source, settings, device=device, callbacks=callbacks)
    return bits_of_each(flow, held_out(flow, source)[0], settings.noise, settings.seed)


def row_slices(count: int, rows: int = ROWS) -> list[slice]:
    """The rows 0 .. count - 1 in pieces."""
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
