"""What a trained colorization flow's latent space holds: temperatures, interpolations, color transfer and more.

    flowkit examples latent holiday.jpg garden.jpg                every picture, with the last run's model
    flowkit examples latent --what interpolation holiday.jpg      one of them

The functions are in `flowkit_cinn.latent`, for any flow; `pictures.py` lays out what they make of photographs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import click

WHAT = ("temperature", "interpolation", "transfer", "resample", "most-likely", "features", "diverse", "failures")
DEFAULT_OUT = "runs/latent"


@click.command(short_help="Draw what a colorization flow's latent space holds.")
@click.argument("photographs", nargs=-1, required=True, metavar="PHOTO...", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="A colorization flow.  [default: the last run's]")
@click.option("--what", type=click.Choice([*WHAT, "all"]), default="all", show_default=True, help="Which picture.")
@click.option("--level", help="Of resample: a latent's name, such as coarse.  [default: each in turn]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all codes.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_OUT),
    show_default=True,
    help="A folder; one with files is kept.",
)
def command(
    photographs: tuple[Path, ...], model: Path | None, what: str, level: str | None, seed: int, device: str, out: Path
) -> None:
    """Draw what a colorization flow's latent space holds, of each PHOTO's central region, at the model's aspect.

    Transfer needs two PHOTOs or more; with one, `--what all` leaves it out.
    """
    from flowkit.cli.output import console, run_folder
    from flowkit.errors import ConfigError
    from flowkit_cinn.translation.images import save_image

    from ..colorization.choices import photograph_choices
    from ..colorization.photographs import load_model, torch_device
    from .pictures import DRAWN, chosen_levels, read_region

    given: dict[str, Any] = defaultdict(lambda: None, model=model, out=out, seed=seed, device=device)
    chosen = photograph_choices(photographs, given)
    if what == "transfer" and len(photographs) < 2:
        raise ConfigError("transfer takes the colours of one photograph to another: name two PHOTOs or more, got 1")
    flow = load_model(chosen.model).to(torch_device(chosen.device))
    levels = chosen_levels(flow, level)
    regions = [read_region(flow, path) for path in photographs]
    show = console()
    folder = run_folder(out)
    for name in WHAT if what == "all" else (what,):
        if name == "transfer" and len(regions) < 2:
            show.print("transfer is left out: it needs two PHOTOs or more", soft_wrap=True)
            continue
        place = folder / f"{name}.png"
        save_image(DRAWN[name](flow, regions, levels, chosen.seed), place)
        show.print(str(place), soft_wrap=True)
