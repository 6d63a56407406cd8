"""`flowkit logprob`: log-likelihoods of data under a saved flow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import click

from flowkit.cli.files import saved_flow


@click.command()
@saved_flow
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--given", type=click.Path(path_type=Path), help="The conditions, a row for each of the data's; else from the data."
)
@click.option("--batch", type=click.IntRange(min=1), default=1024, show_default=True, help="Rows at a time.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .npz file; without it, a summary is shown.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def command(file: str, data: Path, given: Path | None, batch: int, output: Path | None, force: bool) -> None:
    """Compute log-likelihoods of data under a saved flow."""
    from flowkit.cli.arrays import read_arrays, tensors, write_arrays
    from flowkit.cli.files import load_flow
    from flowkit.cli.output import check_output, console, table
    from flowkit.errors import ConditionError

    if output is not None:
        check_output(output, force, (".npz",))
    flow = load_flow(file).eval()
    arrays = read_arrays(data)
    inputs = tensors(arrays, flow.input_shapes, flow, data)
    if given is not None and not flow.condition_shapes:
        raise ConditionError("the flow has no conditions, so --given has no meaning")
    conditions = {}
    if flow.condition_shapes:
        if given is None and not set(flow.condition_shapes) <= set(arrays):
            raise ConditionError(f"the flow needs --given with the conditions {', '.join(flow.condition_shapes)}")
        source = arrays if given is None else read_arrays(given)
        conditions = tensors(source, flow.condition_shapes, flow, given or data)
    rows = len(next(iter(inputs.values())))
    import torch

    for name, value in conditions.items():
        if len(value) not in (1, rows):
            raise ConditionError(f"the condition {name} needs 1 row or the data's {rows}, got {len(value)}")
        conditions[name] = value.expand(rows, *value.shape[1:])
    parts = []
    with torch.no_grad():
        for part in batches(rows, batch, "log-likelihoods"):
            here = {name: value[part] for name, value in conditions.items()} or None
            parts.append(flow.log_prob({name: value[part] for name, value in inputs.items()}, given=here))
    log_prob = torch.cat(parts)
    if output is not None:
        write_arrays(output, {"log_prob": log_prob})
        console(error=True).print(f"{rows:,} log-likelihoods written to {output}", soft_wrap=True)
        return
    nats = log_prob.double()
    columns = (nats, -nats / (flow.dim * math.log(2)))
    figures = [
        ("mean", [c.mean() for c in columns]),
        ("standard error", [c.std() / math.sqrt(rows) if rows > 1 else torch.tensor(math.nan) for c in columns]),
        ("min", [c.min() for c in columns]),
        ("max", [c.max() for c in columns]),
    ]
    heads = ("", "log-likelihood in nats", "bits per dimension")
    shown = [(name, *(f"{value.item():.6g}" for value in values)) for name, values in figures]
    console().print(table(f"{rows:,} rows", heads, shown, numbers=heads[1:]))


def batches(rows: int, size: int, title: str) -> Iterable[slice]:
    """Slices of so many rows; with a bar on a terminal where there are several."""
    from rich.progress import track

    from flowkit.cli.output import console

    slices = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    out = console(error=True)
    return track(slices, title, console=out, transient=True, disable=len(slices) < 2 or not out.is_terminal)
