"""The table of float32 gradient errors: what it measures, and that it can be shown and repeated."""

import json

import pytest
import torch
from flowkit.cli._benchmarks._common import Options, Report, Section, gradient_error
from flowkit.cli._benchmarks._common.chains import chain
from flowkit.cli._benchmarks._common.gradient_error import COLUMNS, SCALES, gradient, random_row, trained, two_moons

from flowkit.testing.subject import isolated


def test_a_small_table(tmp_path, capsys):
    path = tmp_path / "a.json"
    report = Report("memory", Options(path, None, True, 0))
    made = gradient_error.rows(depths=(2, 9), seeds=3, steps=2)
    report.measure(Section("Float32 gradients", COLUMNS), made, gradient_error.count((2, 9)))
    report.finish()
    assert "no snapshots" in capsys.readouterr().out
    rows = json.loads(path.read_text())["sections"][0]["rows"]
    assert len(rows) == gradient_error.count((2, 9)) == 2 * len(SCALES) + 1
    assert [(row["flow"], row["blocks"]) for row in rows[:3]] == [
        ("log-scales 0.05", 2),
        ("log-scales 0.05", 9),
        ("log-scales 0.2", 2),
    ]
    assert (rows[-1]["flow"], rows[-1]["blocks"]) == ("trained, 2 steps", gradient_error.TRAINED_DEPTH)
    for row in rows:
        assert set(row) == {column.name for column in COLUMNS}
        assert 0 < row["plain"] < 1e-5 > row["reverse"] > 0
        assert (row["drift"] > 0) == (row["blocks"] > gradient_error.SNAPSHOTS)


def test_rows_are_repeatable():
    first = random_row(SCALES[1], 3, seeds=2)
    with isolated(99, torch.float32):  # as the command runs
        assert random_row(SCALES[1], 3, seeds=2) == first
    assert random_row(SCALES[1], 3, seeds=3) != first


@pytest.mark.parametrize("scales", SCALES, ids=lambda scales: scales.name)
def test_log_scales_are_those_of_the_name(scales):
    flow = chain(3, gradient_error.DIM, gradient_error.HIDDEN).float()
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        gradient_error.draw(flow, scales)
        x = torch.randn(2000, gradient_error.DIM, dtype=torch.float32)
        found.append(next(flow.network.nodes.children()).log_scales(x))
    assert torch.cat(found).mean().item() == pytest.approx(scales.mean, abs=0.05 + 0.2 * scales.deviation)
    assert torch.stack([s.std() for s in found]).mean().item() == pytest.approx(scales.deviation, rel=0.25)


def test_gradient_is_of_the_likelihood_by_all_parameters():
    flow, x = chain(2, 4, (5,)), torch.randn(6, 4)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found, drift = gradient(flow, x)
    (-flow.log_prob(x).mean()).backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert drift == 0
    reverse, _ = gradient(flow, x, "reverse", snapshots=1)
    torch.testing.assert_close(reverse, found)
    assert flow.drift == 0  # the next pass has nothing to warn of


def test_the_trained_flow_has_learnt_its_data():
    before, after = trained(4, 0), trained(4, 60)
    torch.manual_seed(0)
    x = two_moons(2000)
    assert x.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.35)
    assert after.log_prob(x).mean() > before.log_prob(x).mean() + 0.2
