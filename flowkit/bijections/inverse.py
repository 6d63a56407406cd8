"""The inverse of a bijection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.bijection import Bijection, Output, as_tuple
from flowkit.bijections.coupling import AffineCoupling
from flowkit.bijections.elementwise import ElementwiseAffine
from flowkit.bijections.linear import LULinear
from flowkit.bijections.reshape import Squeeze
from flowkit.bijections.split import Split
from flowkit.errors import ConfigError
from flowkit.registry import Example, register
from flowkit.subnets import MLP, ConvNet

# All but needs_initialization: the data that would set the inner op's state is what comes out, not what goes in.
FORWARDED = (
    "constant_log_det",
    "volume_preserving",
    "views",
    "stochastic",
    "iterative",
    "tolerance",
    "adaptive",
    "dimension_changing",
    "inexact",
    "embedded",
    "integer_conditions",
)


def _examples() -> list[Example]:
    mlp, conv = MLP(hidden=5, activation="silu"), ConvNet(hidden=3, kernel=(3, 1), activation="silu")
    return [
        Example(ElementwiseAffine(())),
        Example(AffineCoupling((3,), given=(2,), subnet=mlp)),
        Example(LULinear((3, 4))),
        Example(AffineCoupling((3, 2, 2), given=((1, 2, 2),), subnet=conv, two_sided=True)),
        Example(Squeeze((1, 2, 2, 4))),
        Example(Split((3, 2))),
    ]


@register("flowkit.inverse", examples=_examples)
class Inverse(Bijection):
    """A bijection run backwards: its inverse is the forward of this one.

    forward: y = f^-1(x), log-det that of f^-1. inverse: x = f(y), log-det that of f.

    Conditions, `prepare` and the promises of f are passed on. One is not: f is not initialised from data, since the
    data that would set its state comes out of it; initialise it before, or leave it at its start.

    Shapes: inputs are f's outputs, outputs its inputs; conditions the same.

    Args:
        bijection: f, an instance; its parameters are shared, not copied.

    Raises:
        ConfigError: anything else than an instance of a bijection.

    >>> unsqueeze = Inverse(Squeeze((1, 4, 4)))
    >>> unsqueeze(torch.zeros(5, 4, 2, 2))[0].shape
    torch.Size([5, 1, 4, 4])
    """

    def __init__(self, bijection: Bijection):
        if not isinstance(bijection, Bijection):
            what = bijection.__name__ if isinstance(bijection, type) else type(bijection).__name__
            raise ConfigError(
                f"Inverse needs an instance of a bijection, such as fk.Inverse(fk.Squeeze((1, 4, 4))), got {what}"
            )
        super().__init__(*bijection.out_shapes, given=bijection.condition_shapes)
        self.out_shapes = bijection.in_shapes
        self.bijection = bijection
        for promise in FORWARDED:
            setattr(self, promise, getattr(bijection, promise))

    def forward(self, *inputs_and_given: Any) -> tuple[Output, Tensor]:
        """f's inverse."""
        return self.bijection.inverse(*inputs_and_given)

    def inverse(self, *outputs_and_given: Any) -> tuple[Output, Tensor]:
        """f's forward."""
        return self.bijection(*outputs_and_given)

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """f's prepared part."""
        return self.bijection.prepare(*conditions)

    def log_scales(self, *inputs_and_given: Any) -> Tensor | None:
        """Minus f's log-scales, at the point where f is applied."""
        with torch.no_grad():
            back = as_tuple(self.bijection.inverse_only(*inputs_and_given))
        scales = self.bijection.log_scales(*back, *inputs_and_given[len(self.in_shapes) :])
        return None if scales is None else -scales
