"""The command as a whole: help without torch, errors in one sentence, exit codes."""

import os
import signal
import subprocess
import sys
import time

import click
import pytest

from flowkit import errors
from flowkit.cli.app import COMMANDS, root, run
from flowkit.cli.groups import Group


def group_raising(error):
    @click.command()
    def command():
        raise error

    @click.group(cls=Group)
    def group():
        pass

    group.add_command(command, "go")
    return group


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], ["examples", "list"], ["bench", "--help"], ["examples"], ["check", "-h"]]
)
def test_help_never_imports_torch(words):
    code = f"from flowkit.cli.app import run; import sys; code = run({words}); print('torch' in sys.modules, code)"
    assert python(code).stdout.splitlines()[-1] == "False 0"


def test_help_names_every_command(capsys):
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == shown
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        assert "..." not in next(line for line in shown.splitlines() if line.startswith(f"  {name} "))
        command = root.get_command(click.Context(root), name)
        assert command.help


def test_wrong_command_says_which_there_are(capsys):
    assert run(["exmaples"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "flowkit: no command 'exmaples'; did you mean 'examples'? "
        "There are: bench, check, draw, examples, export, inspect, logprob, plugins, sample.\n"
    )


@pytest.mark.parametrize("words", [["--nonsense"], ["check"], ["draw", "a", "--format", "gif"], ["plugins", "surplus"]])
def test_usage_errors_are_one_sentence(words, capsys):
    assert run(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("flowkit: ")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [errors.ShapeError("3 was needed, got 4"), errors.MissingDependencyError("x"), errors.StorageError("y")]
)
def test_flowkit_errors_are_refusals(error, capsys):
    assert run(["go"], group_raising(error)) == 2
    assert capsys.readouterr().err == f"flowkit: {error}\n"


def test_a_broken_law_is_a_failure(capsys):
    assert run(["go"], group_raising(errors.ConformanceError("law: 1 > 0"))) == 1
    assert capsys.readouterr().err == "flowkit: law: 1 > 0\n"


def test_unexpected_errors_hide_their_traceback(capsys, monkeypatch):
    monkeypatch.delenv("FLOWKIT_DEBUG", raising=False)
    assert run(["go"], group_raising(ValueError("two\nlines"))) == 1
    told = capsys.readouterr().err
    assert told.startswith("flowkit: unexpected ValueError: two lines (run `flowkit --debug")
    assert told.count("\n") == 1
    monkeypatch.setenv("FLOWKIT_DEBUG", "1")
    assert run(["go"], group_raising(ValueError("two\nlines"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_is_an_option_too(monkeypatch, capsys):
    monkeypatch.setattr(Group, "resolve_command", lambda *_: 1 / 0)
    monkeypatch.delenv("FLOWKIT_DEBUG", raising=False)
    assert run(["--debug", "plugins"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err.splitlines()[-1]
    assert run(["plugins", "--debug"]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted_is_130(error, capsys):
    assert run(["go"], group_raising(error)) == 130
    assert capsys.readouterr().err.strip() == "flowkit: interrupted"


def test_exit_codes_pass_through():
    assert run(["go"], group_raising(click.exceptions.Exit(5))) == 5
    assert run(["go"], group_raising(SystemExit(7))) == 7
    assert run(["go"], group_raising(SystemExit())) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_in_a_process_leaves_no_traceback():
    # A shell that runs the tests in the background has told its children to ignore the signal.
    code = """
import click, signal, time
from flowkit.cli import app
signal.signal(signal.SIGINT, signal.default_int_handler)
@app.root.command("wait")
def wait():
    print("ready", flush=True)
    time.sleep(60)
app.main(["wait"])
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.split("\n") == ["", "flowkit: interrupted", ""]


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_leaves_is_no_error():
    code = "from flowkit.cli import app\n"
    code += "app.root.command('much')(lambda: [print('x' * 1000) for _ in range(10000)])\napp.main(['much'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert time.monotonic() > 0


def test_plugin_warnings_are_one_line(capsys):
    import warnings

    @click.group(cls=Group)
    def group():
        pass

    @group.command("go")
    def _():
        warnings.simplefilter("default")
        warnings.warn("the plugin 'acme' could not be loaded: why", errors.PluginWarning, stacklevel=1)

    assert run(["go"], group) == 0
    assert capsys.readouterr().err == "flowkit: warning: the plugin 'acme' could not be loaded: why\n"
