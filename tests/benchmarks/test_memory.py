"""The benchmark of training memory: every way is measured, and the bytes are those that the modes promise."""

import json

import torch

from flowkit.cli.app import run


def test_bytes_by_mode_and_depth(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    command = ["bench", "memory", "--quick", "--json", str(path), "--plot", str(plot)]
    assert run(command) == 0
    assert "MiB that autograd keeps" in capsys.readouterr().out
    rows = json.loads(path.read_text())["sections"][0]["rows"]
    saved = {(row["gradients"], row["blocks"]): row["saved"] for row in rows}
    assert saved["reverse, no snapshots", 2] == saved["reverse, no snapshots", 4]
    assert saved["plain", 4] > 1.5 * saved["plain", 2]
    assert all(row["peak"] > 0 and row["time"] > 0 for row in rows)
    assert plot.exists()
