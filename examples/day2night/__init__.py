"""Nights from days: train a conditional flow on photographs of fixed cameras, as in the paper's section 4.1.

    flowkit examples day2night --data FOLDER      trains on pairs of days and nights, and leaves pictures and a report

The flow models q(night | day). Read `training.py` first: it is the whole of it in one page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .recipes import DEFAULT_OUT, RECIPES


@click.command(short_help="Train a flow that turns days into nights.")
@click.option("--data", help="A folder with cameras.csv, or that of the transient attributes database.")
@click.option("--preset", type=click.Choice(list(RECIPES)), help="The network and its recipe.  [default: demo]")
@click.option("--steps", type=int, help="Training steps, in all.  [default: the preset's]")
@click.option("--batch-size", type=int, help="[default: the preset's]")
@click.option("--lr", type=float, help="Learning rate.  [default: the preset's]")
@click.option("--seed", type=int, help="Of all random numbers.  [default: 0]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--out", type=click.Path(path_type=Path), help=f"A folder.  [default: {DEFAULT_OUT}]")
@click.option("--samples", type=int, help="Nights of each day in the picture.  [default: 6]")
@click.option("--temperature", type=float, help="Scales the code: 0 most typical, 1 as modelled.  [default: 1]")
@click.option("--without-condition", is_flag=True, help="The same flow blind to the day, to see what the day is worth.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the last one.")
@click.pass_context
def command(context: click.Context, **options: Any) -> None:
    """Train a flow on pairs of a day and a night of one camera, drawn evenly over cameras.

    It is judged on cameras that training never saw, and leaves pictures, figures, a report and the model in a new
    folder. Ctrl-C keeps the state; --resume goes on.
    """
    from .._common.runs import typed
    from .run import run
    from .settings import training_choices

    settings, where = training_choices(options, typed(context))
    context.exit(run(settings, where))
