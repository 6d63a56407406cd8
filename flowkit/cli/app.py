"""The root of the command, and what becomes of errors: one sentence and an exit code, never a bare traceback."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import click

from flowkit._version import __version__
from flowkit.cli.groups import Group, LazyGroup
from flowkit.errors import ConformanceError, FlowkitError, PluginWarning
from flowkit.strict_json import in_one_line

LONGEST = 2000  # characters of a sentence
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "bench": "flowkit.cli.catalog_group:bench",
    "check": "flowkit.cli.check:command",
    "draw": "flowkit.cli.draw:command",
    "examples": "flowkit.cli.catalog_group:examples",
    "export": "flowkit.cli.export:command",
    "inspect": "flowkit.cli.inspect:command",
    "logprob": "flowkit.cli.logprob:command",
    "plugins": "flowkit.cli.plugins:command",
    "sample": "flowkit.cli.sample:command",
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--debug", is_flag=True, envvar="FLOWKIT_DEBUG", help="Show the traceback of an unexpected error (FLOWKIT_DEBUG=1)."
)
@click.version_option(__version__, message="flowkit %(version)s")
@click.pass_context
def root(context: click.Context, debug: bool) -> None:
    """Normalizing flows as graphs of reversible ops."""
    context.find_root().meta["flowkit.debug"] = debug


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: runs the command and leaves the interpreter with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None, group: Group = root) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 refused, 130 interrupted.

    Args:
        arguments: the words after `flowkit`; None for the process's own.
        group: the root command, another one in tests.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        _plugin_warnings_in_one_line()
        try:
            code = _exit_code(group.main(words, prog_name="flowkit", standalone_mode=False))
            sys.stdout.flush()
        except SystemExit as leaving:  # a reader that went away, or a command that left by itself
            code = _exit_code(leaving.code)
        except BrokenPipeError:
            _forget_output()
            code = FAILED
        except (click.Abort, KeyboardInterrupt):
            code = _say("interrupted", INTERRUPTED)
        except click.ClickException as error:
            code = _say(error.format_message(), REFUSED)
        except ConformanceError as error:
            code = _say(str(error), FAILED)
        except FlowkitError as error:
            # What a stranger's file is called, and what it says, must not steer the terminal.
            code = _say(in_one_line(str(error), LONGEST), REFUSED)
        except Exception as error:
            code = _unexpected(error, words)
    return code


def _exit_code(value: Any) -> int:
    return value if isinstance(value, int) else DONE if value is None else FAILED


def _say(sentence: str, code: int) -> int:
    click.echo(f"flowkit: {sentence}", err=True)
    return code


def _unexpected(error: Exception, words: Sequence[str]) -> int:
    # The context is gone by now, and the option may only stand before the sub-command's name.
    before = words[: next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))]
    if "--debug" in before or os.environ.get("FLOWKIT_DEBUG", "").lower() in ("1", "true", "yes", "on"):
        traceback.print_exception(error)
        return FAILED
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _say(f"unexpected {what} (run `flowkit --debug ...`, or set FLOWKIT_DEBUG=1, to see where)", FAILED)


def _plugin_warnings_in_one_line() -> None:
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, PluginWarning):
            click.echo(f"flowkit: warning: {message}", err=True)
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def _forget_output() -> None:
    """Point standard output at nothing: the interpreter flushes it at exit, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
