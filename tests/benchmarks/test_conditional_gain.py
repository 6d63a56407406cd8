"""The benchmark of the condition's worth: both flows are trained alike and judged on the same photographs."""

import json

import pytest
import torch

from flowkit.cli.app import run

pytest.importorskip("lightning")
pytest.importorskip("skimage")


def test_both_flows_are_measured(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert run(["bench", "conditional-gain", "--quick", "--json", str(path), "--plot", str(plot)]) == 0
    assert "the condition saves" in capsys.readouterr().out
    found = json.loads(path.read_text())
    given, without = found["sections"][0]["rows"]
    assert (given["flow"], without["flow"]) == ("given the lightness", "without condition")
    assert given["parameters"] > without["parameters"]
    assert given["bits per dimension"] != without["bits per dimension"]
    assert found["settings"]["steps"] == 2
    assert plot.exists()
