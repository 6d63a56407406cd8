"""`flowkit plugins`: what is installed, and whether it works."""

from __future__ import annotations

import warnings

import click


@click.command()
def command() -> None:
    """List the installed plugins."""
    from flowkit import registry
    from flowkit.cli.output import console, table

    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a broken plugin's reason stands in the table
        for prefix, module in {"flowkit": "flowkit", **registry.plugins()}.items():
            problem = registry.plugin_problem(prefix)
            rows.append((prefix, module, problem or "loaded", "" if problem else len(registry.registered(prefix))))
    console().print(table("", ("prefix", "module", "state", "parts"), rows, numbers=("parts",)))
