"""The paper's networks, as functions that return a `fk.Flow`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

import flowkit as fk
from flowkit.arguments import checked
from flowkit_cinn.levels import ImageRecipe, Level, chosen, image_flow, started


@checked
@dataclass(frozen=True)
class ColorizationRecipe(ImageRecipe):
    """A colorization network as plain data; the presets are some of them, and overrides change their fields.

    `size` is of ab, `photo_size` of L; the other fields are `ImageRecipe`'s.
    """


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
    "tiny": ColorizationRecipe(
        levels=(
            Level(),
            Level(couplings=2, hidden=(32, 32), kernels=((3, 1, 1),), limit=1.0, keep=2),
            Level(couplings=3, hidden=(48, 48), kernels=((3, 1, 1),), limit=1.0, keep=2),
            Level(couplings=4, hidden=(64, 64), kernels=((3, 1, 1),), limit=1.0, keep=2),
        ),
        dense=Level(couplings=10, hidden=(128, 128), limit=0.5),
        features={"channels": (24, 48, 64), "first": 2, "vector": 128},
        size=32,
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
    "paper-code": ColorizationRecipe(
        levels=(
            Level(couplings=4, hidden=32, limit=1.5),
            Level(couplings=6, hidden=64, limit=1.5),
            Level(couplings=6, hidden=128, limit=1.5, keep=16),
            Level(couplings=6, hidden=256, limit=1.5, keep=32),
            Level(hidden=256, limit=1.5, keep=32),
        ),
        dense=Level(couplings=8, hidden=512, limit=1.5),
        features={"channels": (256,), "backbone": "zhang", "first": 2},
        photo_size=256,
        clamp="atan",
        group="channel",
        downsample=("squeeze", "squeeze", "squeeze", "haar"),
        mixing="rotation",
        mixers=2,
        own=(128, 512),
    ),
}
COLORIZATION["no-conditioning-net"] = replace(COLORIZATION["demo"], conditioning="image")

# Overrides of a preset, of colorization or of day to night, each of which takes away one part; by name.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no conditioning net": {"conditioning": "image"},
    "conditioning net fixed": {"conditioning": "fixed"},
    "no permutations": {"permute": False},
    "checkerboard squeeze instead of Haar": {"downsample": "squeeze"},
    "no clamp": {"clamp": None},
}


@checked
def colorization_cinn(preset: str = "demo", *, unconditional: bool = False, **overrides: Any) -> fk.Flow:
    """The paper's colorization network: ab `(2, H, W)` given the photograph's lightness `(1, H', W')`.

    | preset | ab | L | parameters | what it is |
    | --- | --- | --- | --- | --- |
    | `"demo"` | 64 x 64 | 64 x 64 | 1,413,050 | for two cores and a few minutes |
    | `"tiny"` | 32 x 32 | 64 x 64 | 1,569,074 | built as `"demo"` is; for comparisons on two cores |
    | `"small"` | 64 x 64 | 64 x 64 | 11,010,760 | the authors' minimal example, layer by layer |
    | `"paper"` | 64 x 64 | 256 x 256 | 66,104,400 | section 4.2: 22 convolutional couplings, 8 fully connected |
    | `"paper-code"` | 64 x 64 | 256 x 256 | 71,723,152 | the network of the authors' code |
    | `"no-conditioning-net"` | 64 x 64 | 64 x 64 | 471,594 | `"demo"`, the grayscale image itself as the condition |

    `"demo"` models each level's differences given its averages, as in Wavelet Flow (Yu, Derpanis, Brubaker, 2020): the
    levels then learn at once, each from its own data, where a chain of couplings first has to undo what it mixed. It
    has ActNorm layers, so call `flow.initialize(ab, given=photo)` on a first batch before training.

    `"paper-code"` has 2, 8, 16 and 32 channels at 64, 32, 16 and 8 pixels: three times space to depth and then Haar
    wavelets, after each two couplings of kernel 1 without condition, then a split: of no channels, of 16 of 32, of 32
    of 64, and of 96 of 128, which leaves 32 x 4 x 4 = 512 values for the fully connected couplings. Couplings of maps
    are followed by random rotations of the channels; every block has a conditioning net of its own (`BlockCondition`)
    on the 256 maps of Zhang et al.'s net. The number of couplings a level and the subnets' widths are `"paper"`'s; what
    those own nets look like (128 channels, a vector of 512) was chosen here.

    `ABLATIONS` names overrides that take away one part of any preset:
    `colorization_cinn("demo", **ABLATIONS["no clamp"])`.

    Its input is `ab`, its condition `photo`, both normalised as in `flowkit_cinn.translation.color`; its outputs are
    `detail_N`, what was split off at N x N, and `coarse`.

    Args:
        preset: `"demo"`, `"tiny"`, `"small"`, `"paper"`, `"paper-code"` or `"no-conditioning-net"`.
        unconditional: the same flow without any condition, to measure what the conditions are worth.
        overrides: fields of `ColorizationRecipe` in place of the preset's.

    Raises:
        fk.ConfigError: an unknown preset or override.
        fk.GraphError: overrides that do not fit each other.

    Source: the paper, section 4.2, and Fig. 12 for `"no-conditioning-net"`; the authors' code for `"small"` and
        `"paper-code"`.

    Example:
        >>> flow = colorization_cinn("demo", size=16, photo_size=16)
        >>> flow.input_shapes, flow.condition_shapes
        ({'ab': (2, 16, 16)}, {'photo': (1, 16, 16)})
    """
    recipe = chosen(COLORIZATION, preset, overrides, "colorization_cinn")
    return image_flow(recipe, ("ab", 2), ("photo", 1), unconditional)


DAY2NIGHT: dict[str, ImageRecipe] = {
    "demo": ImageRecipe(
        levels=(
            Level(),
            Level(couplings=2, hidden=(32, 32), kernels=((3, 1, 1),), limit=1.0, keep=3),
            Level(couplings=3, hidden=(48, 48), kernels=((3, 1, 1),), limit=1.0, keep=3),
            Level(couplings=4, hidden=(64, 64), kernels=((3, 1, 1),), limit=1.0, keep=3),
            Level(couplings=4, hidden=(64, 64), kernels=((3, 1, 1),), limit=1.0, keep=3),
        ),
        dense=Level(couplings=6, hidden=(128, 128), limit=1.0),
        features={"channels": (16, 32, 48, 64), "first": 1, "vector": 96},
        couple="details",
        rebalance=0.5,
        normalize=True,
    ),
    "paper": ImageRecipe(
        levels=(
            Level(couplings=1, hidden=(32, 32), norm="batch"),
            Level(couplings=1, hidden=(64, 64), norm="batch", keep=6),
            Level(couplings=2, hidden=(128, 128), norm="batch", keep=12),
            Level(couplings=2, hidden=(128, 128), norm="batch", keep=24),
            Level(couplings=1, hidden=(256, 256), norm="batch", keep=48),
            Level(couplings=1, hidden=(256, 256), norm="batch", keep=96),
        ),
        dense=None,
        features={"channels": (16, 64, 64, 128, 256, 512), "backbone": "resnet18"},
        size=128,
        photo_size=128,
    ),
}


@checked
def day2night_cinn(preset: str = "demo", *, unconditional: bool = False, **overrides: Any) -> fk.Flow:
    """The paper's day-to-night network: a night `(3, H, W)` given a photograph of the place by day `(3, H, W)`.

    | preset | size | parameters | what it is |
    | --- | --- | --- | --- |
    | `"demo"` | 64 x 64 | 1,487,359 | for two cores and a few minutes; built as colorization's `"demo"` is |
    | `"paper"` | 128 x 128 | 20,938,819 | section 4.1: ResNet-18, 8 couplings, 5 Haar downsamplings |

    Of `"paper"`, the text leaves open how the couplings are shared out, the subnets' widths, and whether channels are
    split off: here 1 / 1 / 2 / 2 / 1 / 1 from 128 to 4 pixels, 32 to 256, and half of them after each downsampling, as
    for colorization. Its ResNet starts from random weights unless
    `features={**DAY2NIGHT["paper"].features, "weights": "imagenet"}`.

    Its input is `night`, as (RGB - 0.5) / 0.25, its condition `day`, RGB in 0..1; its outputs are `detail_N`, what was
    split off at N x N, and `coarse`. `"demo"` has ActNorm layers: call `flow.initialize(night, given=day)` first.

    Args:
        preset: `"demo"` or `"paper"`.
        unconditional: the same flow without any condition, to measure what the condition is worth.
        overrides: fields of `ImageRecipe` in place of the preset's.

    Raises:
        fk.ConfigError: an unknown preset or override.
        fk.GraphError: overrides that do not fit each other.

    Source: the paper, section 4.1.

    Example:
        >>> flow = day2night_cinn("demo", size=16, photo_size=16)
        >>> flow.input_shapes, flow.condition_shapes
        ({'night': (3, 16, 16)}, {'day': (3, 16, 16)})
    """
    recipe = chosen(DAY2NIGHT, preset, overrides, "day2night_cinn")
    return image_flow(recipe, ("night", 3), ("day", 3), unconditional)


@checked
@dataclass(frozen=True)
class DigitRecipe:
    """A network on digits with a label, as plain data.

    Args:
        size: height and width of a digit.
        classes: labels are 0 to classes - 1.
        blocks: how many times a permutation and a two-sided coupling.
        hidden: units of the hidden layer of the subnets.
        limit: the bound on the log-scale.
        start: standard deviation of the normal from which all weights of the couplings are drawn; None starts each
            coupling as the identity.
    """

    size: int = 28
    classes: int = 10
    blocks: int = 20
    hidden: int = 512
    limit: float = 1.0
    start: float | None = 0.01

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.classes < 1:
            raise fk.ConfigError(
                f"DigitRecipe: blocks and classes must be at least 1, got {self.blocks!r} and {self.classes!r}"
            )


MNIST: dict[str, DigitRecipe] = {
    "digits": DigitRecipe(size=8, blocks=8, hidden=128),
    "small": DigitRecipe(blocks=10, hidden=256),
    "paper": DigitRecipe(),
}


@checked
def mnist_cinn(preset: str = "paper", *, unconditional: bool = False, **overrides: Any) -> fk.Flow:
    """The authors' network for digits: a digit `(1, H, W)` given its label, a whole number `()`.

    | preset | size | parameters | what it is |
    | --- | --- | --- | --- |
    | `"digits"` | 8 x 8 | 220,160 | scikit-learn's digits, a minute on two cores |
    | `"small"` | 28 x 28 | 6,093,120 | MNIST, for two cores and a few minutes |
    | `"paper"` | 28 x 28 | 24,341,120 | the authors' network, layer by layer |

    The digit is flattened; then come `blocks` times a random, fixed permutation and a two-sided affine coupling, whose
    subnets see the label as a one-hot vector: linear to `hidden`, ReLU, linear; log-scale limit x 0.636 x
    atan(r / limit).

    Its input is `digit`, as (grey - 0.128) / 0.305 with grey in 0..1, its condition `label`, int64; its output is `z`.

    Args:
        preset: `"digits"`, `"small"` or `"paper"`.
        unconditional: the same flow without the label, to measure what the label is worth.
        overrides: fields of `DigitRecipe` in place of the preset's.

    Raises:
        fk.ConfigError: an unknown preset or override.
        fk.ShapeError: overrides that do not fit each other.

    Source: the authors' code for the paper, its class-conditional MNIST network.

    Example:
        >>> flow = mnist_cinn("digits")
        >>> flow.input_shapes, flow.condition_shapes
        ({'digit': (1, 8, 8)}, {'label': ()})
    """
    recipe = chosen(MNIST, preset, overrides, "mnist_cinn")
    graph = fk.Graph()
    given = None
    if not unconditional:
        given = graph.features(fk.OneHot(recipe.classes), graph.condition("label", (), dtype=torch.int64))
    x = graph.add(fk.Flatten, graph.input("digit", (1, recipe.size, recipe.size)))
    for _ in range(recipe.blocks):
        x = graph.add(fk.Permute, x)
        subnet = fk.MLP(hidden=recipe.hidden)
        x = graph.add(
            fk.AffineCoupling, x, given=given, subnet=subnet, clamp="atan", limit=recipe.limit, two_sided=True
        )
    graph.output("z", x)
    return started(fk.Flow(graph), recipe.start)
