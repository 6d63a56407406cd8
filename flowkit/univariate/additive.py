"""The additive univariate map."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from flowkit.bijection import HALF
from flowkit.registry import register
from flowkit.univariate.univariate import Univariate


@register("flowkit.additive")
class Additive(Univariate):
    """y = x + t, with t predicted.

    forward: y = x + t, log-derivative 0. inverse: x = y - t, log-derivative 0.

    Source: Dinh et al., NICE: Non-linear independent components estimation, 2015.
    """

    parameters_per_element: ClassVar[int] = 1

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(x + t, 0)`."""
        y = x + parameters[0].to(x.dtype)
        return y, _zero(y)

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(y - t, 0)`."""
        x = y - parameters[0].to(y.dtype)
        return x, _zero(x)


def _zero(x: Tensor) -> Tensor:
    return (x.float() if x.dtype in HALF else x).new_zeros(()).expand(x.shape)
