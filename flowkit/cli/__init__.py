"""The `flowkit` command. Nothing here imports torch before a sub-command needs it, so help comes at once."""

from flowkit.cli.app import main

__all__ = ["main"]
