"""Float32 gradients of plain autograd and of reverse mode, judged by float64's, over depth and conditioning."""

from __future__ import annotations

import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import flowkit as fk

from .chains import chain, redraw
from .networks import train
from .report import Column
from .statistics import ratio

DIM, HIDDEN, ROWS = 8, (16,), 64
DEPTHS, SEEDS, TRAINED_DEPTH, STEPS = (16, 64), 20, 16, 300
SNAPSHOTS = 8
TARGET = 1.1  # of reverse mode's error over plain's


@dataclass(frozen=True)
class Scales:
    """Log-scales of random couplings: their standard deviation, and what is then added to all of them.

    With a deviation of 0.5 gradients explode over 64 blocks. With a mean below zero each block shrinks what it then
    shifts, so digits of the data are lost on the way: plain gradients are accurate, but inversion cannot bring the data
    back.
    """

    name: str
    deviation: float
    mean: float = 0.0


SCALES = (
    Scales("log-scales 0.05", 0.05),
    Scales("log-scales 0.2", 0.2),
    Scales("log-scales 0.5", 0.5),
    Scales("log-scales -0.5 +- 0.2", 0.2, mean=-0.5),
)
COLUMNS = (
    Column("flow", "a chain with log-scales of this mean and standard deviation; or trained on two moons"),
    Column("blocks", "one-sided affine couplings on vectors", "d"),
    Column("plain", "|g - g64| / |g64| over all parameters, g64 the float64 gradient; median over the seeds", ".1e"),
    Column("reverse", f"the same in reverse mode, a snapshot every {SNAPSHOTS} blocks", ".1e"),
    Column(
        "to plain", f"reverse over plain, the median of the seeds' ratios, interval of 95 %; target: at most {TARGET}"
    ),
    Column("drift", "the largest relative distance of an inverted value from its snapshot; median", ".0e"),
    Column("no snapshots", "the error in reverse mode without snapshots", ".1e"),
)


def count(depths: Sequence[int] = DEPTHS) -> int:
    """How many rows `rows` gives."""
    return len(depths) * len(SCALES) + 1


def rows(depths: Sequence[int] = DEPTHS, seeds: int = SEEDS, steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """One row for each flow, by the names of `COLUMNS`: the same on every run on one machine.

    Args:
        depths: of the random chains.
        seeds: of weights and data.
        steps: of the trained chain's training.
    """
    for scales in SCALES:
        for depth in depths:
            yield random_row(scales, depth, seeds)
    yield trained_row(TRAINED_DEPTH, steps, seeds)


def random_row(scales: Scales, depth: int, seeds: int = SEEDS) -> dict[str, Any]:
    """A chain of couplings with these log-scales; other weights and data for each seed."""
    flow = chain(depth, DIM, HIDDEN).float()
    data = (_seeded(seed, lambda: draw(flow, scales)) for seed in range(seeds))
    return {"flow": scales.name, "blocks": depth, **_measured(flow, data)}


def trained_row(depth: int, steps: int, seeds: int = SEEDS) -> dict[str, Any]:
    """A trained chain; other data for each seed."""
    flow = trained(depth, steps)
    data = (_seeded(seed, lambda: two_moons(ROWS)) for seed in range(seeds))
    return {"flow": f"trained, {steps} steps", "blocks": depth, **_measured(flow, data)}


def trained(depth: int, steps: int) -> fk.Flow:
    """A chain on two values, trained on `two_moons` with Adam; float32."""

    def make() -> fk.Flow:
        flow = chain(depth, 2, (32,)).float()
        return train(flow, lambda: (two_moons(256), None), steps, rate=3e-3)

    return _seeded(0, make)


def two_moons(count: int) -> Tensor:
    """Points of two interleaved half circles, of about unit scale, `(count, 2)`; float32.

    >>> two_moons(5).shape
    torch.Size([5, 2])
    """
    angle = math.pi * torch.rand(count, dtype=torch.float32)
    side = torch.randint(0, 2, (count,)).float() * 2 - 1
    moon = torch.stack((side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)), 1)
    return 1.4 * moon + 0.1 * torch.randn(count, 2, dtype=torch.float32)


def gradient(flow: fk.Flow, x: Tensor, backprop: str = "plain", snapshots: int = SNAPSHOTS) -> tuple[Tensor, float]:
    """The gradient of the mean negative log-likelihood by all parameters, flat and in float64; and the drift."""
    flow.network.snapshots, flow.backprop = snapshots, backprop
    flow.network.drift.zero_()
    parameters = [p for p in flow.parameters() if p.requires_grad]
    found = torch.autograd.grad(-flow.log_prob(x).mean(), parameters)
    drift = flow.drift
    flow.network.drift.zero_()  # or the next pass would warn of it
    return torch.cat([g.double().flatten() for g in found]), drift


def draw(flow: fk.Flow, scales: Scales) -> Tensor:
    """New weights for a chain of couplings, in place, and data for it."""
    redraw(flow, torch.randn(512, DIM, dtype=torch.float32), deviation=scales.deviation)
    with torch.no_grad():
        for part in flow.network.modules():
            if isinstance(part, fk.AffineCoupling):
                *_, bias = part.subnets[0].parameters()  # of the last layer: log-scales before the clamp, then shifts
                bias[: len(bias) // 2] += math.atanh(scales.mean / part.limit)
    return torch.randn(ROWS, DIM, dtype=torch.float32)


def _seeded(seed: int, make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _measured(flow: fk.Flow, data: Iterable[Tensor]) -> dict[str, Any]:
    """The medians over the data, each of which may come with new weights."""
    wide, series = copy.deepcopy(flow).double(), defaultdict(list)
    for x in data:
        wide.load_state_dict(flow.state_dict())
        exact, _ = gradient(wide, x.double())
        plain, _ = gradient(flow, x)
        reverse, drift = gradient(flow, x, "reverse")
        inverted, _ = gradient(flow, x, "reverse", snapshots=0)
        series["drift"].append(drift)
        for name, found in (("plain", plain), ("reverse", reverse), ("no snapshots", inverted)):
            error = (found - exact).norm() / exact.norm()
            # NaN is the worst error of all, and must not be lost in a median.
            series[name].append(float(error.nan_to_num(nan=math.inf)))
    medians = {name: statistics.median(values) for name, values in series.items()}
    # Errors differ by orders of magnitude between seeds, so a ratio of medians is off by 15 % with twenty; the ratios
    # of the same seed's errors differ little.
    ratios = [theirs / plain for theirs, plain in zip(series["reverse"], series["plain"], strict=True)]
    return {**medians, "to plain": ratio(ratios, [1.0] * len(ratios))}
