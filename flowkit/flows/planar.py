"""Chains of planar and of Sylvester flows."""

from __future__ import annotations

from collections.abc import Sequence

from flowkit.arguments import checked
from flowkit.bijections import Planar, Sylvester
from flowkit.flow import Flow
from flowkit.flows.shared import Condition, check_count, declare_conditions, given_of
from flowkit.graph import Graph
from flowkit.shapes import as_shape


@checked
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


@checked
def sylvester(
    features: int | Sequence[int], condition: Condition = None, layers: int = 8, units: int | None = None
) -> Flow:
    """A chain of Sylvester flows: planar flows with several orthogonal hidden units in each step.

    Args:
        features: D, or a shape `(D,)`.
        condition: see the module; vectors, from which a net predicts a change of all parameters.
        layers: Sylvester maps.
        units: the hidden units of each, from 1 to D; D by default.

    Raises:
        ShapeError: data or conditions that are no vectors.
        ConfigError: fewer than one layer; units out of range.

    Source: van den Berg et al., Sylvester normalizing flows for variational inference, 2018.

    >>> sylvester(3, condition=2, layers=2, units=2).condition_shapes
    {'y': (2,)}
    """
    check_count("sylvester", "layers", layers)
    graph = Graph()
    given = given_of(declare_conditions(graph, condition))
    x = graph.input("x", as_shape(features))
    for _ in range(layers):
        x = graph.add(Sylvester, x, units=units, **given)
    graph.output("z", x)
    return Flow(graph)
