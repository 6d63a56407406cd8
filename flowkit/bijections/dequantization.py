"""Dequantisation: integers made continuous by noise, so that a density can model them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, event_sum, zero_log_det
from flowkit.bijections.noise import Noise
from flowkit.domain import has_values
from flowkit.errors import ConfigError, InputError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import numel
from flowkit.subnets import MLP, ConvNet

MOST_LEVELS = 65536  # with more, float32 cannot tell a level from its neighbour's noise
NEARLY = 1e-3  # how far a value may be from its integer: data that went through x / 255 and back is
WHY = "log_prob is one draw of a lower bound"


def _check_levels(owner: str, levels: int) -> None:
    if not is_int(levels) or not 2 <= levels <= MOST_LEVELS:
        raise ConfigError(f"{owner}: levels must be an int from 2 to {MOST_LEVELS}, got {levels!r}")


def _check_integers(owner: str, x: Tensor, levels: int) -> None:
    """Refuse what is no integer from 0 to levels - 1; NaN passes. In eager mode alone, one reduction."""
    if not has_values(x):
        return
    whole = x.round()
    wrong = ((x - whole).abs() > NEARLY) | (whole < 0) | (whole > levels - 1)
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        raise InputError(f"{owner} needs integers from 0 to {levels - 1}, got {x[index].item():g} at index {index}")


class Dequantization(Bijection):
    """What both dequantisations share: levels, the noise's margins, and the way back to integers."""

    stochastic = True
    dimension_changing = True
    inexact = WHY

    def __init__(self, shape: int | Sequence[int], levels: int, given: int | Sequence = (), check: bool = True):
        super().__init__(shape, given=given)
        _check_levels(type(self).__name__, levels)
        self.levels, self.check = levels, check

    def _whole(self, x: Tensor) -> Tensor:
        if self.check:
            _check_integers(type(self).__name__, x, self.levels)
        return x.round()

    def _within(self, u: Tensor) -> Tensor:
        """The noise, so far from 0 and 1 that rounding never makes (x + u) / levels another integer's."""
        margin = 2 * self.levels * torch.finfo(u.dtype).eps
        return u.clamp(margin, 1 - margin)

    def _floor(self, y: Tensor) -> Tensor:
        """The integers; what lies outside [0, 1) becomes the nearest of them."""
        return (y * self.levels).floor().clamp(0, self.levels - 1)

    def inverse_only(self, y: Tensor, *conditions: Any) -> Tensor:
        """The integers alone."""
        return self._floor(y)

    def example_inputs(self, rows: int) -> Tensor:
        """Integers."""
        return torch.randint(0, self.levels, (rows, *self.in_shapes[0])).to(torch.get_default_dtype())

    def extra_repr(self) -> str:
        """The event shape and the number of levels."""
        return f"{self.in_shapes[0]}, levels={self.levels}"


def _uniform_examples() -> list[Example]:
    return [
        Example(()),
        Example((1,), levels=2),
        Example((3,), levels=10),
        Example((3, 2), levels=5),
        Example((1, 3, 3)),
    ]


