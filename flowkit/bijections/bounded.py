"""Bounded spaces: a box and the simplex, each mapped to all of R^n."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.bijection import Bijection, event_sum
from flowkit.bijections.activations import Activation
from flowkit.bijections.domain import check_domain
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register


def _box_examples() -> list[Example]:
    return [Example(()), Example((3,), low=-1), Example((1, 4), high=2.5), Example((3, 2, 2), low=-3, high=-1)]


@register("flowkit.box", examples=_box_examples)
class Box(Activation):
    """The box (low, high)^n mapped to R^n by a scaled logit, every element by itself.

    forward: y = log(x - low) - log(high - x), log-det the sum of log(high - low) - log(x - low) - log(high - x).
    inverse: x = low + (high - low) sigmoid(y), log-det the sum of log(high - low) + log sigmoid(y) + log sigmoid(-y).

    Shapes: x `(B, ...)`, log_det `(B,)`. Densities are with respect to Lebesgue measure on the box.

    Args:
        shape: event shape.
        low, high: the bounds, which do not belong to the box.
        check: refuse values outside in `forward`, in eager mode.

    Raises:
        ConfigError: bounds that are not finite and in order.
        InputError: a value outside, with its index.

    >>> Box((1,), low=0, high=4)(torch.full((1, 1), 2.0))[0].item()
    0.0
    """

    def __init__(self, shape: int | Sequence[int], low: float = 0.0, high: float = 1.0, check: bool = True):
        super().__init__(shape, check)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"Box needs finite bounds with low < high, got {low!r} and {high!r}")
        self.domain = (float(low), float(high))

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.domain
        above, below = (x - low).log(), (high - x).log()
        return above - below, math.log(high - low) - above - below

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.domain
        return low + (high - low) * y.sigmoid(), math.log(high - low) + logsigmoid(y) + logsigmoid(-y)


def _simplex_examples() -> list[Example]:
    return [Example((1,)), Example((3,)), Example((2, 3)), Example((3, 2, 2))]


@register("flowkit.stick_breaking", examples=_simplex_examples)
class StickBreaking(Bijection):
    """The simplex of K numbers mapped to R^(K-1), in its first K - 1 coordinates, along channels.

    A point of the simplex is given by K - 1 positive numbers whose sum is below 1; the last is what is missing to 1.
    So the map is square, and densities are with respect to Lebesgue measure of the first K - 1 coordinates.

    With r_i = 1 - x_1 - ... - x_i, r_0 = 1, and i from 1 to K - 1:
    forward: y_i = log x_i - log r_i + log(K - i), log-det the sum of log r_(i-1) - log x_i - log r_i.
    inverse: z_i = sigmoid(y_i - log(K - i)), x_i = z_i r_(i-1), log-det the sum of
        log r_(i-1) + log z_i + log(1 - z_i).

    Zeros are the centre, x_i = 1 / K. Shapes: x `(B, K - 1, ...)`, log_det `(B,)`.

    Args:
        shape: event shape `(K - 1, ...)`; every position holds a simplex.
        check: refuse points outside in `forward`, in eager mode.

    Raises:
        ShapeError: shape ().
        InputError: a number that is not positive, or what remains is not, with its index.

    Source: the stick-breaking transform of Stan and of `torch.distributions`.

    >>> StickBreaking((2,)).inverse(torch.zeros(1, 2))[0].mul(3).round().tolist()
    [[1.0, 1.0]]
    """

    offset: Tensor  # K - i, exact in every dtype

    def __init__(self, shape: int | Sequence[int], check: bool = True):
        super().__init__(shape)
        shape = self.in_shapes[0]
        if not shape:
            raise ShapeError("StickBreaking needs channels that make a simplex, at least one dimension, got shape ()")
        self.check = check
        offset = torch.arange(shape[0], 0, -1, dtype=torch.get_default_dtype())
        self.register_buffer("offset", offset.view(-1, *[1] * (len(shape) - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log_det)`."""
        rest = 1 - x.cumsum(1)
        if self.check:
            check_domain("StickBreaking", x, 0.0, 1.0)
            check_domain("StickBreaking: one minus the sum", rest, 0.0, 1.0)
        log_x, log_rest = x.log(), rest.log()
        before = torch.cat((torch.zeros_like(log_rest[:, :1]), log_rest[:, :-1]), 1)
        return log_x - log_rest + self.offset.log(), event_sum(before - log_x - log_rest)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log_det)`."""
        y = y - self.offset.log()
        log_broken, log_kept = logsigmoid(y), logsigmoid(-y)
        before = log_kept.cumsum(1) - log_kept
        return (before + log_broken).exp(), event_sum(before + log_broken + log_kept)

    def example_inputs(self, rows: int) -> Tensor:
        """Points of the simplex."""
        return self.inverse(0.7 * torch.randn(rows, *self.in_shapes[0]).to(self.offset))[0]
