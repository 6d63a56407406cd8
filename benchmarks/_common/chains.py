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
    """`depth` one-sided affine couplings, the active half alternating; the identity at the start.

    The hidden layers are bounded (tanh). With ReLU the log-scales grow with the data, and the data with the log-scales:
    at depth 256 some rows of random networks overflow even float64, in every toolkit.
    """
    graph = fk.Graph()
    x = graph.input("x", (dim,))
    for i in range(depth):
        x = graph.add(
            fk.AffineCoupling, x, subnet=fk.MLP(hidden=hidden, activation="tanh"), active=("second", "first")[i % 2]
        )
    graph.output("z", x)
    return fk.Flow(graph)


@torch.no_grad()
def redraw(
    flow: fk.Flow, x: Tensor | None = None, given: Tensor | None = None, deviation: float = DEVIATION
) -> fk.Flow:
    """Draw the weights of all couplings anew, so that the log-scales of each have this standard deviation.

    All weights and biases are drawn as torch draws those of a new layer, U(-b, b) with b = 1 / sqrt(fan-in); then the
    last layer of every subnet is scaled until the coupling's log-scales have the deviation asked for, on the data as it
    arrives there.

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
                    scale_layer(layer, factor)
        return as_tuple(part(*taken, *conditions)[0])

    flow.network.walk(visit, [x], [] if given is None else [given])
    return flow


def _layers(subnet: nn.Module) -> list[nn.Module]:
    return [m for m in subnet.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]


def draw_layers(layers: list[nn.Module]) -> nn.Module:
    """New weights and biases for the layers of one subnet, uniform as torch draws them; returns the last."""
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        layer.weight.uniform_(-bound, bound)
        layer.bias.uniform_(-bound, bound)
    return layers[-1]


def scale_layer(layer: nn.Module, factor: Tensor) -> None:
    """Multiply a layer's weights and biases, and thereby what it gives."""
    layer.weight.mul_(factor)
    layer.bias.mul_(factor)


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
