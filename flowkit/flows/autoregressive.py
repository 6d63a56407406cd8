"""Masked autoregressive flows, inverse ones, and neural ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowkit.arguments import checked
from flowkit.bijections import MaskedAutoregressive
from flowkit.flow import Flow
from flowkit.flows.shared import Condition, check_count, declare_conditions, given_of
from flowkit.graph import Graph, Wire
from flowkit.shapes import as_shape
from flowkit.univariate import Affine, Sigmoidal


@checked
def maf(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 5,
    hidden: int | Sequence[int] = (64, 64),
    univariate: Any = Affine,
) -> Flow:
    """A masked autoregressive flow: densities in one pass, samples in D; the order is reversed between layers.

    Args:
        features: D, or a shape `(D,)`.
        condition: see the module; vectors.
        layers: autoregressive maps.
        hidden: the widths of each masked net's hidden layers.
        univariate: what is done to each element, a recipe such as `fk.RationalQuadraticSpline.recipe(bins=8)`.

    Raises:
        ShapeError: data or conditions that are no vectors.
        ConfigError: fewer than one layer, see also `fk.MaskedAutoregressive`.

    Source: Papamakarios et al., Masked autoregressive flow for density estimation, 2017.

    >>> maf(3, condition=2, layers=2, hidden=(16,)).condition_shapes
    {'y': (2,)}
    """
    return masked_chain("maf", features, condition, layers, hidden, univariate, inverted=False)


@checked
def iaf(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 5,
    hidden: int | Sequence[int] = (64, 64),
    univariate: Any = Affine,
) -> Flow:
    """An inverse autoregressive flow: samples in one pass, densities of given data in D, for variational inference.

    Args:
        features, condition, layers, hidden, univariate: see `maf`.

    Raises:
        ShapeError, ConfigError: see `maf`.

    Source: Kingma et al., Improved variational inference with inverse autoregressive flow, 2016.

    >>> iaf(3, layers=2, hidden=(16,)).sample((4,)).shape
    torch.Size([4, 3])
    """
    return masked_chain("iaf", features, condition, layers, hidden, univariate, inverted=True)


@checked
def naf(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 3,
    hidden: int | Sequence[int] = (64, 64),
    components: int = 8,
) -> Flow:
    """A neural autoregressive flow: `maf` with deep sigmoidal maps, which bend each element as they must.

    Densities take one pass, samples D, in each of which the map is inverted by iteration. A thousandth of each map is
    the identity, so that it can be: the paper's formula is flat between sigmoids that lie far apart.

    Args:
        features, condition, layers, hidden: see `maf`.
        components: sigmoids of each map, see `fk.Sigmoidal`.

    Raises:
        ShapeError: see `maf`.
        ConfigError: fewer than one layer or component.

    Source: Huang et al., Neural autoregressive flows, 2018.

    >>> import torch
    >>> naf(3, condition=2, layers=1, hidden=(16,), components=4).sample((4,), given=torch.zeros(2)).shape
    torch.Size([4, 3])
    """
    univariate = Sigmoidal.recipe(components=components)
    return masked_chain("naf", features, condition, layers, hidden, univariate, inverted=False)


def masked_chain(
    name: str,
    features: int | Sequence[int],
    condition: Condition,
    layers: int,
    hidden: int | Sequence[int],
    univariate: Any,
    inverted: bool,
    between: Callable[[Graph, Wire], Wire] | None = None,
) -> Flow:
    """`layers` masked autoregressive maps, every other one in reverse order, with `between` between them."""
    check_count(name, "layers", layers)
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    graph = Graph()
    given = given_of(declare_conditions(graph, condition))
    x = graph.input("x", as_shape(features))
    for layer in range(layers):
        order = "reversed" if layer % 2 else None
        settings = {"univariate": univariate, "hidden": widths, "order": order, "inverted": inverted}
        x = graph.add(MaskedAutoregressive, x, **given, **settings)
        if between is not None and layer < layers - 1:
            x = between(graph, x)
    graph.output("z", x)
    return Flow(graph)
