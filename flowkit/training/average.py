"""The exponential moving average of a flow's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import ConfigError, StorageError

WARMUP = 10  # the first steps, whose weights are far from good, are soon forgotten


class MovingAverage:
    """The exponential moving average of what training changes in a module.

    After step n, with d = min(decay, n / (n + 9)): average <- d * average + (1 - d) * value; the first is the value.
    The trained parameters are averaged, and the running statistics of batch normalisations, which would otherwise be
    those of other weights. Everything else (constants, counters, flags) is as the module has it.

    Args:
        module: whose weights; looked at again at every step, never changed.
        decay: of the average, at least 0 and below 1.

    Attributes:
        steps: how many steps the average has seen.

    Raises:
        ConfigError: a decay out of range.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(net, 0.5)
        >>> for value in (1.0, 3.0):
        ...     net.weight = nn.Parameter(torch.full((1, 1), value))
        ...     average.update()
        >>> with average.applied():
        ...     net.weight.item()
        2.636...
        >>> net.weight.item()
        3.0
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of the average must be at least 0 and below 1, got {decay}")
        self.module, self.decay, self.steps = module, decay, 0
        self._average: dict[str, Tensor] = {}

    def update(self) -> None:
        """Take in the values of this moment."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + WARMUP - 1))
        with torch.no_grad():
            for name, value in self._values().items():
                if self.steps == 1 or name not in self._average:
                    self._average[name] = value.detach().clone()
                else:
                    self._average[name] = self._average[name].to(value.device).lerp_(value, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the module has the averaged weights; afterwards its own again, bit for bit."""
        values = self._values()
        before = {name: values[name].detach().clone() for name in self._average if name in values}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(before)

    def install(self) -> None:
        """Give the module the averaged weights for good, at the end of a training."""
        self._write(self._average)

    def state(self) -> dict[str, Any]:
        """The average as tensors and plain data."""
        return {"steps": self.steps, "values": dict(self._average)}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            StorageError: it is the average of another module.
        """
        values = self._values()
        for name, value in state["values"].items():
            if name not in values or values[name].shape != value.shape:
                raise StorageError(f"the checkpoint's average has '{name}' of {tuple(value.shape)}, the flow has not")
        self.steps = int(state["steps"])
        self._average = {name: value.detach().clone().to(values[name]) for name, value in state["values"].items()}

    def _values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        for prefix, module in self.module.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_floating_point():  # not the count of batches
                        values[f"{prefix}.{name}" if prefix else name] = buffer
        return values

    def _write(self, values: dict[str, Tensor]) -> None:
        own = self._values()
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)  # not by `.data`: caches of conditions notice a copy
