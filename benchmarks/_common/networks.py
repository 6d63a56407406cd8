"""The networks that the benchmarks measure, at the start, with all weights redrawn, and trained for some steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import flowkit as fk

from .chains import chain, curved_data, redraw

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Network:
    """A flow in one state, and data for it: standard normal for `x`, of a trained one data like those it has learnt."""

    name: str
    state: str
    flow: fk.Flow
    batch: Callable[[int], Batch]


def train(flow: fk.Flow, batch: Callable[[], Batch], steps: int, rate: float = 1e-3) -> fk.Flow:
    """Maximum likelihood for a few steps, with Adam; leaves the flow in eval mode."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=rate)
    flow.train()
    for _ in range(steps):
        x, given = batch()
        loss = -flow.log_prob(x, given=given).mean() / flow.dim
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
    return flow.eval()


def coupling_chain(depth: int, steps: int) -> Iterator[Network]:
    """The chain of affine couplings on 64 values: at the start, redrawn, trained on a curved cloud."""
    name = f"chain of {depth} couplings"

    def batch(rows: int) -> Batch:
        return torch.randn(rows, 64, dtype=torch.float32), None

    def curved(rows: int) -> Batch:
        return curved_data(rows).float(), None

    flow = chain(depth).float()
    yield Network(name, "at start", copy.deepcopy(flow).eval(), batch)
    yield Network(name, "redrawn", redraw(copy.deepcopy(flow)).eval(), batch)
    yield Network(name, f"trained, {steps} steps", train(flow, lambda: (curved_data(256).float(), None), steps), curved)
