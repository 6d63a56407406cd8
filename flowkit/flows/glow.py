"""Glow, on multi-scale images."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.arguments import checked
from flowkit.bijections import (
    ActNorm,
    AffineCoupling,
    LULinear,
    Split,
    Squeeze,
)
from flowkit.errors import ShapeError
from flowkit.flow import Flow
from flowkit.flows.shared import SIDES, Condition, at_size, check_count, declare_conditions, given_of
from flowkit.graph import Graph
from flowkit.shapes import as_shape
from flowkit.subnets import ConvNet


@checked
def glow(
    features: Sequence[int],
    condition: Condition = None,
    levels: int = 2,
    layers: int = 4,
    hidden: int = 64,
    clamp: str | None = "tanh",
    limit: float = 1.0,
) -> Flow:
    """Glow on multi-scale images: a level is a squeeze, then `layers` of ActNorm, 1x1 convolution, affine coupling.

    After each level but the last, half of the channels become a latent of their own, `z1`, `z2`, ...; the last is `z`.
    Call `flow.initialize(x)` once before training: ActNorm takes its start from data. Vectors as conditions become
    maps, maps are resized to each level.

    Args:
        features: `(C, H, W)`; H and W must be divisible by 2 to the power of `levels`.
        condition: see the module.
        levels: squeezes.
        layers: steps of a level.
        hidden: channels of the subnets' two hidden layers.
        clamp, limit: the bound on the log-scales, see `fk.Affine`.

    Raises:
        ShapeError: no map `(C, H, W)`, or sizes that do not divide.
        ConfigError: fewer than one level or layer.

    Source: Kingma and Dhariwal, Glow: Generative flow with invertible 1x1 convolutions, 2018.

    >>> glow((3, 8, 8), condition=10, hidden=8).latents["z1"]
    (slice(0, 96, None), (6, 4, 4))
    """
    shape = as_shape(features)
    check_count("glow", "levels", levels)
    check_count("glow", "layers", layers)
    if len(shape) != 3 or any(size % 2**levels for size in shape[1:]):
        raise ShapeError(
            f"glow with {levels} levels needs (C, H, W) with H and W divisible by {2**levels}, got shape {shape}"
        )
    graph = Graph()
    wires = declare_conditions(graph, condition)
    x = graph.input("x", shape)
    for level in range(1, levels + 1):
        x = graph.add(Squeeze, x)
        given = [at_size(graph, wire, x.shape) for wire in wires]
        for layer in range(layers):
            x = graph.add(LULinear, graph.add(ActNorm, x))
            x = graph.add(
                AffineCoupling,
                x,
                subnet=ConvNet(hidden=(hidden, hidden), kernel=(3, 1, 3)),
                clamp=clamp,
                limit=limit,
                active=SIDES[layer % 2],
                **given_of(given),
            )
        if level < levels:
            half = x.shape[0] // 2
            out, x = graph.add(Split, x, sizes=(half, x.shape[0] - half))
            graph.output(f"z{level}", out)
    graph.output("z", x)
    return Flow(graph)
