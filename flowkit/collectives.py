"""Sums over the processes of torch.distributed, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def several_processes() -> bool:
    """Whether torch.distributed runs with more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum over all processes, which must all call this; its gradient is the sum of all processes' gradients."""
    total: Tensor = _Sum.apply(value)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
