"""Diverse colorizations of photographs: train a conditional flow, or colorize your own photographs with one.

    flowkit examples colorization                 trains on the bundled photographs, and leaves pictures and a report
    flowkit examples colorization holiday.jpg     colorizes a photograph with the last run's model
    flowkit examples colorization --compare       the paper's Table 1: other systems, and the flow without some parts

The flow models q(ab | L), the colours of a photograph given its lightness, as in "Conditional Invertible Neural
Networks for Diverse Image-to-Image Translation". Read `training.py` first: it is the whole of it in one page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .recipes import DEFAULT_OUT, RECIPES


@click.command(short_help="Train a colorization flow, or colorize photographs.")
@click.argument("photographs", nargs=-1, metavar="[PHOTO]...", type=click.Path(path_type=Path))
@click.option("--data", help="A folder, tar shards ('train-*.tar'), bundled, cifar10 or imagenet.  [default: bundled]")
@click.option("--root", type=click.Path(path_type=Path), help="Where cifar10 or imagenet lies.  [default: data]")
@click.option("--download", is_flag=True, help="Let torchvision download cifar10 there.")
@click.option("--preset", type=click.Choice(list(RECIPES)), help="The network and its recipe.  [default: demo]")
@click.option(
    "--stream", is_flag=True, default=None, help="Read --data, tar shards, front to back: files, pipe:, https:."
)
@click.option("--held-out", metavar="DATA", help="What judges a --stream.  [default: shards val-* beside train-*]")
@click.option("--pretrain", type=int, metavar="STEPS", help="First train the conditioning net to name colours.")
@click.option("--steps", type=int, help="Training steps, in all.  [default: the preset's]")
@click.option("--batch-size", type=int, help="[default: the preset's]")
@click.option("--lr", type=float, help="Learning rate.  [default: the preset's]")
@click.option("--seed", type=int, help="Of all random numbers.  [default: 0]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--out", type=click.Path(path_type=Path), help=f"A folder.  [default: {DEFAULT_OUT}; beside each PHOTO]")
@click.option("--samples", type=int, help="Colorizations of each photograph.  [default: 8; 4 of each PHOTO]")
@click.option("--temperature", type=float, help="Scales the code: 0 most typical, 1 as modelled.  [default: 1]")
@click.option("--compare", is_flag=True, help="Train the paper's other systems too, and ablations: its Table 1.")
@click.option("--without-ablations", "ablations", flag_value=False, default=True, help="Table 1 alone.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the last one.")
@click.option("--model", type=click.Path(path_type=Path), help="The model for PHOTO.  [default: the last run's]")
@click.pass_context
def command(context: click.Context, photographs: tuple[Path, ...], **options: Any) -> None:
    """Train a flow that colorizes photographs; or colorize each PHOTO with the last run's model.

    Without PHOTO: trains, on the photographs that scikit-image and scikit-learn ship unless --data names others, and
    leaves pictures, figures, a report and the model in a new folder. Ctrl-C keeps the state; --resume goes on.

    With PHOTO: writes several colorizations of each, at its own size, beside it or in --out; nothing is overwritten.
    """
    from .._common.runs import typed
    from .choices import photograph_choices, training_choices

    if photographs:
        chosen = photograph_choices(photographs, options)
        from .photographs import colorize

        colorize(chosen)
    else:
        settings, where = training_choices(options, typed(context))
        if settings.compare:
            from .comparison.run import run
        else:
            from .run import run

        context.exit(run(settings, where))
