"""Examples and benchmarks: found beside the package or in it, listed without being run, imported as a package."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

import flowkit
from flowkit.cli import catalog
from flowkit.cli.app import run
from flowkit.cli.catalog import BENCHMARKS, EXAMPLES, Catalog
from flowkit.cli.catalog_group import CatalogGroup
from flowkit.errors import FlowkitError, MissingDependencyError


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A checkout in a temporary folder, with things/ as a catalog whose package is importable."""
    package = tmp_path / "flowkit"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(catalog.flowkit, "__file__", str(package / "__init__.py"))
    things = tmp_path / "things"
    folder = things / "a_folder"
    folder.mkdir(parents=True)
    command = "import click\n\n@click.command()\ndef command():\n    click.echo({})\n"
    (folder / "__init__.py").write_text('"""A folder.\n\nMore."""\nfrom .part import VALUE\n' + command.format("VALUE"))
    (folder / "part.py").write_text("from .._shared import VALUE\n")
    (things / "_shared.py").write_text("VALUE = 'relative imports work'\n")
    (things / "one_file.py").write_text('"""One file."""\n' + command.format("'one'"))
    (things / "empty.py").write_text('"""It has no command."""\n')
    (things / "needy.py").write_text('"""It needs a package."""\nimport surely_not_installed.part\n')
    (things / "notes.txt").touch()
    (things / "no_code").mkdir()
    module = type(sys)("flowkit.cli._things")
    module.__path__ = [str(things)]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(module.__name__)]:
        if name != module.__name__:
            del sys.modules[name]


THINGS = Catalog("things", "thing", "acme")


def test_files_and_their_help(house):
    assert list(THINGS.files()) == ["a-folder", "empty", "needy", "one-file"]
    assert THINGS.help("a-folder") == "A folder."
    assert THINGS.path() == house / "things"


def test_a_wheel_holds_them_in_the_package(house):
    (house / "flowkit" / "_things").mkdir()
    assert THINGS.path() == house / "flowkit" / "_things"
    assert THINGS.files() == {}


def test_a_strangers_folder_beside_the_package_does_not_count(house):
    (house / "pyproject.toml").unlink()
    with pytest.raises(FlowkitError, match="the things are not part of this installation"):
        THINGS.path()


def run_things(*words):
    return run(words, CatalogGroup("things", catalog=THINGS))


def test_run(house, capsys):
    assert run_things("a-folder") == 0
    assert run_things("one-file") == 0
    assert capsys.readouterr().out == "relative imports work\none\n"


def test_list(house, capsys):
    assert run_things("list") == 0
    shown = capsys.readouterr().out
    assert "a-folder" in shown
    assert "It needs a package." in shown  # listed, though it cannot be imported
    assert run_things("--help") == 0
    assert "It needs a package." in capsys.readouterr().out


def test_wrong_names(house, capsys):
    assert run_things("a_foldr") == 2
    assert capsys.readouterr().err == (
        "flowkit: no thing 'a_foldr'; did you mean 'a-folder'? There are: a-folder, empty, list, needy, one-file.\n"
    )
    assert run_things("zzz") == 2
    assert capsys.readouterr().err == "flowkit: no thing 'zzz'. There are: a-folder, empty, list, needy, one-file.\n"


def test_what_cannot_run_says_why(house, capsys):
    with pytest.raises(MissingDependencyError, match=r"'needy' needs surely_not_installed.*flowkit\[acme\]"):
        THINGS.command("needy")
    with pytest.raises(FlowkitError, match="'empty' has no click command named `command`"):
        THINGS.command("empty")
    assert run_things("needy") == 2


@pytest.mark.parametrize("group", ["examples", "bench"])
def test_the_real_ones_are_refused_by_name(group, capsys):
    assert run([group, "no-such"]) == 2
    assert "There are: " in capsys.readouterr().err


@pytest.mark.parametrize(("real", "name"), [(c, n) for c in (EXAMPLES, BENCHMARKS) for n in c.files()])
def test_every_real_one_has_a_command_and_a_line_of_help(real, name):
    assert isinstance(real.command(name), click.Command)
    assert real.help(name).endswith(".") or ":" in real.help(name) or real.help(name)
    assert real.command(name).help


def test_a_spawned_process_can_import_them():
    code = "import importlib; print(importlib.import_module('flowkit.cli._examples.two_moons.moons').__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "flowkit.cli._examples.two_moons.moons\n"


def test_the_wheel_is_told_to_hold_them():
    import tomllib

    root = Path(flowkit.__file__).resolve().parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {c.folder: f"flowkit/_{c.folder}" for c in (EXAMPLES, BENCHMARKS)}
