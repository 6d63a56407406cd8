"""Chains of affine couplings on vectors, with weights that are anything but the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit.bijection import as_tuple

DIM, HIDDEN = 64, (128, 128)
DEVIATION = 0.1  # of the log-scales, after `redraw`
REDRAWN = (
    f"redrawn means the weights of all couplings anew, so that their log-scales have standard deviation {DEVIATION}"
)


def chain(depth: int, dim: int = DIM, hidden: tuple[int, ...] = HIDDEN) -> fk.Flow:
    """`depth` one-sided affine couplings, the active half alternating; the identity at the start."""
    graph = fk.Graph()
    x = graph.input("x", (dim,))
    for i in range(depth):
        x = graph.add(fk.AffineCoupling, x, subnet=fk.MLP(hidden=hidden), active=("second", "first")[i % 2])
    graph.output("z", x)
    return fk.Flow(graph)


@torch.no_grad()
def redraw(
    flow: fk.Flow, x: Tensor | None = None, given: Tensor | None = None, deviation: float = DEVIATION
) -> fk.Flow:
    """Draw the weights of all couplings anew, so that the log-scales of each have this standard deviation.

    Hidden layers from N(0, 2 / fan-in), biases from N(0, 0.01); the last layer of every subnet from N(0, 1 / fan-in),
    then scaled until the coupling's log-scales have the deviation asked for, on the data as it arrives there.

    Args:
        flow: changed in place, and returned.
        x: the data; standard normal, 512 rows, where None.
        given: its conditions.
        deviation: of the log-scales.
    """
    if x is None:
        x = torch.randn(512, *flow.network.in_shapes[0]).to(next(flow.parameters()).dtype)

    def visit(name: str, part: fk.Bijection, taken: list[Tensor], conditions: list[Tensor]) -> tuple[Tensor, ...]:
        if isinstance(part, fk.Coupling):
            last = [draw_layers(_layers(subnet)) for subnet in part.subnets]
            for _ in range(3):  # the clamp is not linear: the second time is close, the third exact to a few digits
                factor = deviation / part.log_scales(*taken, *conditions).std()
                for layer in last:
                    layer.weight.mul_(factor)
        return as_tuple(part(*taken, *conditions)[0])

    flow.network.walk(visit, [x], [] if given is None else [given])
    return flow


def _layers(subnet: nn.Module) -> list[nn.Module]:
    return [m for m in subnet.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]


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
