"""The paper's networks, as functions that return a `fk.Flow`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

import flowkit as fk
from flowkit_cinn.coupling import ConditionalCoupling
from flowkit_cinn.pyramid import FeaturePyramid
from flowkit_cinn.wavelets import HaarDownsample


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
    """

    couplings: int = 0
    hidden: int | tuple[int, ...] = 64
    kernels: tuple[int | tuple[int, ...], ...] = (3,)
    limit: float = 2.0
    permute: bool = True
    keep: int | None = None


@dataclass(frozen=True)
class ColorizationRecipe:
    """A colorization network as plain data; the presets are three of them, and overrides change their fields.

    Args:
        levels: at full size, then after each Haar downsampling.
        dense: the fully connected couplings on the flattened rest.
        features: arguments of `FeaturePyramid`: one level for each of `levels`, and a vector for `dense`.
        size: height and width of ab.
        photo_size: height and width of L.
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
    dense: Level
    features: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    photo_size: int = 64
    clamp: str = "tanh"
    couple: str = "rest"
    rebalance: float = 1.0
    group: str = "subband"
    normalize: bool = False
    start: float | None = None


COLORIZATION: dict[str, ColorizationRecipe] = {
    "demo": ColorizationRecipe(
        levels=(
            Level(),
            Level(couplings=2, hidden=(32, 32), kernels=((3, 1, 1),), limit=1.0, keep=2),
            Level(couplings=3, hidden=(48, 48), kernels=((3, 1, 1),), limit=1.0, keep=2),
            Level(couplings=4, hidden=(64, 64), kernels=((3, 1, 1),), limit=1.0, keep=2),
            Level(couplings=4, hidden=(64, 64), kernels=((3, 1, 1),), limit=1.0, keep=2),
        ),
        dense=Level(couplings=6, hidden=(128, 128), limit=1.0),
        features={"channels": (16, 32, 48, 64), "first": 1, "vector": 96},
        couple="details",
        rebalance=0.5,
        normalize=True,
    ),
    "small": ColorizationRecipe(
        levels=(
            Level(couplings=2, hidden=32, limit=1.0, permute=False),
            Level(couplings=4, hidden=64, kernels=(1, 3), limit=1.0, keep=2),
            Level(couplings=4, hidden=128, kernels=(1, 3), limit=0.6, keep=4),
        ),
        dense=Level(couplings=4, hidden=512, limit=0.6),
        features={"channels": (64, 128, 128), "vector": 512, "init": "torch"},
        clamp="atan",
        couple="all",
        rebalance=0.5,
        group="channel",
        start=0.02,
    ),
    "paper": ColorizationRecipe(
        levels=(
            Level(couplings=4, hidden=32),
            Level(couplings=6, hidden=64, keep=4),
            Level(couplings=6, hidden=128, keep=8),
            Level(couplings=6, hidden=256, keep=16),
        ),
        dense=Level(couplings=8, hidden=512),
        features={"channels": (256, 256, 256, 256), "backbone": "zhang", "first": 2, "vector": 512},
        photo_size=256,
    ),
}


def colorization_cinn(preset: str = "demo", *, unconditional: bool = False, **overrides: Any) -> fk.Flow:
    """The paper's colorization network: ab `(2, H, W)` given the photograph's lightness `(1, H', W')`.

    | preset | ab | L | parameters | what it is |
    | --- | --- | --- | --- | --- |
    | `"demo"` | 64 x 64 | 64 x 64 | 1,413,050 | for two cores and a few minutes |
    | `"small"` | 64 x 64 | 64 x 64 | 11,010,760 | the authors' minimal example, layer by layer |
    | `"paper"` | 64 x 64 | 256 x 256 | 66,104,400 | section 4.2: 22 convolutional couplings, 8 fully connected |

    `"demo"` models each level's differences given its averages, as in Wavelet Flow (Yu, Derpanis, Brubaker, 2020): the
    levels then learn at once, each from its own data, where a chain of couplings first has to undo what it mixed. It
    has ActNorm layers, so call `flow.initialize(ab, given=photo)` on a first batch before training.

    Its input is `ab`, its condition `photo`, both normalised as in `flowkit_cinn.translation.color`; its outputs are
    `detail_N`, what was split off at N x N, and `coarse`.

    Args:
        preset: `"demo"`, `"small"` or `"paper"`.
        unconditional: the same flow without any condition, to measure what the conditions are worth.
        overrides: fields of `ColorizationRecipe` in place of the preset's.

    Raises:
        fk.ConfigError: an unknown preset or override.
        fk.GraphError: overrides that do not fit each other.

    Source: the paper, section 4.2; the authors' code for `"small"`.

    Example:
        >>> flow = colorization_cinn("demo", size=16, photo_size=16)
        >>> flow.input_shapes, flow.condition_shapes
        ({'ab': (2, 16, 16)}, {'photo': (1, 16, 16)})
    """
    if preset not in COLORIZATION:
        raise fk.ConfigError(f"preset must be one of {', '.join(COLORIZATION)}, got {preset!r}")
    names = [f.name for f in fields(ColorizationRecipe)]
    if unknown := sorted(set(overrides) - set(names)):
        raise fk.ConfigError(f"colorization_cinn can override {', '.join(names)}, not {', '.join(unknown)}")
    recipe = replace(COLORIZATION[preset], **overrides)
    if recipe.couple not in ("all", "rest", "details"):
        raise fk.ConfigError(f"couple must be 'all', 'rest' or 'details', got {recipe.couple!r}")
    flow = fk.Flow(colorization_graph(recipe, unconditional=unconditional))
    if recipe.start is not None:
        for module in flow.network.modules():
            if isinstance(module, fk.AffineCoupling):
                for parameter in module.parameters():
                    nn.init.normal_(parameter, std=recipe.start)
    return flow


def colorization_graph(recipe: ColorizationRecipe, unconditional: bool = False) -> fk.Graph:
    """The graph that a recipe describes."""
    graph = fk.Graph()
    wanted = sum(level.couplings > 0 for level in recipe.levels) + 1
    conditions: list[fk.Wire | None] = [None] * wanted
    if not unconditional:
        photo = graph.condition("photo", (1, recipe.photo_size, recipe.photo_size))
        conditions = list(graph.features(FeaturePyramid(**recipe.features), photo, name="pyramid"))
        if len(conditions) != wanted:
            raise fk.ConfigError(
                f"the levels and the fully connected couplings need {wanted - 1} maps and a vector, and "
                f"features={dict(recipe.features)!r} gives {len(conditions)} features in all"
            )
    x = graph.input("ab", (2, recipe.size, recipe.size))
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
    x = graph.add(fk.Flatten, x)
    x = _couplings(graph, x, [c for c in conditions if c is not None], recipe.dense, recipe.clamp)
    graph.output("coarse", x)
    return graph


def _couplings(graph: fk.Graph, x: fk.Wire, given: list[fk.Wire], level: Level, clamp: str) -> fk.Wire:
    for number in range(level.couplings):
        kernel = level.kernels[number % len(level.kernels)]
        subnet = fk.MLP(hidden=level.hidden) if len(x.shape) == 1 else fk.ConvNet(hidden=level.hidden, kernel=kernel)
        config: dict[str, Any] = {"subnet": subnet, "limit": level.limit}
        if clamp == "tanh" and given:
            x = graph.add(ConditionalCoupling, x, given=given, **config)
        else:
            x = graph.add(fk.AffineCoupling, x, given=given or None, clamp=clamp, two_sided=True, **config)
        if level.permute:
            x = graph.add(fk.Permute, x)
    return x
