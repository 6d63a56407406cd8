"""Flows on images, as the paper builds them: levels of couplings between wavelets, fed by a feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import nn

import flowkit as fk
from flowkit.arguments import checked
from flowkit_cinn.coupling import ConditionalCoupling
from flowkit_cinn.pyramid import BlockCondition, FeaturePyramid, ImagePyramid
from flowkit_cinn.wavelets import HaarDownsample

R = TypeVar("R")  # a recipe: a frozen dataclass
CHOICES = {
    "couple": ("all", "rest", "details"),
    "conditioning": ("pyramid", "image", "fixed"),
    "mixing": ("permutation", "rotation"),
}
DOWNSAMPLINGS = ("haar", "squeeze")


@checked
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

    def __post_init__(self) -> None:
        if self.couplings < 0:
            raise fk.ConfigError(f"Level: couplings must be an int of 0 or more, got {self.couplings!r}")


@checked
@dataclass(frozen=True)
class ImageRecipe:
    """A multi-scale flow on images as plain data.

    Three fields are there to measure what a part is worth: `conditioning`, `downsample` and `permute`; `clamp=None` is
    a fourth. They change nothing else.

    Args:
        levels: at full size, then after each downsampling.
        dense: the fully connected couplings on the flattened rest; None leaves the rest as it is.
        features: arguments of `FeaturePyramid`: one level for each of `levels` that has couplings, and a vector for
            `dense`; with `own`, one level alone.
        size: height and width of the data.
        photo_size: height and width of the condition.
        clamp: of the log-scale: `"tanh"` with gamma learned per channel (the paper), `"atan"` (the authors' code),
            `"softsign"`, or None for no clamp.
        couple: what the couplings of a level see: `"all"` its channels, some of which are split off afterwards (the
            authors' minimal example); `"rest"` what is left after the split (the paper); `"details"` what is split
            off, given what is left, a data wire that the inverse knows by then.
        rebalance: the factor on the wavelets' coefficients; the squeeze has none.
        group: the order of the channels after a downsampling: `"subband"`, all channels' averages (or first pixels)
            first, or `"channel"`.
        normalize: an `fk.ActNorm` after each downsampling, which `flow.initialize` sets from the first batch.
        start: standard deviation of the normal from which all weights of the couplings are drawn; None starts each
            coupling as the identity.
        conditioning: `"pyramid"`; `"image"`, no conditioning net: the photograph itself, averaged down to the size of
            each level, and flattened at the size of the rest for `dense`; or `"fixed"`, the pyramid with weights that
            do not train and BatchNorm in eval mode. Those weights are random, as the pyramid is made, or ImageNet's
            where `features` asks for them, unless the caller loads others:
            `flow.network.nodes["pyramid"].load_state_dict(...)`. Do so for backbone `"zhang"`: its random weights fade
            from layer to layer, and without a batch's statistics its maps hardly depend on the photograph. With `own`,
            the blocks' nets are the blocks' and train.
        downsample: `"haar"` wavelets, or `"squeeze"`, each 2 x 2 block's pixels as channels, of which a split then
            keeps pixels where it would have kept averages; one for all, or one for each level after the first.
        permute: False leaves out what mixes the channels after each coupling, whatever the levels say.
        mixing: what that is on maps, a random, fixed `"permutation"` or `"rotation"`; vectors are permuted.
        mixers: after each downsampling, before the split, so many couplings of kernel 1 without conditions, of the
            level's `hidden` and `limit`.
        own: None, the blocks share their level's map; or channels and size of the vector, for a `BlockCondition` of
            its own in every block, on the pyramid's one map.
    """

    levels: tuple[Level, ...]
    dense: Level | None
    features: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    photo_size: int = 64
    clamp: str | None = "tanh"
    couple: str = "rest"
    rebalance: float = 1.0
    group: str = "subband"
    normalize: bool = False
    start: float | None = None
    conditioning: str = "pyramid"
    downsample: str | tuple[str, ...] = "haar"
    permute: bool = True
    mixing: str = "permutation"
    mixers: int = 0
    own: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.levels, tuple | list) or not all(isinstance(each, Level) for each in self.levels):
            raise fk.ConfigError(f"{name}: levels must be a tuple of Level, got {self.levels!r}")
        if not (self.dense is None or isinstance(self.dense, Level)):
            raise fk.ConfigError(f"{name}: dense must be a Level or None, got {self.dense!r}")
        if not isinstance(self.features, Mapping):
            raise fk.ConfigError(f"{name}: features must be arguments by name, got {self.features!r}")
        if self.mixers < 0:
            raise fk.ConfigError(f"{name}: mixers must be an int of 0 or more, got {self.mixers!r}")
        if self.own is not None and not (isinstance(self.own, tuple | list) and len(self.own) == 2):
            raise fk.ConfigError(f"{name}: own must be two ints or None, got {self.own!r}")


def chosen(presets: Mapping[str, R], preset: str, overrides: Mapping[str, Any], function: str) -> R:
    """A preset with some of its fields replaced.

    Raises:
        fk.ConfigError: an unknown preset or field.
    """
    if not isinstance(preset, str) or preset not in presets:
        raise fk.ConfigError(f"{function}: preset must be one of {', '.join(presets)}, got {preset!r}")
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
    for name, allowed in CHOICES.items():
        if (value := getattr(recipe, name)) not in allowed:
            listed = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
            raise fk.ConfigError(f"{name} must be {listed}, got {value!r}")
    return started(fk.Flow(image_graph(recipe, data, condition, unconditional)), recipe.start)


def started(flow: fk.Flow, start: float | None) -> fk.Flow:
    """The flow, the weights of its couplings drawn anew with the standard deviation `start`; None leaves them."""
    if start is not None and start < 0:
        raise fk.ConfigError(f"start must be a standard deviation of 0 or more, or None, got {start!r}")
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
    conditions: list[fk.Wire | None] = [None] * _wanted(recipe)
    if not unconditional:
        name, channels = condition
        conditions = _conditions(graph, graph.condition(name, (channels, *[recipe.photo_size] * 2)), recipe)
    downsamplings = _downsamplings(recipe)
    x = graph.input(data[0], (data[1], recipe.size, recipe.size))
    for number, level in enumerate(recipe.levels):
        if number:
            x = _downsampled(graph, x, downsamplings[number - 1], recipe)
            for _ in range(recipe.mixers):
                x = _coupling(graph, x, [], level, recipe, kernel=1)
        seen = conditions.pop(0) if level.couplings else None
        if level.keep is None:
            x = _couplings(graph, x, seen, level, recipe)
            continue
        if recipe.couple == "all":
            x = _couplings(graph, x, seen, level, recipe)
        x, detail = graph.add(fk.Split, x, sizes=(level.keep, x.shape[0] - level.keep))
        if recipe.couple == "rest":
            x = _couplings(graph, x, seen, level, recipe)
        elif recipe.couple == "details":
            detail = _couplings(graph, detail, seen, level, recipe, rest=(x,))
        graph.output(f"detail_{detail.shape[1]}", detail)
    if recipe.dense is not None:
        x = graph.add(fk.Flatten, x)
        x = _couplings(graph, x, conditions.pop(0), recipe.dense, recipe)
    graph.output("coarse", x)
    return graph


def _wanted(recipe: ImageRecipe) -> int:
    """How many conditions the flow needs: one a level that has couplings, and the vector."""
    return sum(level.couplings > 0 for level in recipe.levels) + (recipe.dense is not None)


def _conditions(graph: fk.Graph, photo: fk.Wire, recipe: ImageRecipe) -> list[fk.Wire | None]:
    """For each level that has couplings, finest first, and for `dense`, what its blocks are given."""
    if recipe.conditioning == "image":
        return list(graph.features(_image_pyramid(recipe), photo, name="pyramid"))
    arguments = {"in_channels": photo.shape[0], **recipe.features}
    if recipe.conditioning == "fixed":
        arguments["fixed"] = True
    found = list(graph.features(FeaturePyramid(**arguments), photo, name="pyramid"))
    wanted = _wanted(recipe) if recipe.own is None else 1
    if len(found) != wanted:
        vector = recipe.dense is not None and recipe.own is None
        needs = f"need {wanted - vector} map{'s' * (wanted - vector != 1)}{' and a vector' * vector}"
        raise fk.ConfigError(
            f"the levels and the fully connected couplings {needs}, and features={dict(recipe.features)!r} gives "
            f"{len(found)} features in all"
        )
    return found * _wanted(recipe) if recipe.own is not None else found


def _image_pyramid(recipe: ImageRecipe) -> ImagePyramid:
    """The photograph at the size of each level that has couplings, and at that of the flattened rest."""
    sizes = [recipe.size // 2**number for number, level in enumerate(recipe.levels) if level.couplings]
    last = recipe.size // 2 ** (len(recipe.levels) - 1)
    if any(size < 1 or recipe.photo_size % size for size in (*sizes, last)):
        raise fk.ConfigError(
            f"conditioning='image' averages the photograph: photo_size must be a multiple of "
            f"{', '.join(map(str, sizes))}, the levels' sizes, and of {last}, the rest's, got {recipe.photo_size}"
        )
    factors = tuple(recipe.photo_size // size for size in sizes)
    return ImagePyramid(factors, vector=None if recipe.dense is None else recipe.photo_size // last)


def _downsamplings(recipe: ImageRecipe) -> tuple[str, ...]:
    count = len(recipe.levels) - 1
    kinds = (recipe.downsample,) * count if isinstance(recipe.downsample, str) else tuple(recipe.downsample)
    if len(kinds) != count or any(kind not in DOWNSAMPLINGS for kind in kinds):
        raise fk.ConfigError(
            f"downsample must be 'haar' or 'squeeze', or {count} of them, one before each level but the first, got "
            f"{recipe.downsample!r}"
        )
    return kinds


def _downsampled(graph: fk.Graph, x: fk.Wire, kind: str, recipe: ImageRecipe) -> fk.Wire:
    if kind == "haar":
        x = graph.add(HaarDownsample, x, rebalance=recipe.rebalance, group=recipe.group)
    else:
        channels = x.shape[0]
        x = graph.add(fk.Squeeze, x)
        if recipe.group == "subband":  # as the wavelets: a split keeps one pixel of each channel, not four of one
            x = graph.add(fk.Permute, x, order=tuple(c * 4 + pixel for pixel in range(4) for c in range(channels)))
    return graph.add(fk.ActNorm, x) if recipe.normalize else x


def _couplings(
    graph: fk.Graph,
    x: fk.Wire,
    condition: fk.Wire | None,
    level: Level,
    recipe: ImageRecipe,
    rest: tuple[fk.Wire, ...] = (),
) -> fk.Wire:
    for number in range(level.couplings):
        given = [*_own(graph, condition, x, recipe), *rest]
        x = _coupling(graph, x, given, level, recipe, level.kernels[number % len(level.kernels)])
    return x


def _own(graph: fk.Graph, condition: fk.Wire | None, x: fk.Wire, recipe: ImageRecipe) -> list[fk.Wire]:
    """What the next block is given of the condition: itself, or what a net of the block's own makes of it."""
    if condition is None:
        return []
    if recipe.own is None or recipe.conditioning == "image":
        return [condition]
    (channels, vector), (c_in, size) = recipe.own, condition.shape[:2]
    if len(x.shape) == 1:
        return [graph.features(BlockCondition(c_in, channels, vector=vector), condition)]
    return [graph.features(BlockCondition(c_in, channels, halvings=(size // x.shape[1]).bit_length() - 1), condition)]


def _coupling(
    graph: fk.Graph,
    x: fk.Wire,
    given: list[fk.Wire],
    level: Level,
    recipe: ImageRecipe,
    kernel: int | tuple[int, ...] = 1,
) -> fk.Wire:
    """A coupling, and what mixes the channels after it."""
    on_maps = len(x.shape) > 1
    subnet: Any = fk.MLP(hidden=level.hidden)
    if on_maps:
        subnet = fk.ConvNet(hidden=level.hidden, kernel=kernel, norm=level.norm)
    config: dict[str, Any] = {"subnet": subnet, "limit": level.limit}
    if recipe.clamp == "tanh" and given:
        x = graph.add(ConditionalCoupling, x, given=given, **config)
    else:
        x = graph.add(fk.AffineCoupling, x, given=given or None, clamp=recipe.clamp, two_sided=True, **config)
    if not (level.permute and recipe.permute):
        return x
    return graph.add(fk.FixedRotation if on_maps and recipe.mixing == "rotation" else fk.Permute, x)
