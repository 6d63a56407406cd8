"""`flowkit examples` and `flowkit bench`: the files of examples/ and benchmarks/ as sub-commands."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.catalog import BENCHMARKS, EXAMPLES, Catalog
from flowkit.cli.groups import Group


class CatalogGroup(Group):
    """A group with one sub-command a file, and `list`."""

    def __init__(self, *args: Any, catalog: Catalog, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.catalog, self.kind = catalog, catalog.kind
        self.add_command(click.Command("list", callback=self._show, help=f"List the {catalog.folder}."))

    def _show(self) -> None:
        from flowkit.cli.output import console, table

        rows = [(name, self.catalog.help(name)) for name in self.catalog.files()]
        console().print(table("", ("name", "what it does"), rows))
        console().print(
            f"Run one with `flowkit {self.name} NAME`; the source is in {self.catalog.path()}.", soft_wrap=True
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """`list`, and the names of the files."""
        return [*super().list_commands(ctx), *self.catalog.files()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The file's command, imported now."""
        return (
            self.catalog.command(cmd_name) if cmd_name in self.catalog.files() else super().get_command(ctx, cmd_name)
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help's list, from the docstrings alone: nothing is imported."""
        rows = [("list", f"List the {self.catalog.folder}.")]
        rows += [(name, self.catalog.help(name)) for name in self.catalog.files()]
        with formatter.section(self.catalog.folder.capitalize()):
            formatter.write_dl(rows)


examples = CatalogGroup("examples", catalog=EXAMPLES, help="Run an example: what is read in examples/ is what runs.")
bench = CatalogGroup("bench", catalog=BENCHMARKS, help="Run a benchmark: what is read in benchmarks/ is what runs.")
