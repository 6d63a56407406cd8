"""What the documentation says is true: its code runs and prints what is shown, its links, commands and names exist."""

import contextlib
import doctest
import importlib
import io
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import click
import pytest
import torch

import flowkit as fk
from flowkit import registry
from flowkit.cli.app import root

from .documents import DOCUMENTS, ROOT, Block, anchors, blocks, commands, links, spans
from .outputs import differences

WITH_CODE = [path for path in DOCUMENTS if any(block.language == "python" for block in blocks(path))]
by_name = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)


@pytest.fixture
def as_a_reader(tmp_path, monkeypatch):
    """float32, an empty folder, and a registry whose additions are forgotten."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    fk.registered()  # everything that is installed, before the copies are made
    for table in ("_objects", "_examples", "_loaded"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


def run(block: Block, namespace: dict, path: Path) -> str:
    """Execute a block, and return what it printed."""
    printed = io.StringIO()
    if block.text.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.text, namespace, path.name, str(path), block.line)
        test.globs = namespace  # a doctest copies its names; later blocks see these
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        runner.run(test, out=printed.write, clear_globs=False)
        assert not runner.failures, printed.getvalue()
        return ""
    code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_code_runs_and_prints_what_is_shown(path, monkeypatch):
    module = types.ModuleType(f"document_{path.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # so that classes can be pickled
    found = blocks(path)
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            printed = run(block, module.__dict__, path)
            shown = following.text if following is not None and following.language == "text" else ""
            problem = differences(printed, shown)
            assert not problem, f"{path.name}, line {block.line}:\n{problem}"


@by_name
def test_text_blocks_are_outputs(path):
    found = blocks(path)
    for before, block in zip([None, *found], found, strict=False):
        if block.language == "text":
            assert before is not None, f"line {block.line}"
            assert before.language == "python", f"line {block.line}: no code stands before this output"


@by_name
def test_links_lead_somewhere(path):
    for target in links(path):
        name, _, anchor = target.partition("#")
        place = path.parent / name if name else path
        assert place.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(place), f"{path.name} links to {target}: no such heading"


@by_name
def test_commands_exist(path):
    to_run, mentioned = commands(path)
    for words in to_run:
        check_command(words)
    for words in mentioned:
        check_command(words, whole=False)


def check_command(words: list[str], whole: bool = True) -> None:
    """Parse a command as click would, without running anything.

    A capital NAME stands for any sub-command; one that is not whole may lack arguments, as `flowkit check` does.
    """
    command, context, rest = root, click.Context(root, info_name="flowkit"), list(words)
    while True:
        line = f"flowkit {' '.join(words)}"
        try:
            given, rest, _ = command.make_parser(context).parse_args(rest)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")
        if not isinstance(command, click.Group):
            break
        if not rest or rest[0] in ("NAME", "..."):
            return
        name, *rest = rest
        found = command.get_command(context, name)
        assert found is not None, f"{line}: there is no '{name}'"
        command, context = found, click.Context(found, parent=context, info_name=name)
    assert not rest, f"{line}: {rest} is too much"
    for parameter in command.params:
        value = given.get(parameter.name)
        missing = value is None or not isinstance(value, str | bool | list | tuple)  # click has a value for "not given"
        assert not (whole and parameter.required and missing), f"{line}: {parameter.name} is missing"
        if isinstance(parameter.type, click.Choice) and not missing:
            for each in value if parameter.multiple else [value]:
                parameter.type.convert(each, parameter, context)


@pytest.mark.parametrize(
    "line",
    ["examples colorization --speed 3", "paint", "examples watercolour", "check", "draw a b", "draw a --format tiff"],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((AssertionError, pytest.fail.Exception, click.UsageError)):
        check_command(line.split())


@by_name
def test_names_exist(path):
    for span in spans(path):
        for module, name in re.findall(r"\b(fk|flowkit\.testing|flowkit\.training|flowkit_cinn)\.([A-Za-z_]\w*)", span):
            home = importlib.import_module({"fk": "flowkit"}.get(module, module))
            if not hasattr(home, name):
                importlib.import_module(f"{home.__name__}.{name}")


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    shown = re.findall(r"pip install[^\n`]*\[([\w,]+)\]", "\n".join(p.read_text(encoding="utf-8") for p in DOCUMENTS))
    assert shown
    assert {extra for group in shown for extra in group.split(",")} <= set(extras)


def test_the_two_commands_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'python -m pip install -e ".[cinn]" && flowkit examples colorization\n' in text
    assert 'python -m pip install -e ".[dev]" && python -m pytest\n' in text


@pytest.mark.slow
def test_the_documented_plugin_works(tmp_path):
    """The files that docs/plugins.md shows, installed side by side as pip would, pass the test that it shows."""
    shown = {name: block.text for block in blocks(ROOT / "docs" / "plugins.md") if (name := _file_name(block))}
    assert set(shown) == {"pyproject.toml", "acme_flows/__init__.py", "tests/test_acme.py"}
    for name, text in shown.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    entry_points = tomllib.loads(shown["pyproject.toml"])["project"]["entry-points"]
    metadata = tmp_path / "acme_flows-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-flows\nVersion: 0.1.0\n", encoding="utf-8")
    lines = [
        line
        for group, names in entry_points.items()
        for line in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(tmp_path), "tests"]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout


def _file_name(block: Block) -> str:
    """A block's first line names the file that it shows: `# acme_flows/__init__.py`."""
    found = re.match(r"# ([\w/]+\.(?:py|toml))\n", block.text)
    return found[1] if found else ""
