"""Permutations of channels, or of another event dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, zero_log_det
from flowkit.bijections.randomness import check_order, random_order
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register


def event_dim(owner: str, shape: tuple[int, ...], dim: int) -> int:
    """`dim` counted from 0 over the event dimensions; negative ones count from the last.

    Raises:
        ShapeError: the shape has no dimension to speak of.
        ConfigError: the shape has no such dimension.
    """
    if not shape:
        raise ShapeError(f"{owner} needs at least one event dimension, got shape ()")
    if not is_int(dim) or not -len(shape) <= dim < len(shape):
        raise ConfigError(f"{owner}: dim must be an event dimension of {shape}, 0 to {len(shape) - 1}, got {dim!r}")
    return dim % len(shape)


def _examples() -> list[Example]:
    return [
        Example((1,)),
        Example((2,)),
        Example((5,)),
        Example((3,), order=(2, 0, 1)),
        Example((3, 4)),
        Example((3, 2, 2)),
        Example((2, 4, 2), dim=1),
        Example((2, 2, 3, 2), order=[2, 1, 0], dim=-2),
    ]


@register("flowkit.permute", examples=_examples)
class Permute(Bijection):
    """A fixed permutation of the channels: y[:, i] = x[:, order[i]].

    forward: y = x[order], log-det 0. inverse: x[order] = y, log-det 0. Exact in every dtype, under autocast too. The
    log-det costs nothing, and each direction one copy; the condition number is 1.

    Without `order` it is drawn when constructed, from torch's generator, uniformly over all permutations but the
    identity; two channels are swapped, and only one channel stays. A given order is taken as it is.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the buffers `order` and `inverse_order`.

    Args:
        shape: event shape.
        order: a permutation of `range(shape[dim])`, or None.
        dim: the event dimension that is permuted, 0 for channels; negative ones count from the last.

    Raises:
        ShapeError: shape ().
        ConfigError: no such dimension, or an order that is no permutation.

    >>> Permute((3,), order=(2, 0, 1))(torch.tensor([[10.0, 11.0, 12.0]]))[0].tolist()
    [[12.0, 10.0, 11.0]]
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    order: Tensor
    inverse_order: Tensor

    def __init__(self, shape: int | Sequence[int], order: Sequence[int] | None = None, dim: int = 0):
        super().__init__(shape)
        shape = self.in_shapes[0]
        self.dim = event_dim("Permute", shape, dim)
        size = shape[self.dim]
        if order is None:
            drawn = random_order(size)
        else:
            wanted = [int(i) for i in order]
            if sorted(wanted) != list(range(size)):
                raise ConfigError(f"Permute: order must hold each of 0 to {size - 1} once, got {tuple(wanted)}")
            drawn = torch.tensor(wanted)
        self.register_buffer("order", drawn)
        self.register_buffer("inverse_order", drawn.argsort())

    def check_state(self) -> None:
        """Refuse an order, from a file, that is no permutation, or whose inverse is another's."""
        check_order("Permute", self.order)
        if not torch.equal(self.order.argsort(), self.inverse_order):
            raise ConfigError("Permute: inverse_order must be the inverse of order")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x permuted, 0)`."""
        return x.index_select(self.dim + 1, self.order), zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y permuted back, 0)`."""
        return y.index_select(self.dim + 1, self.inverse_order), zero_log_det(y)

    def extra_repr(self) -> str:
        """The event shape, and the dimension where it is not the channels."""
        return f"{self.in_shapes[0]}" + (f", dim={self.dim}" if self.dim else "")


def _reverse_examples() -> list[Example]:
    return [Example((1,)), Example((3,)), Example((3, 4), dim=-1), Example((3, 2, 2))]


@register("flowkit.reverse", examples=_reverse_examples)
class Reverse(Bijection):
    """The channels in reverse order: y[:, i] = x[:, C - 1 - i].

    forward: y = x reversed, log-det 0. inverse: x = y reversed, log-det 0. Exact in every dtype, under autocast too.
    The log-det costs nothing, and the inverse one copy, as the forward does. No parameters and no buffers.

    Shapes: x `(B, C, ...)`, any rank of at least 1.

    Args:
        shape: event shape.
        dim: the event dimension that is reversed, 0 for channels; negative ones count from the last.

    Raises:
        ShapeError: shape ().
        ConfigError: no such dimension.

    >>> Reverse((3,))(torch.tensor([[10.0, 11.0, 12.0]]))[0].tolist()
    [[12.0, 11.0, 10.0]]
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int], dim: int = 0):
        super().__init__(shape)
        self.dim = event_dim("Reverse", self.in_shapes[0], dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x reversed, 0)`."""
        return x.flip(self.dim + 1), zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y reversed, 0)`."""
        return y.flip(self.dim + 1), zero_log_det(y)

    def extra_repr(self) -> str:
        """The event shape, and the dimension where it is not the channels."""
        return f"{self.in_shapes[0]}" + (f", dim={self.dim}" if self.dim else "")


def _roll_examples() -> list[Example]:
    return [Example((1,)), Example((3,)), Example((3, 4), shift=-3, dim=-1), Example((3, 2, 2), shift=2)]


@register("flowkit.roll", examples=_roll_examples)
class Roll(Bijection):
    """The channels shifted in a circle: y[:, (i + shift) mod C] = x[:, i].

    forward: y = x rolled by shift, log-det 0. inverse: x = y rolled by -shift, log-det 0. Exact in every dtype, under
    autocast too. The log-det costs nothing, and the inverse one copy, as the forward does. No parameters, no buffers.

    Shapes: x `(B, C, ...)`, any rank of at least 1.

    Args:
        shape: event shape.
        shift: by how many places, of either sign.
        dim: the event dimension that is rolled, 0 for channels; negative ones count from the last.

    Raises:
        ShapeError: shape ().
        ConfigError: no such dimension, or a shift that is no integer.

    >>> Roll((3,))(torch.tensor([[10.0, 11.0, 12.0]]))[0].tolist()
    [[12.0, 10.0, 11.0]]
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int], shift: int = 1, dim: int = 0):
        super().__init__(shape)
        self.dim = event_dim("Roll", self.in_shapes[0], dim)
        if not is_int(shift):
            raise ConfigError(f"Roll: shift must be an integer, got {shift!r}")
        self.shift = shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x rolled, 0)`."""
        return x.roll(self.shift, self.dim + 1), zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y rolled back, 0)`."""
        return y.roll(-self.shift, self.dim + 1), zero_log_det(y)

    def extra_repr(self) -> str:
        """The event shape, the shift, and the dimension where it is not the channels."""
        return f"{self.in_shapes[0]}, shift={self.shift}" + (f", dim={self.dim}" if self.dim else "")
