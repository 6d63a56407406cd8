"""Groups of sub-commands that are imported at their first use."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import click


def unknown(kind: str, name: str, known: Iterable[str]) -> click.UsageError:
    """The error for a name that does not exist: the one that was probably meant, and all that there are."""
    names = sorted(known)
    close = get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.6)
    meant = f"; did you mean '{close[0]}'?" if close else "."
    there_are = f" There are: {', '.join(names)}." if names else " There are none."
    return click.UsageError(f"no {kind} '{name}'{meant}{there_are}")


class Group(click.Group):
    """A group that shows its help when it is called bare, and lists what it has when a name is wrong."""

    kind = "command"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"no_args_is_help": False, "invoke_without_command": True, **kwargs})

    def invoke(self, ctx: click.Context) -> Any:
        """The sub-command, or the help where none is named."""
        if not ctx._protected_args and not ctx.args:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The sub-command of that name.

        Raises:
            click.UsageError: there is none; the message says which there are.
        """
        if not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise unknown(self.kind, args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose sub-commands are given as `"module:name"`."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, sorted."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command, imported now."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.lazy[cmd_name].partition(":")
        return getattr(importlib.import_module(module), name)
