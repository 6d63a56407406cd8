"""A subnet that sees angles as points of circles, so that what it predicts has no seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.subnets import MLP, build_subnet, check_recipe


class PeriodicSubnet(nn.Module):
    """A net on cosines and sines of the data; conditions reach it as they are."""

    def __init__(self, net: nn.Module, frequencies: int):
        super().__init__()
        self.net: Any = net
        self.frequencies = frequencies

    def prepare(self, c: Tensor) -> Tensor | None:
        """The inner net's part that depends on the conditions alone."""
        return self.net.prepare(c)

    def forward(self, x: Tensor, c: Tensor | None = None, prepared: Tensor | None = None) -> Tensor:
        """The net of `(cos x, sin x, cos 2x, ...)`."""
        angles = [x * k if k > 1 else x for k in range(1, self.frequencies + 1)]
        return self.net(torch.cat([f for angle in angles for f in (angle.cos(), angle.sin())], 1), c, prepared)

    def extra_repr(self) -> str:
        """The frequencies."""
        return f"frequencies={self.frequencies}"


@register("flowkit.periodic_net")
class PeriodicNet:
    """A recipe of a subnet on angles: it sees cos(k x) and sin(k x), for k from 1 to `frequencies`, in place of x.

    What it predicts is then continuous where an angle jumps from pi to -pi, as a density on the circle must be.
    Conditions reach the inner net as they are.

    Args:
        net: the recipe of the inner net, `fk.MLP()` by default.
        frequencies: how many multiples of each angle it sees.

    Raises:
        ConfigError: frequencies below 1, a net that is no recipe.

    >>> subnet = PeriodicNet(MLP(hidden=16)).build((2,), (), 3)
    >>> subnet(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, net: Any = None, frequencies: int = 1):
        if not is_int(frequencies) or frequencies < 1:
            raise ConfigError(f"PeriodicNet: frequencies must be an int of at least 1, got {frequencies!r}")
        if net is not None:
            check_recipe("PeriodicNet: net", net)
        self.net, self.frequencies = MLP() if net is None else net, frequencies

    def build(self, in_shape: Shape, condition_shapes: Sequence[Shape], c_out: int) -> nn.Module:
        """The inner net on twice as many channels for each frequency."""
        seen = (2 * self.frequencies * in_shape[0], *in_shape[1:])
        return PeriodicSubnet(build_subnet(self.net, seen, condition_shapes, c_out), self.frequencies)

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        """The net on vectors of `c_in` angles."""
        return self.build((c_in,), (), c_out)

    def __repr__(self) -> str:
        return f"PeriodicNet({self.net!r}, frequencies={self.frequencies})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))
