"""Several processes that train one flow: what torchrun says of them, and batch normalisation over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from flowkit.bijections.normalization import BatchNorm
from flowkit.collectives import sum_over_processes
from flowkit.errors import ConfigError
from flowkit.training.loading import process_place


def launched() -> tuple[int, int] | None:
    """(processes, those on this machine) as torchrun's environment says; None where there is one, or no torchrun.

    Raises:
        ConfigError: the environment contradicts itself.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return None
    world, rank = os.environ["WORLD_SIZE"], os.environ["RANK"]
    local = os.environ.get("LOCAL_WORLD_SIZE", world)
    if not (world.isdigit() and rank.isdigit() and local.isdigit()) or int(rank) >= int(world) or int(local) < 1:
        raise ConfigError(
            f"WORLD_SIZE={world}, RANK={rank} and LOCAL_WORLD_SIZE={local} are not torchrun's: unset them to train "
            f"in one process"
        )
    return (int(world), int(local)) if int(world) > 1 else None


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a value of every process, without gradient."""
    world = process_place()[1]
    if world == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world


def any_process(*flags: bool, device: torch.device) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process: so that all of them do the same."""
    if process_place()[1] == 1:
        return flags
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(counts)
    return tuple(bool(count) for count in counts.tolist())


def of_every_process(value: Any) -> list[Any]:
    """A plain value of every process, by rank."""
    world = process_place()[1]
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    distributed.all_gather_object(found, value)
    return found


class _Synchronized(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all processes. (torch's SyncBatchNorm runs on GPUs only.)"""

    def forward(self, x: Tensor) -> Tensor:
        """The normalised batch; one process, or eval mode, is torch's own."""
        if not self.training or process_place()[1] == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values = x if x.dtype == torch.float64 else x.float()
        dims = [0, *range(2, x.dim())]
        view = (1, -1, *([1] * (x.dim() - 2)))
        sums = torch.cat([values.sum(dims), values.new_full((1,), values[:, 0].numel())])
        total, count = sum_over_processes(sums).split([len(sums) - 1, 1])
        mean = total / count
        centred = values - mean.view(view)
        variance = sum_over_processes(centred.square().sum(dims)) / count
        self._remember(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach())
        out = centred * (variance + self.eps).rsqrt().view(view)
        if self.affine:
            out = out * self.weight.view(view) + self.bias.view(view)
        return out.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean), factor)
            self.running_var.lerp_(variance.to(self.running_var), factor)


class _Synchronized1d(_Synchronized, nn.BatchNorm1d):
    pass


class _Synchronized2d(_Synchronized, nn.BatchNorm2d):
    pass


class _Synchronized3d(_Synchronized, nn.BatchNorm3d):
    pass


_SYNCHRONIZED: dict[type, type] = {
    nn.BatchNorm1d: _Synchronized1d,
    nn.BatchNorm2d: _Synchronized2d,
    nn.BatchNorm3d: _Synchronized3d,
}
_OWN = {after: before for before, after in _SYNCHRONIZED.items()}


@contextmanager
def synchronized_norms(module: nn.Module) -> Iterator[None]:
    """Within it batch normalisations take the statistics of all processes, with the same parameters and names.

    Raises:
        ConfigError: a batch normalisation of a kind that cannot be synchronised.
    """
    for name, norm in module.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and type(norm) not in (
            *_SYNCHRONIZED, *_OWN, nn.SyncBatchNorm,
        ):  # fmt: skip
            raise ConfigError(
                f"'{name}' is a {type(norm).__name__}, which cannot be synchronised over processes: "
                f"use nn.BatchNorm1d, 2d or 3d, or train in one process"
            )
    _change(module, _SYNCHRONIZED, together=True)
    try:
        yield
    finally:
        separate_norms(module)


def separate_norms(module: nn.Module) -> None:
    """Undo `synchronized_norms`: a process may now call the module while others do not."""
    _change(module, _OWN, together=False)


def _change(module: nn.Module, kinds: dict[type, type], together: bool) -> None:
    # The class of the module in place: a new module in its stead would need every holder of the old one to know.
    for norm in module.modules():
        if type(norm) in kinds:
            norm.__class__ = kinds[type(norm)]
        elif isinstance(norm, BatchNorm):
            norm.over_processes = together or norm.synchronized
