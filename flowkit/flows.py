"""Ready flows in one call: each returns a `fk.Flow` whose graph can be read, drawn and changed.

All take `features`, an int or an event shape, and `condition`: an int, a shape (then named y), or a dictionary of named
shapes. The data is called x, the latent z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowkit.bijections import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ElementwiseAffine,
    LULinear,
    MaskedAutoregressive,
    Planar,
    SplineCoupling,
    Split,
    Squeeze,
)
from flowkit.errors import ConfigError, ShapeError
from flowkit.features import Resize, ToMap
from flowkit.flow import Flow
from flowkit.graph import Graph, Wire
from flowkit.shapes import Shape, as_shape
from flowkit.subnets import MLP, ConvNet
from flowkit.univariate import Affine

Condition = int | Sequence[int] | Mapping[str, int | Sequence[int]] | None
SIDES = ("second", "first")


def nice(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 4,
    hidden: int | Sequence[int] = (64, 64),
) -> Flow:
    """NICE: additive couplings whose halves take turns, and a learned scale at the end.

    Args:
        features: D, at least 2, or a shape `(C, ...)` of at least two channels; maps take convolutions of as many
            layers as `hidden` has widths.
        condition: see the module.
        layers: the couplings.
        hidden: the widths of each subnet's hidden layers; on maps the first is all layers'.

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

    return _chain("nice", AdditiveCoupling, features, condition, layers, hidden, {}, end)


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
    return _chain("realnvp", AffineCoupling, features, condition, layers, hidden, {"clamp": clamp, "limit": limit})


def nsf(
    features: int | Sequence[int],
    condition: Condition = None,
    layers: int = 5,
    hidden: int | Sequence[int] = (64, 64),
    bins: int = 8,
    bound: float = 3.0,
) -> Flow:
    """A neural spline flow: rational-quadratic couplings on [-bound, bound], with LU-factored linear maps between.

    Bring the data to about unit scale: what lies outside of the bound passes the splines unchanged.

    Args:
        features, condition, layers, hidden: see `nice`.
        bins, bound: see `fk.RationalQuadraticSpline`.

    Raises:
        ShapeError, ConfigError: see `nice` and `fk.RationalQuadraticSpline`.

    Source: Durkan et al., Neural spline flows, 2019.

    >>> import torch
    >>> flow = nsf(3, condition=5, layers=2, hidden=(16,), bins=4)
    >>> flow.sample((7,), given=torch.zeros(5)).shape
    torch.Size([7, 3])
    """

    def between(graph: Graph, x: Wire) -> Wire:
        return graph.add(LULinear, x)

    config = {"bins": bins, "bound": bound}
    return _chain("nsf", SplineCoupling, features, condition, layers, hidden, config, between=between)


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
    return _autoregressive("maf", features, condition, layers, hidden, univariate, inverted=False)


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
    return _autoregressive("iaf", features, condition, layers, hidden, univariate, inverted=True)


def _autoregressive(
    name: str,
    features: int | Sequence[int],
    condition: Condition,
    layers: int,
    hidden: int | Sequence[int],
    univariate: Any,
    inverted: bool,
) -> Flow:
    _check_count(name, "layers", layers)
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    graph = Graph()
    given = _given(_conditions(graph, condition))
    x = graph.input("x", as_shape(features))
    for layer in range(layers):
        order = "reversed" if layer % 2 else None
        settings = {"univariate": univariate, "hidden": widths, "order": order, "inverted": inverted}
        x = graph.add(MaskedAutoregressive, x, **given, **settings)
    graph.output("z", x)
    return Flow(graph)


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
    _check_count("planar", "layers", layers)
    graph = Graph()
    given = _given(_conditions(graph, condition))
    x = graph.input("x", as_shape(features))
    for _ in range(layers):
        x = graph.add(Planar, x, **given)
    graph.output("z", x)
    return Flow(graph)


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
    _check_count("glow", "levels", levels)
    _check_count("glow", "layers", layers)
    if len(shape) != 3 or any(size % 2**levels for size in shape[1:]):
        raise ShapeError(
            f"glow with {levels} levels needs (C, H, W) with H and W divisible by {2**levels}, got shape {shape}"
        )
    graph = Graph()
    wires = _conditions(graph, condition)
    x = graph.input("x", shape)
    for level in range(1, levels + 1):
        x = graph.add(Squeeze, x)
        given = [_at_size(graph, wire, x.shape) for wire in wires]
        for layer in range(layers):
            x = graph.add(LULinear, graph.add(ActNorm, x))
            x = graph.add(
                AffineCoupling,
                x,
                subnet=ConvNet(hidden=hidden),
                clamp=clamp,
                limit=limit,
                active=SIDES[layer % 2],
                **_given(given),
            )
        if level < levels:
            half = x.shape[0] // 2
            out, x = graph.add(Split, x, sizes=(half, x.shape[0] - half))
            graph.output(f"z{level}", out)
    graph.output("z", x)
    return Flow(graph)


def _chain(
    name: str,
    coupling: type,
    features: int | Sequence[int],
    condition: Condition,
    layers: int,
    hidden: int | Sequence[int],
    config: dict[str, Any],
    end: Callable[[Graph, Wire], Wire] | None = None,
    between: Callable[[Graph, Wire], Wire] | None = None,
) -> Flow:
    """Couplings whose halves take turns, with what lies between them and at their end."""
    _check_count(name, "layers", layers)
    shape = as_shape(features)
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    subnet = MLP(hidden=widths) if len(shape) == 1 else ConvNet(hidden=widths[0])
    graph = Graph()
    wires = _conditions(graph, condition)
    x = graph.input("x", shape)
    given = _given([_at_size(graph, wire, shape) for wire in wires])
    for layer in range(layers):
        if between is not None:
            x = between(graph, x)
        x = graph.add(coupling, x, subnet=subnet, active=SIDES[layer % 2], **given, **config)
    graph.output("z", x if end is None else end(graph, x))
    return Flow(graph)


def _check_count(name: str, what: str, count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{name}: {what} must be an int of at least 1, got {count!r}")


def _conditions(graph: Graph, condition: Condition) -> list[Wire]:
    if condition is None:
        return []
    named = condition if isinstance(condition, Mapping) else {"y": condition}
    return [graph.condition(name, as_shape(shape)) for name, shape in named.items()]


def _given(wires: list[Wire]) -> dict[str, Any]:
    return {"given": wires} if wires else {}


def _at_size(graph: Graph, wire: Wire, shape: Shape) -> Wire:
    """The condition at the data's spatial size, where an adaptor can bring it there; else the coupling refuses it."""
    if len(wire.shape) == 1 and len(shape) > 1:
        return graph.features(ToMap(shape[1:]), wire)
    if len(wire.shape) == len(shape) > 1 and wire.shape[1:] != shape[1:]:
        return graph.features(Resize(shape[1:]), wire)
    return wire
