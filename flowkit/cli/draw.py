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
    help="By default what the output's name ends in, else text.",
)
def command(file: str, output: Path | None, style: str | None) -> None:
    """Draw the graph of a saved flow."""
    from flowkit.cli.files import load_flow
    from flowkit.cli.output import console, write_file

    style = style or (FORMATS.get(output.suffix.lower(), "text") if output else "text")
    drawing = load_flow(file).network.graph.draw(style)
    if output is None:
        click.echo(drawing.rstrip("\n"))
        return
    write_file(output, drawing if drawing.endswith("\n") else drawing + "\n")
    console(error=True).print(f"drawn to {output}", soft_wrap=True)
