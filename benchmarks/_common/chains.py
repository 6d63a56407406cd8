"""Chains of affine couplings on vectors, with weights that are anything but the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import flowkit as fk

DIM, HIDDEN = 64, (128, 128)
DEVIATION = 0.1  # of the log-scales, after `redraw`


def chain(depth: int, dim: int = DIM, hidden: tuple[int, ...] = HIDDEN) -> fk.Flow:
    """`depth` one-sided affine couplings, the active half alternating; the identity at the start."""
    graph = fk.Graph()
    x = graph.input("x", (dim,))
    for i in range(depth):
        x = graph.add(fk.AffineCoupling, x, subnet=fk.MLP(hidden=hidden), active=("second", "first")[i % 2])
    graph.output("z", x)
    return fk.Flow(graph)


@torch.no_grad()
def redraw(flow: fk.Flow, deviation: float = DEVIATION, rows: int = 512) -> fk.Flow:
    """Draw all weights of a chain anew, so that each coupling's log-scales have this standard deviation.

    Hidden layers from N(0, 2 / fan-in), biases from N(0, 0.01); the last layer of every coupling from N(0, 1 / fan-in),
    then scaled until the log-scales, on the standard normal data as it arrives there, have the deviation asked for.
    """
    dtype = next(flow.parameters()).dtype
    x = torch.randn(rows, *flow.network.in_shapes[0]).to(dtype)
    for coupling in flow.network.nodes.children():
        last = draw_layers([m for m in coupling.modules() if isinstance(m, nn.Linear | fk.subnets.FirstLayer)])
        for _ in range(3):  # the clamp is not linear: the second time is close, the third exact to a few digits
            last.weight.mul_(deviation / coupling.log_scales(x).std())
        x, _ = coupling(x)
    return flow


def draw_layers(layers: list[nn.Module]) -> nn.Module:
    """New weights for the layers of one subnet, in order; returns the last."""
    for layer in layers:
        final = layer is layers[-1]
        fan_in = layer.weight[0].numel()
        layer.weight.normal_(0, math.sqrt((1 if final else 2) / fan_in))
        layer.bias.zero_() if final else layer.bias.normal_(0, 0.1)
    return layers[-1]


@torch.no_grad()
def double_weights(module: nn.Module) -> None:
    """Every parameter times two, in place."""
    for parameter in module.parameters():
        parameter.mul_(2)


def curved_data(rows: int, dim: int = DIM) -> Tensor:
    """Something to train a chain on: a curved, correlated cloud of about unit scale, `(rows, dim)`."""
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / math.sqrt(dim)
    n = torch.randn(rows, dim, dtype=torch.float64)
    return (torch.tanh(2 * n @ mixing) + 0.2 * n).to(torch.get_default_dtype())
