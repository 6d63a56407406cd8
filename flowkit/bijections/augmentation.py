"""Other dimensions than the data's: channels of noise added, or channels dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import Bijection
from flowkit.bijections.noise import Noise
from flowkit.distributions import DiagonalNormal, StandardNormal
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.subnets import MLP, ConvNet


def _check_channels(owner: str, what: str, channels: int, most: int | None = None) -> None:
    if not is_int(channels) or channels < 1 or (most and channels > most):
        limit = f"an int from 1 to {most}" if most else "an int of at least 1"
        raise ConfigError(f"{owner}: channels, how many are {what}, must be {limit}, got {channels!r}")


def _augment_examples() -> list[Example]:
    mlp, conv = MLP(hidden=4, activation="silu"), ConvNet(hidden=3, kernel=(3, 1), activation="silu")
    return [
        Example((1,), channels=2),
        Example((2,), channels=1, given=(3,), noise=DiagonalNormal),
        Example((3,), channels=1, given=((2,), (1,)), noise=None, subnet=mlp),
        Example((1, 3), channels=3, noise=None, subnet=conv),
        Example((3, 2, 2), channels=1, given=((1, 2, 2),), noise=None, subnet=conv),
    ]


@register("flowkit.augment", examples=_augment_examples)
class Augment(Bijection):
    """Channels of noise appended to the data, so that a flow has room: dimension-changing, the likelihood is a bound.

    forward: y = (x, e), e ~ q(e | x, c); log-det -log q(e | x, c). inverse: x = y without its last K channels e;
    log-det log q(e | x, c).

    A flow that begins with it models x by the marginal p(x), the integral over e of its density of (x, e). `log_prob`
    is one draw of a random number whose mean is at most log p(x), with equality where q is p(e | x); the logarithm of
    the mean of exp over many draws tends to log p(x), which is exact. `flow.exact` is False. Samples of x are exact
    samples of p: the way back drops the noise.

    Shapes: x `(B, C, ...)`, y `(B, C + K, ...)`, conditions `(B, C', ...)` of the same spatial size; log_det `(B,)`.

    Args:
        shape: event shape `(C, ...)`.
        channels: K, at least 1.
        given: shapes of the conditions c.
        noise: q, standard normal by default; a class or instance of `fk.Base`, or an instance of a bijection with
            conditions x, then c; None for normal noise whose location and scale a net predicts from x and c, see
            `flowkit.bijections.noise`.
        subnet: the recipe of that net, where noise is None.

    Raises:
        ConfigError: channels below 1; noise that is none; a subnet beside it.
        ShapeError: a shape of no dimensions; a condition of another spatial size; noise of other shapes.

    Source: Huang et al., Augmented normalizing flows, 2020; Chen et al., VFlow, 2020, with q a conditional flow.

    >>> augment = Augment((2,), channels=3)
    >>> y, log_det = augment(torch.ones(5, 2))
    >>> y.shape, log_det.shape, torch.equal(augment.inverse(y)[0], torch.ones(5, 2))
    (torch.Size([5, 5]), torch.Size([5]), True)
    """

    stochastic = True
    dimension_changing = True
    inexact = "log_prob is one draw of a lower bound"

    def __init__(
        self,
        shape: int | Sequence[int],
        channels: int,
        given: int | Sequence = (),
        noise: Any = StandardNormal,
        subnet: Any = None,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        if not shape:
            raise ShapeError("Augment appends channels, so it needs at least one dimension, got shape ()")
        _check_channels("Augment", "appended", channels)
        self.channels = channels
        added = (channels, *shape[1:])
        self.out_shapes = ((shape[0] + channels, *shape[1:]),)
        self.noise = Noise("Augment", noise, added, (shape, *self.condition_shapes), subnet)

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`((x, e), -log q(e | x, c))`."""
        e, log_q = self.noise.draw(x, *conditions)
        return torch.cat((x, e.to(x.dtype)), 1), -log_q

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log q(e | x, c))`."""
        x, e = y.split([y.shape[1] - self.channels, self.channels], 1)
        return x, self.noise.log_prob(e, x, *conditions)

    def inverse_only(self, y: Tensor, *conditions: Any) -> Tensor:
        """x alone."""
        return y[:, : -self.channels]

    def extra_repr(self) -> str:
        """The shapes."""
        return f"{self.in_shapes[0]} -> {self.out_shapes[0]}"


def _slice_examples() -> list[Example]:
    mlp, conv = MLP(hidden=4, activation="silu"), ConvNet(hidden=3, kernel=(3, 1), activation="silu")
    return [
        Example((2,), channels=1, noise=StandardNormal),
        Example((3,), channels=2, given=(2,), noise=DiagonalNormal),
        Example((5,), channels=2, given=((2,), (1,)), subnet=mlp),
        Example((3, 2), channels=1, subnet=conv),
        Example((3, 2, 2), channels=2, given=((1, 2, 2),), subnet=conv),
    ]


@register("flowkit.slice", examples=_slice_examples)
class Slice(Bijection):
    """The last channels dropped, their density modelled given those that are kept: dimension-changing.

    With x = (y, d), y the first K channels:
    forward: y, log-det log p(d | y, c). inverse: x = (y, d), d ~ p(d | y, c), log-det -log p(d | y, c).

    In a flow of slices and bijections `log_prob` is exact, though `flow.exact` is False because the dimension changes:
    forward draws nothing, and the chain rule of probability loses nothing. What is lost is the way back: the inverse of
    a latent draws d anew, so `inverse(forward(x))` is x in the channels that are kept alone. Samples are exact samples.
    Temperature is not passed on to d.

    Shapes: x `(B, C, ...)`, y `(B, K, ...)`, conditions `(B, C', ...)` of the same spatial size; log_det `(B,)`.

    Args:
        shape: event shape `(C, ...)`, at least two channels.
        channels: K, how many are kept, from 1 to C - 1.
        given: shapes of the conditions c.
        noise: p; a class or instance of `fk.Base`, or an instance of a bijection with conditions y, then c; None for a
            normal whose location and scale a net predicts from y and c, see `flowkit.bijections.noise`.
        subnet: the recipe of that net, where noise is None.

    Raises:
        ConfigError: channels out of range; noise that is none; a subnet beside it.
        ShapeError: fewer than two channels; a condition of another spatial size; noise of other shapes.

    Source: Nielsen et al., SurVAE flows, 2020, section 3: slicing, as an inference surjection.

    >>> y, log_det = Slice((4, 8, 8), channels=1)(torch.zeros(5, 4, 8, 8))
    >>> y.shape, log_det.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    stochastic = True
    dimension_changing = True
    inexact = "its own part of log_prob is exact, its inverse draws the channels that were dropped"

    def __init__(
        self,
        shape: int | Sequence[int],
        channels: int,
        given: int | Sequence = (),
        noise: Any = None,
        subnet: Any = None,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        if not shape or shape[0] < 2:
            raise ShapeError(f"Slice needs two or more channels, to drop some and keep some, got shape {shape}")
        _check_channels("Slice", "kept", channels, most=shape[0] - 1)
        self.channels = channels
        kept, dropped = (channels, *shape[1:]), (shape[0] - channels, *shape[1:])
        self.out_shapes = (kept,)
        self.noise = Noise("Slice", noise, dropped, (kept, *self.condition_shapes), subnet)

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log p(d | y, c))`."""
        y, dropped = x.split([self.channels, x.shape[1] - self.channels], 1)
        return y, self.noise.log_prob(dropped, y, *conditions)

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`((y, d), -log p(d | y, c))`."""
        dropped, log_p = self.noise.draw(y, *conditions)
        return torch.cat((y, dropped.to(y.dtype)), 1), -log_p

    def extra_repr(self) -> str:
        """The shapes."""
        return f"{self.in_shapes[0]} -> {self.out_shapes[0]}"
