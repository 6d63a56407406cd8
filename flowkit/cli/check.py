"""`flowkit check`: the conformance kit from a shell."""

from __future__ import annotations

import click


@click.command()
@click.argument("name_or_file")
@click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="MODULE",
    help="Import this module first: it registers NAME. May be repeated.",
)
def command(name_or_file: str, imports: tuple[str, ...]) -> None:
    """Check a bijection or a saved flow.

    A bijection is tried on every law of the conformance kit, a saved flow with its weights as they are: round trip,
    log-det against the Jacobian, and each node's scales. The exit code is 1 where something is broken.

    A bijection goes by the name it is registered with (flowkit.affine_coupling, acme.scale); installed plugins need no
    --import. An argument that ends in .safetensors is a file, one that begins with hf:// an address of the Hub.
    """
    from flowkit.testing.command import check

    found = check(name_or_file, imports)
    click.echo(str(found))
    if not found.ok:
        raise click.exceptions.Exit(1)
