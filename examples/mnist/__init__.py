"""Digits by their label: train a class-conditional flow, draw digits, transfer style, classify by likelihood.

    flowkit examples mnist                          scikit-learn's 8x8 digits, a few minutes on two cores
    flowkit examples mnist --data FOLDER            MNIST, where torchvision has put it, or anything in its layout

The flow models q(digit | label), as the authors' MNIST network does. Read `training.py` first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .recipes import DEFAULT_OUT, RECIPES


@click.command(short_help="Train a class-conditional flow on digits.")
@click.option("--data", type=click.Path(path_type=Path), help="A folder with MNIST's IDX files.  [default: 8x8 digits]")
@click.option("--download", is_flag=True, help="Let torchvision download MNIST there.")
@click.option("--preset", type=click.Choice(list(RECIPES)), help="The network and its recipe.  [default: of the data]")
@click.option("--steps", type=int, help="Training steps, in all.  [default: the preset's]")
@click.option("--batch-size", type=int, help="[default: the preset's]")
@click.option("--lr", type=float, help="Learning rate.  [default: the preset's]")
@click.option("--seed", type=int, help="Of all random numbers.  [default: 0]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--out", type=click.Path(path_type=Path), help=f"A folder.  [default: {DEFAULT_OUT}]")
@click.option("--samples", type=int, help="Digits drawn for each label.  [default: 10]")
@click.option("--temperature", type=float, help="Scales the code: 0 most typical, 1 as modelled.  [default: 1]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the last one.")
@click.pass_context
def command(context: click.Context, **options: Any) -> None:
    """Train a flow that draws a digit given its label, and the same flow without the label, to compare.

    It leaves samples of each label, style transfer, a classifier by likelihood with its calibration, figures, a report
    and the model in a new folder. Ctrl-C keeps the state; --resume goes on.
    """
    from .._common.runs import typed
    from .choices import training_choices
    from .run import run

    context.exit(run(*training_choices(options, typed(context))))
