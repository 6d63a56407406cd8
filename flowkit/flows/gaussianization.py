"""Gaussianization flows: elementwise maps and rotations, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowkit.arguments import checked
from flowkit.bijections import Elementwise, FixedRotation, OrthogonalLinear
from flowkit.flow import Flow
from flowkit.flows.shared import Condition, at_size, check_count, declare_conditions, given_of
from flowkit.graph import Graph
from flowkit.shapes import as_shape
from flowkit.subnets import MLP, ConvNet
from flowkit.univariate import LogisticMixture

SPREAD = 0.5  # of the maps' first numbers: at 0 the marginals of moons stayed single Gaussians for hundreds of steps


@checked
def gaussianization(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 6,
    hidden: int | Sequence[int] = (64, 64),
    components: int = 8,
    univariate: Any = None,
) -> Flow:
    """A Gaussianization flow: a monotone map of every element by itself, then a rotation of the channels, in turn.

    Each map makes the marginals more normal, each rotation shows it new ones; one last map ends the chain. A rotation
    is a random one, fixed, times a learned one that starts as the identity. The maps start at random numbers: mixtures
    of components that are alike do not part. Without a condition there are no nets.

    Args:
        features: D, or a shape `(C, ...)`.
        condition: see the module; subnets predict the maps' numbers from it. Maps take convolutions.
        layers: pairs of a map and a rotation.
        hidden: the widths of the subnets' hidden layers, where there is a condition; on maps their channels.
        components: of each map, a mixture of logistics and a logit, see `fk.LogisticMixture`; the paper has the
            normal's quantile function in the logit's place.
        univariate: another univariate map's recipe in place of the mixture.

    Raises:
        ShapeError: features of shape (); a condition that does not fit.
        ConfigError: fewer than one layer, fewer than two components, a univariate map that is not a recipe.

    Source: Meng et al., Gaussianization flows, 2020; Chen and Gopinath, Gaussianization, 2000.

    >>> import torch
    >>> flow = gaussianization(3, condition=2, layers=2, hidden=(16,), components=4)
    >>> flow.log_prob(torch.zeros(5, 3), given=torch.zeros(5, 2)).shape
    torch.Size([5])
    """
    check_count("gaussianization", "layers", layers)
    shape = as_shape(features)
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    graph = Graph()
    wires = declare_conditions(graph, condition)
    x = graph.input("x", shape)
    settings = given_of([at_size(graph, wire, shape) for wire in wires])
    if settings:
        settings["subnet"] = MLP(hidden=widths) if len(shape) < 2 else ConvNet(hidden=widths)
    settings["spread"] = SPREAD
    settings["univariate"] = LogisticMixture.recipe(components=components) if univariate is None else univariate
    for _ in range(layers):
        x = graph.add(FixedRotation, graph.add(Elementwise, x, **settings))
        x = graph.add(OrthogonalLinear, x)
    graph.output("z", graph.add(Elementwise, x, **settings))
    return Flow(graph)
