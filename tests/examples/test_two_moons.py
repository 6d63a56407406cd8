"""The two-moons example: its truth is right, it learns, and it keeps earlier runs."""

import importlib
import json
import math

import pytest
import torch

import flowkit as fk
from flowkit.cli.app import run
from flowkit.cli.catalog import EXAMPLES

two_moons = EXAMPLES.module("two-moons")
moons = two_moons.moons


def test_the_true_density_integrates_to_one():
    side = torch.linspace(-2.4, 2.4, 81)
    grid = torch.cartesian_prod(side, side)
    for label in (0, 1):
        density = moons.log_prob(grid, torch.full((len(grid),), label)).exp()
        assert density.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-6)


def test_the_true_density_is_of_the_samples():
    """No other density is likelier than the true one, on average over its samples."""
    x, label = moons.sample(2000)
    right = moons.log_prob(x, label)
    assert right.mean() > moons.log_prob(1.1 * x, label).mean()
    assert right.mean() > moons.log_prob(x, 1 - label).mean() + 5
    upper, lower = moons.log_prob(x, label * 0), moons.log_prob(x, label * 0 + 1)
    torch.testing.assert_close(moons.mixture(upper, lower), ((upper.exp() + lower.exp()) / 2).log())
    assert set(label.tolist()) == {0, 1}


def test_it_learns():
    torch.set_default_dtype(torch.float32)
    flow = two_moons.build(blocks=4, hidden=32)
    before = two_moons.evaluate(flow, 2000, "cpu")
    losses = two_moons.train(flow, 80, 256, "cpu")
    after = two_moons.evaluate(flow, 2000, "cpu")
    assert len(losses) == 80
    assert after["entropy_given_label"] == before["entropy_given_label"]
    assert 0 < after["gap_given_label"] < before["gap_given_label"] - 1
    assert 0 < after["gap_marginal"] < before["gap_marginal"]


def test_a_run_from_the_command(tmp_path, capsys, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(two_moons, "HELD_OUT", 200)
    monkeypatch.setattr(importlib.import_module(f"{two_moons.__name__}.picture"), "PIXELS", (30, 20))
    out = tmp_path / "run"
    words = ["examples", "two-moons", "--steps", "3", "--batch-size", "32", "--out", str(out)]
    assert run(words) == 0
    assert run([*words, "--seed", "1"]) == 0
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "two-moons.png, metrics.json, model.safetensors" in shown
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "run-2", "run-3")]
    for each in figures:
        each.pop("seconds")
        assert math.isfinite(each["gap_marginal"])
    assert figures[0] == figures[2]  # the same seed, the same numbers
    assert figures[0]["nll_marginal"] != figures[1]["nll_marginal"]
    assert (out / "two-moons.png").read_bytes().startswith(b"\x89PNG")
    flow = fk.load(out / "model.safetensors")
    assert flow.sample((2,), given=torch.tensor([0, 1])).shape == (2, 2, 2)


@pytest.mark.parametrize(
    "words", [["--steps", "0"], ["--device", "cuda:99"], ["--device", "toaster"], ["--seed", "-1"]]
)
def test_refusals_leave_nothing(tmp_path, capsys, words):
    assert run(["examples", "two-moons", "--out", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("flowkit: ")
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(["examples", "two-moons", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "output folder" in capsys.readouterr().err
