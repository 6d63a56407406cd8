"""`flowkit inspect`: what a saved flow is."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def command(file: Path) -> None:
    """Show what a saved flow is made of."""
    from flowkit.cli.files import describe, load_flow
    from flowkit.cli.output import console, table

    flow = load_flow(file)
    out = console()
    out.print(table("", ("", ""), describe(file, flow)))
    rows = [
        (
            name,
            type(module).__name__,
            _shapes(module, "in_shapes"),
            _shapes(module, "out_shapes"),
            _shapes(module, "condition_shapes"),
            f"{count:,}",
        )
        for name, module, count in (
            (n, m, sum(p.numel() for p in m.parameters())) for n, m in flow.network.nodes.items()
        )
    ]
    out.print(table("Nodes", ("name", "class", "in", "out", "given", "parameters"), rows, numbers=("parameters",)))


def _shapes(module: object, which: str) -> str:
    return " ".join(str(shape) for shape in getattr(module, which, ()))
