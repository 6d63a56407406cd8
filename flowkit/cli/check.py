"""`flowkit check`: the conformance kit from a shell."""

from __future__ import annotations

import click


@click.command()
@click.argument("name_or_file")
@click.option("--import", "imports", multiple=True, metavar="MODULE", help="Import this module first: it registers NAME. May be repeated.")
def command(name_or_file: str, imports: tuple[str, ...]) -> None:
    """Check a bijection or a saved flow against every law.

    A bijection goes by the name it is registered with (flowkit.affine_coupling, acme.scale); installed plugins need no
    --import. An argument that ends in .safetensors is a file.
    """
    from flowkit.testing.command import check

    check(name_or_file, imports)
