"""Wrong state: what pickles, files, other processes and constructors trip over."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flowkit.registry import register
from flowkit.testing.wrong.scale import Scale, breaks

# ---------------------------------------------------------------------- state


@breaks("pickling spawn data_parallel")
class HoldsLambda(Scale):
    """A lambda as an attribute: no pickle."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.activation: Callable[[Tensor], Tensor] = lambda x: x


@breaks("spawn data_parallel")
class ReadsItsProcess(Scale):
    """Leaves a part of its state with the process that made it."""

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """Another number in another process."""
        return x.new_full((), float(os.getpid() % 1000))


@breaks("state_dict graph_file file_in_another_process")
@register("wrong.forgets_constant")
class ForgetsConstant(Scale):
    """A random constant that is not in the state_dict."""

    offset: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer("offset", torch.randn(shape), persistent=False)

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Shifted by the constant."""
        y, log_det = super().forward(x)
        return y + self.offset, log_det

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Shifted back."""
        return super().inverse(y - self.offset)


@breaks("file_in_another_process")
@register("wrong.process_constant")
class ProcessConstant(ForgetsConstant):
    """A constant made from the process it was built in."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.offset.fill_(os.getpid() % 1000 + 1)


@breaks("state_names state_dict construction_reproducible construction_on_meta graph_file file_in_another_process")
@register("wrong.id_names")
class IdNames(Scale):
    """A parameter named by `id()`: the name depends on what was allocated before."""

    _alive: ClassVar[list[object]] = []  # an id may come again once its object is gone, and the name with it

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        mark = object()
        self._alive.append(mark)
        self.name = f"v_{id(mark)}"
        self.register_parameter(self.name, nn.Parameter(torch.zeros(shape)))

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """The parameter of that name."""
        return self._parameters[self.name]  # type: ignore[return-value]


# ---------------------------------------------------------------------- construction


@breaks("construction_quiet construction_reproducible construction_on_meta state_dict state_names")
class NumpyConstruction(Scale):
    """A constant from numpy's global generator: torch's seed does not reproduce it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer(f"offset_{np.random.randint(1 << 30)}", torch.zeros(shape))  # noqa: NPY002


@breaks("construction_quiet")
class Prints(Scale):
    """Prints when constructed, and shuffles with Python's generator."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        random.random()
        print("constructed")


@breaks("construction_reproducible")
class CountsInstances(Scale):
    """Its start depends on how many there were before."""

    count: ClassVar[int] = 0

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        CountsInstances.count += 1
        nn.init.constant_(self.w, CountsInstances.count)


@breaks("construction_on_meta")
class NotOnMeta(Scale):
    """Looks at its own weights while it is constructed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if float(self.w.detach().sum()) > 1:
            self.w.data.zero_()


@breaks("construction_dtype")
class FixedDtype(Scale):
    """A constant of a fixed dtype, whatever the default."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
