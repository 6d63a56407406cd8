"""The conditions' parts of many blocks, computed apart or in one wide operation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import flowkit as fk
from flowkit.diagnostics import timings

from .agreement import agree
from .limit import Bare
from .report import Column
from .statistics import ratio

COLUMNS = (
    Column("condition", "its shape"),
    Column("kernel", "of the first layers; - for linear ones"),
    Column("blocks", "subnets that take it", "d"),
    Column("ms", "forward and backward of their conditions' parts, each apart, median", ".2f"),
    Column("ratio", "of one operation with all their weights to that, and its interval of 95 %"),
)
TOLERANCE = 1e-4  # of sums in another order, in float32


def rows(flow: fk.Flow, x: Tensor, given: Tensor, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each condition and kind of first layer in a flow."""
    bare = Bare(flow, x, given, features=False)
    groups: dict[tuple, tuple[Tensor, list[Any]]] = {}
    for net, (_, c) in zip(bare.nets, bare.calls, strict=True):
        first: Any = net.first
        assert isinstance(c, Tensor)
        groups.setdefault((id(c), tuple(first.weight.shape[2:])), (c, []))[1].append(first)
    for (_, kernel), (c, layers) in groups.items():
        for mine, theirs in zip(_apart(c, layers), _stacked(c, layers), strict=True):
            agree("stacked conditions", "a condition's part", theirs, mine, TOLERANCE)
        ways = {"apart": _step(_apart, c, layers), "stacked": _step(_stacked, c, layers)}
        series = timings(ways, rounds=rounds, warm_up=1)
        yield {
            "condition": str(tuple(c.shape[1:])),
            "kernel": " x ".join(map(str, kernel)) or "-",
            "blocks": len(layers),
            "ms": statistics.median(series["apart"]) * 1e3,
            "ratio": ratio(series["stacked"], series["apart"]),
        }


def _apart(c: Tensor, layers: list[Any]) -> list[Tensor]:
    return [layer.prepare(c) for layer in layers]


def _stacked(c: Tensor, layers: list[Any]) -> list[Tensor]:
    weight = torch.cat([layer.weight[:, layer.c_x :] for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    wide = F.conv2d(c, weight, bias, padding=layers[0].padding) if c.dim() == 4 else F.linear(c, weight, bias)
    return list(wide.split([len(layer.bias) for layer in layers], 1))


def _step(way: Callable[[Tensor, list[Any]], list[Tensor]], c: Tensor, layers: list[Any]) -> Callable[[], None]:
    def step() -> None:
        for tensor in (c, *[p for layer in layers for p in layer.parameters()]):
            tensor.grad = None
        torch.stack([out.square().sum() for out in way(c, layers)]).sum().backward()

    return step
