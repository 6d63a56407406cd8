"""A user's own photographs, colorized at their own size."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import flowkit as fk
from flowkit.cli.output import console
from flowkit.errors import ConfigError, StorageError
from flowkit.training.run import trainer_device
from flowkit_cinn.translation.color import split_rgb
from flowkit_cinn.translation.fitting import fit, shrink
from flowkit_cinn.translation.images import WRITTEN_FORMATS, PhotographError, read_photograph, save_image
from flowkit_cinn.translation.pictures import grid
from flowkit_cinn.translation.upsample import recolor

from .._common.runs import free_path
from .choices import PhotographChoices
from .scoring import samples_of
from .training import sizes_of

CHECK_SIDE = 64  # a first look at each photograph, before any work is done
SHEET_SIDE = 192
LARGE_PIXELS = 30_000_000  # from here on a sample takes 20 seconds or more, and that is said


def colorize(chosen: PhotographChoices) -> list[Path]:
    """Colorize each photograph several times, and lay everything out on a contact sheet.

    Every photograph is looked at before the first is worked on, so a bad one stops the command before it has written
    anything.

    Returns:
        The files that were written, the contact sheet at the end.

    Raises:
        PhotographError: one cannot be read, or the results cannot be written.
        StorageError: the model cannot be read.
        ConfigError: it is no colorization flow, or the device is not there.
    """
    out = console()
    device = torch_device(chosen.device)
    flow = load_model(chosen.model).to(device)
    for path in chosen.photographs:
        read_photograph(path, at_least=CHECK_SIDE)
    if chosen.out is not None:
        _make_folder(chosen.out)
    out.print(
        f"Colorizing with {chosen.model}, temperature {chosen.temperature:g}, seed {chosen.seed}:", soft_wrap=True
    )
    written: list[Path] = []
    rows = []
    for number, path in enumerate(chosen.photographs):
        files, row = _colorize_one(flow, path, chosen, chosen.seed + number, out)
        written += files
        rows.append(row)
    heads = ["photograph", *(f"sample {i + 1}" for i in range(chosen.samples))]
    names = [path.name for path in chosen.photographs]
    sheet = grid(rows, row_titles=names, column_titles=heads, cell=SHEET_SIDE)
    first = chosen.photographs[0]
    place = free_path((chosen.out or first.parent) / "colorized-contact-sheet.png")
    save_image(sheet, place)
    out.print(f"All of them on one sheet: {place}", soft_wrap=True)
    return [*written, place]


def load_model(path: Path) -> fk.Flow:
    """The colorization flow in a file.

    Raises:
        StorageError: it is missing, damaged, or no file of flowkit's.
        ConfigError: it holds another kind of flow.
    """
    if not path.is_file():
        raise StorageError(
            f"the model '{path}' does not exist" if not path.exists() else f"the model '{path}' is a folder"
        )
    flow = fk.load(path)
    sizes_of(flow, f"the flow in '{path}'")
    if "photo" not in flow.condition_shapes:
        raise ConfigError(
            f"the flow in '{path}' has no condition 'photo': it cannot see the photograph that it is to colorize"
        )
    return flow


def torch_device(device: str) -> torch.device:
    """The device that a --device means.

    Raises:
        ConfigError: it is not there.
    """
    kind, devices = trainer_device(device)
    return torch.device("cpu" if kind == "cpu" else f"cuda:{devices[0]}" if isinstance(devices, list) else "cuda")


def colours(flow: fk.Flow, image: Image.Image, samples: int, temperature: float, seed: int) -> Tensor:
    """Samples of ab in Lab units for a photograph of any aspect, `(n, 2, h', w')`: padded, sampled, cut out again."""
    sizes = sizes_of(flow)
    padded, placement = fit(image, sizes.photo, multiple=max(1, sizes.photo[0] // sizes.ab[0]))
    photo = split_rgb(padded[None])[0].to(next(flow.parameters()).device)
    return placement.crop(samples_of(flow, photo, samples, temperature, seed)[:, 0]).cpu()


def _colorize_one(
    flow: fk.Flow, path: Path, chosen: PhotographChoices, seed: int, out: Console
) -> tuple[list[Path], list[Image.Image]]:
    photograph = read_photograph(path)
    image, files = photograph.image, []
    notes = f" ({'; '.join(photograph.notes)})" if photograph.notes else ""
    out.print(f"  {path}, {image.width} x {image.height}{notes}", soft_wrap=True)
    if image.width * image.height > LARGE_PIXELS:
        out.print("    it is large: each sample takes about seven seconds for every 10 megapixels", soft_wrap=True)
    suffix = path.suffix if path.suffix.lower() in WRITTEN_FORMATS else ".png"
    row = [_thumbnail(image)]
    for number, ab in enumerate(colours(flow, image, chosen.samples, chosen.temperature, seed), 1):
        place = free_path((chosen.out or path.parent) / f"{path.stem}-colorized-{number}{suffix}")
        result = recolor(image, ab)
        save_image(result, place)
        row.append(_thumbnail(result))
        files.append(place)
        out.print(f"    {place}", soft_wrap=True)
    return files, row


def _thumbnail(image: Image.Image) -> Image.Image:
    scale = SHEET_SIDE / max(image.size)
    return shrink(image, (max(1, round(image.height * scale)), max(1, round(image.width * scale))))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PhotographError(f"the output folder '{folder}' cannot be made: {error.strerror or error}") from error
