"""The benchmark of sampling: every way draws the same samples, and the conditioning net runs as often as it says."""

import json

import pytest
import torch
from flowkit.cli._benchmarks._common import published
from flowkit.cli._benchmarks._common.agreement import MismatchError

from flowkit.cli.app import run
from flowkit.cli.catalog import BENCHMARKS

pytest.importorskip("skimage")
sampling = BENCHMARKS.module("sampling")


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


def test_all_ways_are_measured(tmp_path, capsys):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert run(["bench", "sampling", "--quick", "--json", str(path), "--plot", str(plot)]) == 0
    assert "as the authors' code does" in capsys.readouterr().out
    colours, vectors = json.loads(path.read_text())["sections"]
    rows = {(row["samples"], row["implementation"]): row for row in colours["rows"]}
    for samples in (3, 2):
        assert "ratio" not in rows[samples, sampling.EVERY]
        assert rows[samples, sampling.OURS]["ratio"]["value"] > 0
        assert rows[samples, sampling.ONCE]["to the limit"]["value"] > 0
    assert all(row["ms a sample"] > 0 for row in rows.values())
    flows = {row["implementation"]: row for row in vectors["rows"]}
    assert flows["flowkit"]["at most"] == flows["flowkit, with its log-det"]["at most"] == 1.5
    assert plot.exists()


def test_targets_of_64_and_8_samples():
    flow, size = published.small_network(quick=True)
    photo = torch.randn(1, size, size)
    for count, target in ((64, 1 / 8), (8, 1 / 4), (5, None)):
        rows = {row["implementation"]: row for row in sampling._sample_rows(flow.eval(), photo, count, 1)}
        assert rows[sampling.OURS].get("at most") == target
        assert not any(
            "at most" in row for name, row in rows.items() if name not in (sampling.OURS, sampling.OURS_LAID_OUT)
        )


def test_the_conditioning_net_runs_once_or_for_every_sample(monkeypatch):
    flow, size = published.small_network(quick=True)
    seen: dict[str, list[int]] = {}

    def record(steps, **_):
        for name, step in steps.items():
            seen[name] = []
            current.append(name)
            step()
        return {name: [1.0] for name in steps}

    current = []
    forward = type(flow.network.nodes["pyramid"]).forward

    def counted(self, photo):
        if current:
            seen[current[-1]].append(len(photo))
        return forward(self, photo)

    monkeypatch.setattr(type(flow.network.nodes["pyramid"]), "forward", counted)
    monkeypatch.setattr(sampling, "timings", record)
    rows = list(sampling._sample_rows(flow.eval(), torch.randn(1, size, size), 4, 1))
    assert len(rows) == len(seen)
    for name, batches in seen.items():
        assert batches == ([4] if "per sample" in name else [1]), name


def test_other_samples_are_a_mismatch(monkeypatch):
    flow, size = published.small_network(quick=True)
    monkeypatch.setattr(sampling, "check_forms", lambda *_: None)
    twin = published.concatenated(flow).eval()
    with torch.no_grad():
        next(p for p in twin.network.nodes["pyramid"].parameters()).mul_(5)
    monkeypatch.setattr(sampling, "concatenated", lambda _: twin)
    with pytest.raises(MismatchError, match="samples is off by"):
        list(sampling._sample_rows(flow.eval(), torch.randn(1, size, size), 3, 1))
