"""`flowkit inspect`: what a saved flow is."""

from __future__ import annotations

import click

from flowkit.cli.files import saved_flow


@click.command()
@saved_flow
def command(file: str) -> None:
    """Show what a saved flow is made of."""
    from flowkit.cli.files import describe, load_flow, local
    from flowkit.cli.output import console, table

    path = local(file)
    flow = load_flow(str(path))
    out = console()
    out.print(table("", ("", ""), describe(file, path.stat().st_size, flow)))
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
