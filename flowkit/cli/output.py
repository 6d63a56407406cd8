"""What the command writes: tables on a terminal or in a pipe, and files that are whole or not there."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.errors import FlowkitError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 240  # a pipe has no edge: rows are not broken there


class OutputError(FlowkitError, OSError):
    """A file or folder that cannot be written."""


def console(error: bool = False) -> Console:
    """Rich's console on the current standard output (or standard error): plain where that is no terminal.

    Text is shown as it is: in Rich's markup, the brackets of `flowkit[ode]` or of a folder's name would vanish.
    """
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> Table:
    """A table of texts.

    Args:
        title: above it; "" for none.
        columns: their heads.
        rows: one value a column.
        numbers: the columns that are aligned at the right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        # Text, not markup: shapes and reprs have square brackets
        made.add_row(*(value if isinstance(value, Text) else Text(str(value)) for value in row))
    return made


def check_output(path: Path, force: bool, endings: Sequence[str] = ()) -> None:
    """Refuse an output before the work begins rather than after it.

    Args:
        path: of the file.
        force: whether one that is there may be overwritten.
        endings: one of which its name must have; any will do where there are none.

    Raises:
        OutputError: another ending, a folder of that name or none to write to, or a file that is there already.
    """
    if endings and path.suffix.lower() not in endings:
        either = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        raise OutputError(f"the output {path} has to end in {either}")
    if path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    if os.path.lexists(path) and not force:  # a link that leads nowhere is somebody's, too
        raise OutputError(f"{path} is there already, and only --force overwrites it")


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file whole: under another name first, then renamed, so that a reader never sees half of it.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are the owner's alone
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def run_folder(path: str | Path) -> Path:
    """A folder for a run's files: `path`, or `path-2`, `path-3`, ... where that one is there and not empty.

    Raises:
        OutputError: it cannot be made or written to.
    """
    first = Path(path)
    folder, number = first, 1
    try:
        while folder.is_dir() and any(folder.iterdir()):
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the output folder {folder} cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the output folder {folder} cannot be written to")
    return folder
