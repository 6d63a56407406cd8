"""What is compared: the flow, the paper's other systems, and the flow with one thing taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import flowkit as fk
from flowkit_cinn import colorization_cinn
from flowkit_cinn.models import ABLATIONS, COLORIZATION
from flowkit_cinn.translation.baselines import BASELINES, Colorizer

OURS, FIXED_NET = "cINN", "conditioning net fixed"
NO_NOISE = "no noise"
TEACHER = "CNN"  # whose conditioning net, trained for colorization, is the fixed one


@dataclass(frozen=True)
class System:
    """One row of the table: its name, how it is built, whether it is a flow of ours without something."""

    name: str
    build: Callable[[], nn.Module]
    ablation: bool = False
    noise: bool = True

    @property
    def file(self) -> str:
        """The stem of its files."""
        return self.name.lower().replace(" ", "-")


def systems(preset: str, ablations: bool = True, **overrides: Any) -> list[System]:
    """What is compared, in the order in which it is trained.

    The baselines have the conditioning net of the preset's recipe. `overrides` are fields of the recipe.

    Raises:
        ConfigError: a preset without a conditioning net.
    """
    recipe = fk_recipe(preset, overrides)
    made = [System(TEACHER, _baseline(TEACHER, recipe)), System(OURS, _flow(preset, overrides))]
    made += [System(name, _baseline(name, recipe)) for name in BASELINES if name != TEACHER]
    if ablations:
        made += [System(name, _flow(preset, {**overrides, **change}), True) for name, change in ABLATIONS.items()]
        made.append(System(NO_NOISE, _flow(preset, overrides), True, noise=False))
    return made


def fk_recipe(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a baseline with the preset's conditioning net.

    Raises:
        ConfigError: it has none.
    """
    recipe = COLORIZATION[preset]
    if recipe.conditioning != "pyramid":
        raise fk.ConfigError(f"--compare needs a preset with a conditioning net, and '{preset}' has none")
    given = {"features": recipe.features, "size": recipe.size, "photo_size": recipe.photo_size}
    return {name: overrides.get(name, value) for name, value in given.items()}


def take_over_net(flow: fk.Flow, teacher: Colorizer) -> None:
    """Give the flow the conditioning net that a baseline was trained with."""
    net: nn.Module = flow.network.nodes["pyramid"]
    net.load_state_dict(teacher.pyramid.state_dict(), strict=True)


def _baseline(name: str, recipe: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return BASELINES[name](**recipe)

    return build


def _flow(preset: str, overrides: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return colorization_cinn(preset, **overrides)

    return build
