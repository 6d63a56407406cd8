"""Masked dense nets (MADE): each output depends on the inputs that it may see, and on every condition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkit.bijection import add_rows
from flowkit.errors import ConfigError
from flowkit.subnets import _activation, _widths

LARGEST_MASK = 2**26  # elements; it is made row by row in Python


class MaskedLinear(nn.Linear):
    """A linear layer of whose weights only those under the mask count.

    Args:
        mask: booleans, `(out_features, in_features)`.

    >>> layer = MaskedLinear([[True, False]])
    >>> layer(torch.tensor([[1.0, 2.0]])).equal(layer(torch.tensor([[1.0, 5.0]])))
    True
    """

    mask: Tensor

    def __init__(self, mask: Sequence[Sequence[bool]], zero: bool = False):
        super().__init__(len(mask[0]), len(mask))
        self.register_buffer("mask", torch.tensor(mask, dtype=torch.bool))
        if not any(map(any, mask)):  # a weight that nothing depends on is not to be trained
            self.weight: Any
            del self.weight
            self.register_buffer("weight", torch.zeros(len(mask), len(mask[0])))
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def masked_weight(self) -> Tensor:
        """The weight, zero outside the mask."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in_features)` to `(B, out_features)`."""
        return F.linear(x, self.masked_weight(), self.bias)


class MaskedMLP(nn.Module):
    """A multilayer perceptron whose output i sees exactly the inputs of `visible[i]`, and all conditions.

    A hidden unit stands for the set of inputs that some output may see. It takes from the units below whose sets are
    subsets of its own, so no output sees too much; and where a layer has a unit for each set, none sees too little.
    Where a layer is narrower than that, masked weights lead from the inputs straight to the outputs in addition.
    Conditions enter every unit of the first hidden layer. The last layer starts at zero.

    Args:
        visible: for each output, the set of inputs that it may see.
        size: the number of inputs.
        conditions: the number of condition values, 0 for none.
        numbers: how many numbers each output consists of: the result is `(B, numbers * outputs)`, all first numbers
            first.
        hidden: widths of the hidden layers.
        activation: see `fk.MLP`.

    Raises:
        ConfigError: a width that is not a positive int, an unknown activation.

    >>> net = MaskedMLP(visible=[set(), {0}, {0, 1}], size=3, numbers=2, hidden=16)
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 6])
    """

    def __init__(
        self,
        visible: Sequence[set[int]],
        size: int,
        conditions: int = 0,
        numbers: int = 1,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "relu",
    ):
        super().__init__()
        widths = _widths(hidden)
        self.activation = _activation(activation)
        wanted = [_bits(each) for each in visible]  # sets as bits of an int: subsets are found fast
        useful = set(wanted) if conditions else set(wanted) - {0}  # without conditions a unit that sees nothing is idle
        kinds = sorted(useful or {0}, key=lambda bits: (bits.bit_count(), bits))
        _check_masks(len(wanted) * numbers, size, widths)
        below = [1 << i for i in range(size)]
        self.layers = nn.ModuleList()
        for width in widths:
            units = [kinds[k * len(kinds) // width] for k in range(width)]
            self.layers.append(MaskedLinear(_subsets(units, below)))
            below = units
        self.layers.append(MaskedLinear(_subsets(wanted * numbers, below), zero=True))
        self.condition = nn.Linear(conditions, widths[0], bias=False) if conditions else None
        self.direct: MaskedLinear | None = None
        if min(widths) < len(kinds):
            self.direct = MaskedLinear(_subsets(wanted * numbers, [1 << i for i in range(size)]), zero=True)

    def prepare(self, c: Tensor) -> Tensor | None:
        """The conditions' part of the first layer, `(B, width)`; None for a net without conditions."""
        return None if self.condition is None else self.condition(c)

    def masked_weights(self) -> list[Tensor]:
        """The layers' masked weights, for a caller who runs the net many times."""
        layers = [*self.layers] if self.direct is None else [*self.layers, self.direct]
        return [layer.masked_weight() for layer in layers]

    def run(self, x: Tensor, weights: Sequence[Tensor], prepared: Tensor | None) -> Tensor:
        """The net with the weights of `masked_weights` and what `prepare` returned."""
        h = x
        for index, layer in enumerate(self.layers):
            h = F.linear(self.activation(h) if index else h, weights[index], layer.bias)  # type: ignore[arg-type]
            if index == 0 and prepared is not None:
                h = add_rows(h, prepared)
        return h if self.direct is None else h + F.linear(x, weights[-1], self.direct.bias)

    def forward(self, x: Tensor, c: Tensor | None = None, prepared: Tensor | None = None) -> Tensor:
        """`(B, size)` and conditions `(B, conditions)` to `(B, numbers * outputs)`."""
        if prepared is None and c is not None:
            prepared = self.prepare(c)
        return self.run(x, self.masked_weights(), prepared)


def _check_masks(outputs: int, size: int, widths: Sequence[int]) -> None:
    """Refuse masks that Python's lists cannot hold, before they are made."""
    for above, below in ((widths[0], size), *pairwise(widths), (outputs, widths[-1]), (outputs, size)):
        if above * below > LARGEST_MASK:
            raise ConfigError(
                f"a mask of {above:,} x {below:,} is beyond the {LARGEST_MASK:,} elements that one may have"
            )


def _bits(indices: set[int]) -> int:
    return sum(1 << i for i in indices)


def _subsets(above: Sequence[int], below: Sequence[int]) -> list[list[bool]]:
    return [[not low & ~high for low in below] for high in above]
