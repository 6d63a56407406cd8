"""The benchmark of splines: every pass and toolkit has its row, judged by its own target."""

import json

import pytest
import torch

from flowkit.cli.app import run


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


def test_both_passes_are_measured_against_the_bare_subnets(tmp_path):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert run(["bench", "splines", "--quick", "--json", str(path), "--plot", str(plot)]) == 0
    (section,) = json.loads(path.read_text())["sections"]
    rows = {(row["pass"], row["implementation"]): row for row in section["rows"]}
    assert rows["forward and backward", "flowkit"]["at most"] == 2.0
    assert rows["inverse", "flowkit"]["at most"] == 2.5
    assert rows["inverse", "nflows"]["ratio"]["value"] > 0
    assert "ratio" not in rows["inverse", "bare subnets"]
    assert plot.exists()
