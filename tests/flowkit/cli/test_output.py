"""Tables in a pipe are plain and unbroken; files are whole or not there; a run is never overwritten."""

import os
import stat

import pytest

from flowkit.cli.output import OutputError, console, run_folder, table, write_file


def test_plain_and_unbroken_in_a_pipe(capsys):
    long = "word " * 35
    console().print(table("A title", ("name", "n"), [(long, "[4, 4]"), ("b", 12)], numbers=("n",)))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert long.strip() in shown
    assert "[4, 4]" in shown


def test_brackets_and_colons_are_shown_as_they_are(capsys):
    text = 'python -m pip install "flowkit[ode]"; runs/[red]/:smile:'
    console().print(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "a.json"
    write_file(path, "one")
    write_file(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_file(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"a\.json cannot be written: No space left"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_unwritable_places_are_named(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / "missing" / "a.json", "x")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"output folder .* cannot be made"):
        run_folder(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match=r"output folder .* cannot be made"):
        run_folder(tmp_path / "file")


def test_a_run_is_kept(tmp_path):
    first = run_folder(tmp_path / "deep" / "run")
    assert first == tmp_path / "deep" / "run"
    assert run_folder(first) == first  # empty: it is used
    (first / "metrics.json").touch()
    second = run_folder(first)
    assert second.name == "run-2"
    (second / "metrics.json").touch()
    assert run_folder(first).name == "run-3"
