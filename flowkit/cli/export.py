"""`flowkit export`: a function of a saved flow as a program that runs without flowkit."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from flowkit.cli.files import saved_flow

WHAT = ("log_prob", "forward", "inverse", "sample")  # as flowkit.interop has them, which imports torch
KINDS = ("torch", "onnx", "aoti")


@click.command()
@saved_flow
@click.option("--what", type=click.Choice(WHAT), default="log_prob", show_default=True, help="The function.")
@click.option(
    "--to",
    type=click.Choice(KINDS),
    help="torch.export's program, ONNX, or an AOTInductor package; by default what the output's name ends in.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .pt2 or .onnx file to write.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def command(file: str, what: str, to: str | None, output: Path, force: bool) -> None:
    """Export a function of a saved flow for other runtimes."""
    from flowkit.cli.files import load_flow
    from flowkit.cli.output import console
    from flowkit.interop.export import FlowFunction, check_path, export

    to = to or ("onnx" if output.suffix.lower() == ".onnx" else "torch")
    check_path(output, to, force, "--force")
    flow = load_flow(file)
    names = FlowFunction(flow, what)
    shown = f"{what}({', '.join(names.inputs)}) -> {', '.join(names.outputs)}"
    out = console(error=True)
    parts = sum(1 for _ in flow.network.modules())
    notice = f"tracing {shown}, {parts:,} modules, for {to}; image flows take a minute or more"
    with out.status(notice) if out.is_terminal else nullcontext():
        export(flow, what, to, output, overwrite=force)
    out.print(f"{shown} written to {output}", soft_wrap=True, markup=False)
