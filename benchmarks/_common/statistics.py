"""Ratios of medians, with an interval that says how far they can be believed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its bootstrap interval of 95 %.

    A target "at most t" is met when `low <= t`: the measurement does not contradict it.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """The ratio of the medians of two interleaved series, as `flowkit.diagnostics.timings` returns them.

    The rounds are resampled together: what slowed the machine down in a round slowed both.

    >>> ratio([2.0, 2.2, 1.8], [1.0, 1.1, 0.9])
    Ratio(value=2.0, low=2.0, high=2.0)
    """
    top, bottom = torch.tensor(numerator, dtype=torch.float64), torch.tensor(denominator, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rounds = torch.randint(len(top), (RESAMPLES, len(top)), generator=generator)
    drawn = top[rounds].quantile(0.5, dim=1) / bottom[rounds].quantile(0.5, dim=1)
    low, high = drawn.quantile(drawn.new_tensor([0.025, 0.975])).tolist()
    return Ratio(statistics.median(numerator) / statistics.median(denominator), round(low, 12), round(high, 12))