@register("flowkit.uniform_dequantization", examples=_uniform_examples)
class UniformDequantization(Dequantization):
    """Integers 0 to n - 1 made continuous in (0, 1) by uniform noise: dimension-changing, the likelihood is a bound.

    forward: y = (x + u) / n, u ~ U(0, 1)^D; log-det -D log n. inverse: x = floor(n y), at least 0 and at most n - 1;
    log-det D log n.

    A flow that begins with it models the integers with probabilities P(x), the integral of its density over the cell
    of x. `log_prob` of the integers is one draw of a random number whose mean is at most log P(x) (Jensen's
    inequality), with equality where the density is constant within the cell; the logarithm of the mean of exp over
    many draws tends to log P(x). `flow.exact` is False. Samples are integers; the way back is exact, and needs no
    noise. Noise keeps a distance of 2 n times the rounding error from 0 and 1, so that float32 never rounds it into
    the next cell.

    Shapes: x `(B, ...)`, integers as floating numbers; log_det `(B,)`.

    Args:
        shape: event shape.
        levels: n, from 2 to 65536; 256 for pictures of 8 bits.
        check: refuse what is no integer from 0 to n - 1, in eager mode; data within 0.001 of one is rounded.

    Raises:
        ConfigError: levels out of range.
        InputError: a value that is no such integer, with its index.

    Source: Theis et al., A note on the evaluation of generative models, 2016, section 3.1.

    >>> dequantize = UniformDequantization((3,), levels=4)
    >>> y, log_det = dequantize(torch.tensor([[0.0, 1.0, 3.0]]))
    >>> dequantize.inverse(y)[0].tolist(), round(log_det.item(), 4)
    ([[0.0, 1.0, 3.0]], -4.1589)
    """

    constant_log_det = True

    def __init__(self, shape: int | Sequence[int], levels: int = 256, check: bool = True):
        super().__init__(shape, levels, check=check)

    def _log_det(self, x: Tensor) -> Tensor:
        return zero_log_det(x) - numel(self.in_shapes[0]) * math.log(self.levels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`((x + u) / n, -D log n)`."""
        y = (self._whole(x) + self._within(torch.rand_like(x))) / self.levels
        return y, self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(floor(n y), D log n)`."""
        return self._floor(y), -self._log_det(y)


def _variational_examples() -> list[Example]:
    mlp, conv = MLP(hidden=4, activation="silu"), ConvNet(hidden=3, kernel=(3, 1), activation="silu")
    return [
        Example((1,), levels=2, subnet=mlp),
        Example((3,), given=((2,), (1,)), levels=3, subnet=mlp),
        Example((3, 2), levels=3, subnet=conv),
        Example((1, 3, 2), given=((2, 3, 2),), levels=4, subnet=conv),
    ]


@register("flowkit.variational_dequantization", examples=_variational_examples)
class VariationalDequantization(Dequantization):
    """Integers made continuous by noise that a conditional flow shapes: a tighter bound, dimension-changing.

    forward: u = sigmoid(e), e ~ q(e | x, c), y = (x + u) / n; log-det -D log n - log q(u | x, c).
    inverse: x = floor(n y), at least 0 and at most n - 1; log-det D log n + log q(u | x, c) at u = n y - x.
    Here log q(u | x, c) = log q(e | x, c) - the sum of log sigmoid(e) + log sigmoid(-e).

    `log_prob` of the integers is one draw of a random number whose mean is at most log P(x), and equal to it where q
    is the flow's own distribution within the cell of x: training makes it so, for q is trained with the flow. See
    `fk.UniformDequantization` for P, for what the mean of exp over many draws is, and for the margins of the noise.
    `flow.exact` is False. The net sees the integers as 2 x / (n - 1) - 1. By default it starts as uniform noise.

    Shapes: x `(B, C, ...)`, integers as floating numbers; conditions `(B, C', ...)` of the same spatial size; log_det
    `(B,)`.

    Args:
        shape: event shape `(C, ...)`, at least one dimension.
        levels: n, from 2 to 65536.
        given: shapes of the conditions c.
        subnet: the recipe of the net that predicts location and scale of logistic noise, where there is no `noise`.
        noise: q(e | x, c), e of x's shape: an instance of a bijection with conditions x, then c (a flow with logistic
            latents, as Ho et al. have it), or a `fk.Base`, see `flowkit.bijections.noise`.
        check: refuse what is no integer from 0 to n - 1, in eager mode; data within 0.001 of one is rounded.

    Raises:
        ConfigError: levels out of range; noise that is none; a subnet beside it.
        ShapeError: a condition of another spatial size; noise of other shapes; a shape of no dimensions.
        InputError: a value that is no such integer, with its index.

    Source: Ho et al., Flow++, 2019, section 3.1.

    >>> dequantize = VariationalDequantization((3,), levels=4)
    >>> y, log_det = dequantize(torch.tensor([[0.0, 1.0, 3.0]]))
    >>> dequantize.inverse(y)[0].tolist()
    [[0.0, 1.0, 3.0]]
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        levels: int = 256,
        given: int | Sequence = (),
        subnet: Any = None,
        noise: Any = None,
        check: bool = True,
    ):
        super().__init__(shape, levels, given, check)
        name, shape = type(self).__name__, self.in_shapes[0]
        if not shape:
            raise ShapeError(f"{name} needs channels for its net, at least one dimension, got shape ()")
        self.noise = Noise(name, noise, shape, (shape, *self.condition_shapes), subnet, latent="logistic")

    def _seen(self, x: Tensor) -> Tensor:
        return x * (2 / (self.levels - 1)) - 1

    def _log_density(self, log_q: Tensor, e: Tensor) -> Tensor:
        """log q(u | x, c), of log q(e | x, c)."""
        return log_q - event_sum(logsigmoid(e) + logsigmoid(-e)) + numel(self.in_shapes[0]) * math.log(self.levels)

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`((x + u) / n, log_det)`."""
        x = self._whole(x)
        e, log_q = self.noise.draw(self._seen(x), *conditions)
        return (x + self._within(e.sigmoid())) / self.levels, -self._log_density(log_q, e)

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`(floor(n y), log_det)`."""
        x = self._floor(y)
        u = self._within(y * self.levels - x)
        e = u.log() - torch.log1p(-u)
        return x, self._log_density(self.noise.log_prob(e, self._seen(x), *conditions), e)
