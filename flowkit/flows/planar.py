"""A chain of planar flows."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.bijections import (
    Planar,
)
from flowkit.flow import Flow
from flowkit.flows.shared import Condition, check_count, declare_conditions, given_of
from flowkit.graph import Graph
from flowkit.shapes import as_shape


def planar(features: int | Sequence[int], condition: Condition = None, layers: int = 16) -> Flow:
    """A chain of planar flows, each a bend along one direction: for small problems, and to see what a flow does.

    Args:
        features: D, or a shape `(D,)`.
        condition: see the module; vectors, from which a net predicts all parameters.
        layers: planar maps.

    Raises:
        ShapeError: data or conditions that are no vectors.
        ConfigError: fewer than one layer.

    Source: Rezende and Mohamed, Variational inference with normalizing flows, 2015.

    >>> planar(2, layers=4).dim
    2
    """
    check_count("planar", "layers", layers)
    graph = Graph()
    given = given_of(declare_conditions(graph, condition))
    x = graph.input("x", as_shape(features))
    for _ in range(layers):
        x = graph.add(Planar, x, **given)
    graph.output("z", x)
    return Flow(graph)
