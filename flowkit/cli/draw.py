"""`flowkit draw`: the graph of a saved flow as text, Mermaid or SVG."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit.cli.files import saved_flow

FORMATS = {".txt": "text", ".md": "mermaid", ".mmd": "mermaid", ".svg": "svg"}


@click.command()
@saved_flow
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write to this file; without it, to standard output."
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "mermaid", "svg"]),
    help="By default what the output's name ends in, or text.",
)
@click.option("--force", is_flag=True, help="Overwrite the output.")
def command(file: str, output: Path | None, style: str | None, force: bool) -> None:
    """Draw the graph of a saved flow."""
    from flowkit.cli.files import load_flow
    from flowkit.cli.output import check_output, console, write_file

    if output is not None:
        check_output(output, force, () if style else tuple(FORMATS))
    style = style or (FORMATS[output.suffix.lower()] if output else "text")
    drawing = load_flow(file).network.graph.draw(style)
    if output is None:
        click.echo(drawing.rstrip("\n"))
        return
    write_file(output, drawing if drawing.endswith("\n") else drawing + "\n")
    console(error=True).print(f"drawn to {output}", soft_wrap=True)
