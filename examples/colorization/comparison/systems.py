"""What is compared: the flow, the paper's other systems, and the flow with one thing taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from flowkit.errors import ConfigError
from flowkit_cinn import colorization_cinn
from flowkit_cinn.models import ABLATIONS, COLORIZATION
from flowkit_cinn.translation.baselines import BASELINES

OURS, FIXED_NET = "cINN", "conditioning net fixed"
NO_NOISE = "no noise"
TEACHER = "CNN"  # whose conditioning net, trained for colorization, is the fixed one


@dataclass(frozen=True)
class System:
    """One row of the table: its name, how it is built, and whether it is a flow of ours without something.

    `size` is of ab, `photo_size` of L; `noise` is whether it is trained with the preset's noise.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int
    photo_size: int
    ablation: bool = False
    noise: bool = True

    @property
    def file(self) -> str:
        """The stem of its files."""
        return self.name.lower().replace(" ", "-")


def systems(preset: str, ablations: bool = True, **overrides: Any) -> list[System]:
    """What is compared, in the order in which it is trained: the regression first, whose net another takes over.

    The baselines have the conditioning net of the preset's recipe. `overrides` are fields of the recipe.

    Raises:
        ConfigError: a preset without a conditioning net.
    """
    recipe = replace(COLORIZATION[preset], **overrides)
    if recipe.conditioning != "pyramid":
        raise ConfigError(f"--compare needs a preset with a conditioning net, and '{preset}' has none")
    sizes = {"size": recipe.size, "photo_size": recipe.photo_size}

    def baseline(name: str) -> System:
        return System(name, partial(BASELINES[name], recipe.features, **sizes), **sizes)

    def ours(name: str, ablation: bool = True, noise: bool = True, **change: Any) -> System:
        build = partial(colorization_cinn, preset, **{**overrides, **change})
        return System(name, build, **sizes, ablation=ablation, noise=noise)

    made = [baseline(TEACHER), ours(OURS, ablation=False)]
    made += [baseline(name) for name in BASELINES if name != TEACHER]
    if ablations:
        made += [ours(name, **change) for name, change in ABLATIONS.items()]
        made.append(ours(NO_NOISE, noise=False))
    return made
