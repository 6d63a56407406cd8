"""Finds what `flowkit examples` and `flowkit bench` run: the files that people read in examples/ and benchmarks/."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click

import flowkit
from flowkit.errors import FlowkitError, MissingDependencyError


@dataclass(frozen=True)
class Catalog:
    """A folder of runnable files, each a module or a package that exposes a click command named `command`.

    Args:
        folder: its name in a source checkout; an installed wheel holds it as `flowkit/_<folder>`.
        kind: what one of them is called in messages.
        extra: the extra of flowkit that brings what they need.
    """

    folder: str
    kind: str
    extra: str

    def path(self) -> Path:
        """Where the files are: in the package, or beside it in a source checkout.

        Raises:
            FlowkitError: neither exists.
        """
        package = Path(flowkit.__file__).resolve().parent
        packed, beside = package / f"_{self.folder}", package.parent / self.folder
        if packed.is_dir():
            return packed
        # site-packages may hold a stranger's folder of that name: only a checkout's counts
        if beside.is_dir() and (package.parent / "pyproject.toml").is_file():
            return beside
        raise FlowkitError(
            f"the {self.folder} are not part of this installation: neither {packed} nor {beside} is there"
        )

    def files(self) -> dict[str, Path]:
        """Name (as typed: `two-moons`) and source file of each, sorted; names that begin with `_` are not shown."""
        found = {}
        for entry in sorted(self.path().iterdir()):
            source = entry / "__init__.py" if entry.is_dir() else entry
            if entry.name[0] not in "._" and source.suffix == ".py" and source.is_file():
                found[entry.stem.replace("_", "-")] = source
        return found

    def help(self, name: str) -> str:
        """The first line of its docstring, read without importing it."""
        text = ast.get_docstring(ast.parse(self.files()[name].read_text(encoding="utf-8"))) or ""
        return text.partition("\n")[0]

    def module(self, name: str) -> ModuleType:
        """It, imported under `flowkit.cli._<folder>`, so that relative imports and spawned processes work.

        Raises:
            MissingDependencyError: an optional package is not installed.
        """
        try:
            return importlib.import_module(f"flowkit.cli._{self.folder}.{name.replace('-', '_')}")
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "flowkit"):
                raise
            raise MissingDependencyError(
                f"the {self.kind} '{name}' needs {missing}, which is not installed: "
                f'python -m pip install "flowkit[{self.extra}]" brings it'
            ) from error

    def command(self, name: str) -> click.Command:
        """Its click command.

        Raises:
            FlowkitError: its module has none.
        """
        found = getattr(self.module(name), "command", None)
        if not isinstance(found, click.Command):
            raise FlowkitError(f"the {self.kind} '{name}' has no click command named `command` in {self.files()[name]}")
        return found


EXAMPLES = Catalog("examples", "example", "cinn")
BENCHMARKS = Catalog("benchmarks", "benchmark", "dev")
