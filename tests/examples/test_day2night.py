"""`flowkit examples day2night` on a small folder of cameras: what it leaves, what it repeats, what it refuses."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import flowkit as fk
from flowkit.cli import app

pytest.importorskip("lightning")

QUICK = ("--steps", 2, "--batch-size", 2, "--samples", 2, "--device", "cpu")
FILES = {
    "checkpoint.ckpt",
    "metrics.json",
    "model.safetensors",
    "nights.png",
    "report.html",
    "run.json",
    "temperature.png",
}


def day2night(*words):
    return app.run(["examples", "day2night", *map(str, words)])


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)  # the command's; conftest puts it back


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three cameras, one of them held out, and one finished run."""
    folder = tmp_path_factory.mktemp("day2night")
    random = np.random.default_rng(0)
    lines = ["file,camera,period,split"]
    for camera, split in (("a", "train"), ("b", "train"), ("c", "test")):
        for period, most in (("day", 255), ("night", 60)):
            name = f"{camera}-{period}.png"
            Image.fromarray(random.integers(0, most, (80, 90, 3), np.uint8)).save(folder / name)
            lines.append(f"{name},{camera},{period},{split}")
    (folder / "cameras.csv").write_text("\n".join(lines))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert day2night("--data", folder, "--out", folder / "run", *QUICK) == 0
    torch.set_default_dtype(before)
    return folder


def figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name != "seconds"}


def test_what_a_run_leaves(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} == FILES
    flow = fk.load(run / "model.safetensors")
    assert (flow.input_shapes, flow.condition_shapes) == ({"night": (3, 64, 64)}, {"day": (3, 64, 64)})
    held_out = figures(run)["held_out"]
    assert held_out["pairs"] == 1
    assert list(held_out["by_camera"]) == ["c"]
    assert held_out["by_camera"]["c"] == pytest.approx(held_out["bits_per_dimension"]["mean"])
    report = (run / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    assert "2 cameras for training (4 photographs, 2 pairs)" in report
    with Image.open(run / "nights.png") as image:
        assert image.width > 4 * 160


def test_the_same_seed_gives_the_same_numbers_in_a_new_folder(place):
    assert day2night("--data", place, "--out", place / "run", *QUICK) == 0
    assert figures(place / "run-2") == figures(place / "run")
    assert day2night("--data", place, "--out", place / "run", "--seed", 1, *QUICK) == 0
    assert figures(place / "run-3")["held_out"] != figures(place / "run")["held_out"]


def test_two_steps_are_one_and_one_more(place):
    out = place / "longer"
    assert day2night("--data", place, "--out", out, *QUICK[2:], "--steps", 1) == 0
    assert day2night("--resume", "--out", out, "--steps", 2) == 0
    assert figures(out)["training"]["steps"] == 2


def test_a_flow_that_is_blind_to_the_day(place):
    out = place / "blind"
    assert day2night("--data", place, "--out", out, "--without-condition", *QUICK) == 0
    assert fk.load(out / "model.safetensors").condition_shapes == {}
    assert figures(out)["training"]["without_condition"] is True
    assert "blind to the day" in (out / "report.html").read_text()


def test_two_processes_of_torchrun_make_one_run(place):
    words = ("--data", place, "--steps", 2, "--batch-size", 4, "--samples", 2, "--device", "cpu")
    assert day2night(*words, "--out", place / "alone") == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flowkit"]
    done = subprocess.run(
        [sys.executable, *torchrun, "examples", "day2night", *map(str, words), "--out", "both"],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("diverse nights of places") == 1
    assert {path.name for path in (place / "both").iterdir()} == FILES
    assert not (place / "both-2").exists()
    alone, both = (figures(place / name)["held_out"]["bits_per_dimension"]["mean"] for name in ("alone", "both"))
    assert both == pytest.approx(alone, rel=1e-3)


def test_a_checkpoint_of_another_preset_names_both(place, tmp_path, capsys):
    """As where a checkpoint was copied into another run's folder."""
    out = tmp_path / "run"
    shutil.copytree(place / "run", out)
    content = torch.load(out / "checkpoint.ckpt", weights_only=True)
    content["flowkit_training"]["about"]["preset"] = "paper"
    torch.save(content, out / "checkpoint.ckpt")
    assert day2night("--resume", "--out", out) == 2
    said = capsys.readouterr().err.strip()
    assert "is of the preset 'paper', and the run that is to go on from it has the preset 'demo'" in said
    assert "\n" not in said


def test_bad_options_are_one_sentence(place, tmp_path, capsys):
    cases = [
        ((), "--data is needed: a folder with cameras.csv"),
        (("--data", tmp_path), "is no folder of cameras"),
        (("--data", place, "--steps", 0), "--steps must be at least 1, got 0"),
        (("--data", place, "--device", "abacus"), "must be auto, cpu, cuda or cuda:N"),
        (("--resume",), "there is no run to resume"),
    ]
    for words, sentence in cases:
        assert day2night(*words, "--out", tmp_path / "out") == 2, words
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert "\n" not in said
    assert not (tmp_path / "out").exists()
    assert day2night("--resume", "--out", place / "run", "--seed", 4) == 2
    assert "has --seed 0, and cannot go on with 4" in capsys.readouterr().err
