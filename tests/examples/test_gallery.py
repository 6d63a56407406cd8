"""The gallery: its targets, its list of flows, a run from the command."""

import importlib
import json
import math

import pytest
import torch

import flowkit as fk
from flowkit.cli.app import run
from flowkit.cli.catalog import EXAMPLES

gallery = EXAMPLES.module("gallery")
TARGETS = gallery.TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_reproducible_and_in_view(name):
    first, again = (gallery.sample(name, 2000, torch.Generator().manual_seed(3)) for _ in range(2))
    raw = TARGETS[name](2000, torch.Generator().manual_seed(3))
    assert first.shape == (2000, 2)
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert (first.abs() < 3.1).all()
    assert (raw.abs() < 3.1).all(1).double().mean() > 0.99  # little is cut off
    assert (first.mean(0).abs() < 0.2).all()
    assert first.std() > 0.7


def test_every_ready_flow_is_listed_or_the_reason_is_given():
    able, unable = gallery.ready_flows()
    assert {*able, *unable} == set(fk.flows.__all__)
    assert {"nsf", "maf", "realnvp", "planar"} <= set(able)
    assert "glow" in unable


def test_it_learns():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    flow = fk.flows.nsf(2)
    before = gallery.held_out(flow, "eight-gaussians", "cpu")
    count = []
    gallery.train(flow, "eight-gaussians", 60, 128, 0, "cpu", lambda: count.append(1))
    assert len(count) == 60
    assert gallery.held_out(flow, "eight-gaussians", "cpu") > before + 0.5


def test_a_run_from_the_command(tmp_path, capsys, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(gallery, "HELD_OUT", 100)
    picture = importlib.import_module(f"{gallery.__name__}.picture")
    monkeypatch.setattr(picture, "PIXELS", 12)
    monkeypatch.setattr(picture, "POINTS", 20)
    words = ["examples", "gallery", "--steps", "2", "--batch-size", "16", "--flows", "nsf,maf"]
    assert run([*words, "--targets", "moons,rings", "--out", str(tmp_path / "run")]) == 0
    assert run([*words, "--targets", "rings", "--out", str(tmp_path / "one")]) == 0
    assert "gallery.png, metrics.json" in capsys.readouterr().out
    both, one = (json.loads((tmp_path / n / "metrics.json").read_text())["targets"] for n in ("run", "one"))
    assert list(both) == ["moons", "rings"]
    assert list(both["moons"]) == ["nsf", "maf"]
    assert all(math.isfinite(each["log_likelihood"]) for target in both.values() for each in target.values())
    assert both["rings"]["nsf"]["log_likelihood"] == one["rings"]["nsf"]["log_likelihood"]  # whatever else was run
    assert (tmp_path / "run" / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_a_flow_that_fails_is_left_out_and_the_others_are_kept(tmp_path, capsys, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(gallery, "HELD_OUT", 100)
    trained = gallery.train

    def failing(flow, target, *arguments):
        if target == "rings":
            raise fk.ConvergenceError("no root")
        trained(flow, target, *arguments)

    monkeypatch.setattr(gallery, "train", failing)
    words = ["--steps", "1", "--batch-size", "16", "--flows", "maf", "--targets", "moons,rings"]
    assert run(["examples", "gallery", *words, "--out", str(tmp_path / "run")]) == 0
    assert "maf on rings failed: no root" in capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["targets"]
    assert found["rings"]["maf"]["log_likelihood"] is None
    assert math.isfinite(found["moons"]["maf"]["log_likelihood"])
    assert (tmp_path / "run" / "gallery.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flows", "nothing"], "no ready flow of two features 'nothing'"),
        (["--flows", "glow"], "no ready flow of two features 'glow'"),
        (["--targets", "moon"], "no target 'moon'"),
        (["--targets", ","], "no target ','"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_refusals_leave_nothing(tmp_path, capsys, words, message):
    assert run(["examples", "gallery", "--out", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())
