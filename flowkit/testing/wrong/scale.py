"""The right op that the wrong ones are made of, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection
from flowkit.registry import Example

T = TypeVar("T", bound=type[Bijection])


@dataclass(frozen=True)
class Wrong:
    """A wrong bijection, the arguments it is tried with, and the names of the laws that it breaks."""

    cls: type[Bijection]
    example: Example
    breaks: frozenset[str]


WRONG: dict[str, Wrong] = {}


def breaks(laws: str, *shapes: tuple[int, ...], **config: Any) -> Callable[[T], T]:
    """List a wrong bijection, with the laws that it breaks."""

    def decorate(cls: T) -> T:
        WRONG[cls.__name__] = Wrong(cls, Example(*(shapes or ((3,),)), **config), frozenset(laws.split()))
        return cls

    return decorate


class Scale(Bijection):
    """y = x exp(w), with an honest log-det; conditions, where there are any, shift by their mean."""

    def __init__(self, shape: tuple[int, ...], given: Any = ()) -> None:
        super().__init__(shape, given=given)
        self.w = nn.Parameter(torch.zeros(shape))

    def log_det(self, x: Tensor) -> Tensor:
        """The sum of w, for every row."""
        return self.w.sum().expand(x.shape[0])

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """The mean of every condition, `(B, 1, ...)`."""
        rows = [c.reshape(c.shape[0], *[1] * (x.dim() - 1), c[:1].numel()).mean(-1) for c in conditions if c.shape[0]]
        return sum(rows, x.new_zeros(()))

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """y and the log-det."""
        return x * self.w.exp() + self.shift(x, conditions), self.log_det(x)

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """x and minus the log-det."""
        return (y - self.shift(y, conditions)) * (-self.w).exp(), -self.log_det(y)
