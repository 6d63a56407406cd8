"""Reverse mode in float32: its gradients are as near to float64's as plain autograd's, ill-conditioned flows included.

Here a few rows; `flowkit bench memory` has the whole table.
"""

import pytest
from flowkit.cli._benchmarks._common.gradient_error import SCALES, TARGET, Scales, random_row, trained_row

SHRINKING = Scales("log-scales -1 +- 0.2", 0.2, mean=-1.0)  # what a mean of -0.5 does in 64 blocks, in fewer


@pytest.mark.parametrize("scales", [*SCALES[:3], SHRINKING], ids=lambda scales: scales.name)
def test_errors_of_random_chains_are_plain_autograds(scales):
    row = random_row(scales, depth=20)
    assert 0 < row["plain"] < 1e-4
    assert row["to plain"].value <= TARGET
    assert 0 < row["drift"] < 1e-3
    if scales is SHRINKING:
        assert row["no snapshots"] > 3 * row["reverse"], "nothing here needs snapshots, so nothing tests them"


def test_errors_of_a_trained_flow_are_plain_autograds():
    row = trained_row(depth=12, steps=80)
    assert 0 < row["plain"] < 1e-4
    assert row["to plain"].value <= TARGET
