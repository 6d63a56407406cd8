"""Flows on images, as the paper builds them: levels of couplings between wavelets, fed by a feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import nn

import flowkit as fk
from flowkit_cinn.coupling import ConditionalCoupling
from flowkit_cinn.pyramid import FeaturePyramid
from flowkit_cinn.wavelets import HaarDownsample

R = TypeVar("R")  # a recipe: a frozen dataclass


@dataclass(frozen=True)
class Level:
    """The couplings at one resolution.

    Args:
        couplings: how many.
        hidden: channels (or units) of the hidden layer of their subnets; several for several layers.
        kernels: kernel sizes, of the couplings in turn: one for all layers of a subnet, or one for each.
        limit: the bound on the log-scale, with `clamp="tanh"` gamma's start.
        permute: a random, fixed permutation of the channels after each coupling.
        keep: how many channels go on; the others are split off as an output. None keeps all.
        norm: `"batch"` for batch normalisation in the subnets of maps.
    """

    couplings: int = 0
    hidden: int | tuple[int, ...] = 64
    kernels: tuple[int | tuple[int, ...], ...] = (3,)
    limit: float = 2.0
    permute: bool = True
    keep: int | None = None
    norm: str | None = None


@dataclass(frozen=True)
class ImageRecipe:
    """A multi-scale flow on images as plain data.

    Args:
        levels: at full size, then after each Haar downsampling.
        dense: the fully connected couplings on the flattened rest; None leaves the rest as it is.
        features: arguments of `FeaturePyramid`: one level for each of `levels` that has couplings, and a vector for
            `dense`.
        size: height and width of the data.
        photo_size: height and width of the condition.
        clamp: of the log-scale: `"tanh"` with gamma learned per channel (the paper), or `"atan"` (the authors' code).
        couple: what the couplings of a level see: `"all"` its channels, some of which are split off afterwards (the
            authors' minimal example); `"rest"` what is left after the split (the paper); `"details"` what is split
            off, given what is left, a data wire that the inverse knows by then.
        rebalance: the factor on the wavelets' coefficients.
        group: the order of the wavelets' channels.
        normalize: an `fk.ActNorm` after each downsampling, which `flow.initialize` sets from the first batch.
        start: standard deviation of the normal from which all weights of the couplings are drawn; None starts each
            coupling as the identity.
    """

    levels: tuple[Level, ...]
    dense: Level | None
    features: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    photo_size: int = 64
    clamp: str = "tanh"
    couple: str = "rest"
    rebalance: float = 1.0
    group: str = "subband"
    normalize: bool = False
    start: float | None = None


def chosen(presets: Mapping[str, R], preset: str, overrides: Mapping[str, Any], function: str) -> R:
    """A preset with some of its fields replaced.

    Raises:
        fk.ConfigError: an unknown preset or field.
    """
    if preset not in presets:
        raise fk.ConfigError(f"preset must be one of {', '.join(presets)}, got {preset!r}")
    names = [f.name for f in fields(presets[preset])]  # type: ignore[arg-type]
    if unknown := sorted(set(overrides) - set(names)):
        raise fk.ConfigError(f"{function} can override {', '.join(names)}, not {', '.join(unknown)}")
    return replace(presets[preset], **overrides)  # type: ignore[type-var]


def image_flow(
    recipe: ImageRecipe, data: tuple[str, int], condition: tuple[str, int], unconditional: bool = False
) -> fk.Flow:
    """The flow that a recipe describes, its weights drawn as the recipe says.

    Args:
        recipe: the levels and the rest.
        data: name and channels of the input.
        condition: name and channels of the condition.
        unconditional: leave the condition and its net out.

    Raises:
        fk.ConfigError: fields that do not fit each other.
    """
    if recipe.couple not in ("all", "rest", "details"):
        raise fk.ConfigError(f"couple must be 'all', 'rest' or 'details', got {recipe.couple!r}")
    return started(fk.Flow(image_graph(recipe, data, condition, unconditional)), recipe.start)


def started(flow: fk.Flow, start: float | None) -> fk.Flow:
    """The flow, the weights of its couplings drawn anew with the standard deviation `start`; None leaves them."""
    if start is not None:
        for module in flow.network.modules():
            if isinstance(module, fk.AffineCoupling):
                for parameter in module.parameters():
                    nn.init.normal_(parameter, std=start)
    return flow


def image_graph(
    recipe: ImageRecipe, data: tuple[str, int], condition: tuple[str, int], unconditional: bool = False
) -> fk.Graph:
    """The graph of `image_flow`."""
    graph = fk.Graph()
    wanted = sum(level.couplings > 0 for level in recipe.levels) + (recipe.dense is not None)
    conditions: list[fk.Wire | None] = [None] * wanted
    if not unconditional:
        name, channels = condition
        photo = graph.condition(name, (channels, recipe.photo_size, recipe.photo_size))
        pyramid = FeaturePyramid(**{"in_channels": channels, **recipe.features})
        conditions = list(graph.features(pyramid, photo, name="pyramid"))
        if len(conditions) != wanted:
            vector = " and a vector" if recipe.dense is not None else ""
            raise fk.ConfigError(
                f"the levels and the fully connected couplings need {wanted - bool(vector)} maps{vector}, and "
                f"features={dict(recipe.features)!r} gives {len(conditions)} features in all"
            )
    x = graph.input(data[0], (data[1], recipe.size, recipe.size))
    for number, level in enumerate(recipe.levels):
        if number:
            x = graph.add(HaarDownsample, x, rebalance=recipe.rebalance, group=recipe.group)
            if recipe.normalize:
                x = graph.add(fk.ActNorm, x)
        given = [c for c in conditions[:1] if level.couplings and c is not None]
        conditions = conditions[1:] if level.couplings else conditions
        if level.keep is None:
            x = _couplings(graph, x, given, level, recipe.clamp)
            continue
        if recipe.couple == "all":
            x = _couplings(graph, x, given, level, recipe.clamp)
        x, detail = graph.add(fk.Split, x, sizes=(level.keep, x.shape[0] - level.keep))
        if recipe.couple == "rest":
            x = _couplings(graph, x, given, level, recipe.clamp)
        elif recipe.couple == "details":
            detail = _couplings(graph, detail, [*given, x], level, recipe.clamp)
        graph.output(f"detail_{detail.shape[1]}", detail)
    if recipe.dense is not None:
        x = graph.add(fk.Flatten, x)
        x = _couplings(graph, x, [c for c in conditions if c is not None], recipe.dense, recipe.clamp)
    graph.output("coarse", x)
    return graph


def _couplings(graph: fk.Graph, x: fk.Wire, given: list[fk.Wire], level: Level, clamp: str) -> fk.Wire:
    for number in range(level.couplings):
        subnet: Any = fk.MLP(hidden=level.hidden)
        if len(x.shape) > 1:
            kernel = level.kernels[number % len(level.kernels)]
            subnet = fk.ConvNet(hidden=level.hidden, kernel=kernel, norm=level.norm)
        config: dict[str, Any] = {"subnet": subnet, "limit": level.limit}
        if clamp == "tanh" and given:
            x = graph.add(ConditionalCoupling, x, given=given, **config)
        else:
            x = graph.add(fk.AffineCoupling, x, given=given or None, clamp=clamp, two_sided=True, **config)
        if level.permute:
            x = graph.add(fk.Permute, x)
    return x
