"""`flowkit sample`: samples of a saved flow, and their log-likelihoods."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit.cli.files import saved_flow
from flowkit.cli.options import Temperature, seed_option


@click.command()
@saved_flow
@click.option("--given", type=click.Path(path_type=Path), help="The conditions: .npz by name, .npy or .csv of one.")
@click.option(
    "-n",
    "--number",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Samples, of each row of the conditions where there are some.",
)
@seed_option
@click.option("--temperature", type=Temperature(), default=1.0, show_default=True, help="Scales the latent's spread.")
@click.option("--batch", type=click.IntRange(min=1), default=1024, show_default=True, help="Rows at a time.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npz file to write.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def command(
    file: str,
    given: Path | None,
    number: int,
    seed: int,
    temperature: float,
    batch: int,
    output: Path,
    force: bool,
) -> None:
    """Draw samples from a saved flow."""
    from flowkit.cli.arrays import read_arrays, tensors, write_arrays
    from flowkit.cli.files import load_flow
    from flowkit.cli.output import check_output, console
    from flowkit.errors import ConditionError, ConfigError

    check_output(output, force, (".npz",))
    flow = load_flow(file).eval()
    if "log_prob" in (*flow.input_shapes, *flow.condition_shapes):
        raise ConfigError("the name log_prob is the log-likelihoods' in the output, and the flow has it for its own")
    if flow.condition_shapes and given is None:
        raise ConditionError(f"the flow needs --given with the conditions {', '.join(flow.condition_shapes)}")
    if given is not None and not flow.condition_shapes:
        raise ConditionError("the flow has no conditions, so --given has no meaning")
    conditions = {} if given is None else tensors(read_arrays(given), flow.condition_shapes, flow, given)
    conditions = {name: value.repeat_interleave(number, 0) for name, value in conditions.items()}
    import torch

    from flowkit.cli.logprob import batches

    rows = len(next(iter(conditions.values()))) if conditions else number
    torch.manual_seed(seed)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in (*flow.input_shapes, "log_prob")}
    with torch.no_grad():
        for part in batches(rows, batch, "sampling"):
            here = {name: value[part] for name, value in conditions.items()} or None
            size = () if here else (part.stop - part.start,)
            x = flow.sample(size, given=here, temperature=temperature)
            named = x if isinstance(x, dict) else dict.fromkeys(flow.input_shapes, x)
            for name, value in named.items():
                parts[name].append(value)
            parts["log_prob"].append(flow.log_prob(x, given=here))
    write_arrays(output, conditions | {name: torch.cat(values) for name, values in parts.items()})
    console(error=True).print(f"{rows:,} samples written to {output}", soft_wrap=True)
