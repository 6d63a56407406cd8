"""Chains of couplings: NICE, Real NVP and neural spline flows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flowkit.arguments import checked
from flowkit.bijections import (
    AdditiveCoupling,
    AffineCoupling,
    CircleShift,
    Coupling,
    ElementwiseAffine,
    LULinear,
    SplineCoupling,
)
from flowkit.distributions import Uniform
from flowkit.errors import ShapeError
from flowkit.flow import Flow
from flowkit.flows.autoregressive import masked_chain
from flowkit.flows.shared import SIDES, Condition, check_count, coupling_chain, declare_conditions, given_of
from flowkit.graph import Graph, Wire
from flowkit.periodic import PeriodicNet
from flowkit.shapes import as_shape
from flowkit.subnets import MLP
from flowkit.univariate import CircularRationalQuadraticSpline, RationalQuadraticSpline


@checked
def nice(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 4,
    hidden: int | Sequence[int] = (64, 64),
) -> Flow:
    """NICE: additive couplings whose halves take turns, and a learned scale at the end.

    Args:
        features: D, at least 2, or a shape `(C, ...)` of at least two channels; maps take convolutions, one
            more than `hidden` has widths.
        condition: see the module.
        layers: the couplings.
        hidden: the widths of each subnet's hidden layers; on maps their channels.

    Raises:
        ShapeError: fewer than two channels; a condition that does not fit.
        ConfigError: fewer than one layer.

    Source: Dinh et al., NICE: Non-linear independent components estimation, 2015.

    >>> import torch
    >>> nice(4, condition=2).log_prob(torch.zeros(3, 4), given=torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    def end(graph: Graph, x: Wire) -> Wire:
        return graph.add(ElementwiseAffine, x)

    return coupling_chain("nice", AdditiveCoupling, features, condition, layers, hidden, {}, end)


@checked
def realnvp(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 6,
    hidden: int | Sequence[int] = (64, 64),
    clamp: str | None = "tanh",
    limit: float = 2.0,
) -> Flow:
    """Real NVP on one scale: affine couplings whose halves take turns; multi-scale images are `glow`'s.

    Args:
        features, condition, layers, hidden: see `nice`.
        clamp, limit: the bound on the log-scales, see `fk.Affine`.

    Raises:
        ShapeError, ConfigError: see `nice` and `fk.Affine`.

    Source: Dinh et al., Density estimation using Real NVP, 2017.

    >>> realnvp(2, condition={"label": 10}).condition_shapes
    {'label': (10,)}
    """
    return coupling_chain(
        "realnvp", AffineCoupling, features, condition, layers, hidden, {"clamp": clamp, "limit": limit}
    )


@checked
def nsf(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 5,
    hidden: int | Sequence[int] = (64, 64),
    bins: int = 8,
    bound: float = 3.0,
    autoregressive: bool = False,
) -> Flow:
    """A neural spline flow: rational-quadratic couplings on [-bound, bound], with LU-factored linear maps between.

    Or, autoregressive: masked maps in place of the couplings, which see more, and need D passes for a sample.

    Bring the data to about unit scale: what lies outside of the bound passes the splines unchanged.

    Args:
        features, condition, layers, hidden: see `nice`.
        bins, bound: see `fk.RationalQuadraticSpline`.
        autoregressive: masked maps instead of couplings; for vectors, also of one element.

    Raises:
        ShapeError, ConfigError: see `nice`, `maf` and `fk.RationalQuadraticSpline`.

    Source: Durkan et al., Neural spline flows, 2019.

    >>> import torch
    >>> flow = nsf(3, condition=5, layers=2, hidden=(16,), bins=4)
    >>> flow.sample((7,), given=torch.zeros(5)).shape
    torch.Size([7, 3])
    """

    def between(graph: Graph, x: Wire) -> Wire:
        return graph.add(LULinear, x)

    config = {"bins": bins, "bound": bound}
    if autoregressive:
        univariate = RationalQuadraticSpline.recipe(**config)
        return masked_chain("nsf", features, condition, layers, hidden, univariate, False, between)
    return coupling_chain("nsf", SplineCoupling, features, condition, layers, hidden, config, between=between)


@checked
def circular_nsf(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 4,
    hidden: int | Sequence[int] = (64, 64),
    bins: int = 8,
    frequencies: int = 1,
) -> Flow:
    """A neural spline flow of angles, on the torus [-pi, pi)^D: circular couplings whose halves take turns.

    Its base is uniform, its subnets see cosines and sines, so its density has no seam, and any number is taken for an
    angle, modulo 2 pi; densities are with respect to one turn of each.

    Args:
        features: D, at least 2, or a shape `(D,)`.
        condition: see the module; vectors.
        layers, hidden: see `nice`.
        bins: see `fk.CircularRationalQuadraticSpline`.
        frequencies: the multiples of each angle that subnets see, see `fk.PeriodicNet`.

    Raises:
        ShapeError: data that is no vector of at least two angles; a condition that does not fit.
        ConfigError: fewer than one layer, fewer than two bins, fewer than one frequency.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, section 2.1.3.

    >>> flow = circular_nsf(2, layers=2, hidden=(16,), bins=4)
    >>> bool((flow.sample((7,)).abs() <= 3.1416).all())
    True
    """
    check_count("circular_nsf", "layers", layers)
    shape = as_shape(features)
    if len(shape) != 1:
        raise ShapeError(f"circular_nsf needs vectors of angles (D,), got shape {shape}")
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    subnet = PeriodicNet(MLP(hidden=widths), frequencies=frequencies)
    spline = CircularRationalQuadraticSpline.recipe(bins=bins)
    graph = Graph()
    given = given_of(declare_conditions(graph, condition))
    x = graph.input("x", shape)
    for layer in range(layers):
        x = graph.add(Coupling, x, subnet=subnet, univariate=spline, active=SIDES[layer % 2], **given)
    if layers == 1:  # the passive half has met no map that takes any number for an angle
        x = graph.add(CircleShift, x)
    graph.output("z", x)
    return Flow(graph, Uniform(shape[0], low=-math.pi, high=math.pi))
