"""What went wrong in a step whose loss or gradients are not finite: the tensor and its index, or the node at fault."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowkit.errors import FlowkitError
from flowkit.flow import Flow
from flowkit.training.layout import bare


def first_bad(value: Tensor) -> tuple[str, tuple[int, ...]] | None:
    """The first element that is not finite, as (what it is, its index); None when all are.

    >>> first_bad(torch.tensor([[0.0, float("nan")]]))
    ('nan', (0, 1))
    """
    if not value.is_floating_point():
        return None
    bad = (~torch.isfinite(value)).nonzero()
    if not len(bad):
        return None
    index = tuple(bad[0].tolist())
    return ("nan" if value[index].isnan() else "infinity"), index


def bad_data(x: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The clause that names data or a condition with NaN or infinity, and where; None when there is none."""
    for kind, parts in (("data", x), ("condition", given)):
        for name, value in parts.items():
            found = first_bad(value)
            if found:
                return f"the {kind} '{name}' has {found[0]} at index {found[1]} of the batch"
    return None


def fault_of_loss(flow: Flow, x: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Why a batch's loss is not finite: its data, a parameter, or the first node whose values or log-det are not."""
    clause = bad_data(x, given) or _bad_parameter(flow)
    if clause:
        return clause
    try:
        with torch.no_grad():
            trace = flow.trace(bare(dict(x)), given=bare(dict(given)))
    except FlowkitError as error:  # trace names the node itself
        return str(error)
    for record in trace:
        for what, tensor in [*(("values", value) for value in record.values), ("log-det", record.log_det)]:
            bad = first_bad(tensor)
            if bad:
                return f"node '{record.name}' is the first to give {what} that are not finite ({bad[0]} at {bad[1]})"
    for record in trace:
        for value in record.values:
            largest = float(value.abs().max()) if value.numel() else 0.0
            if largest > math.sqrt(torch.finfo(value.dtype).max / max(1, value.numel())):
                return f"node '{record.name}' is the first to give values whose squares overflow (up to {largest:.2g})"
    return "every node's values are finite, so it is the base distribution's log-density that is not"


def fault_of_gradients(flow: Flow) -> str:
    """Which node's parameters have gradients that are not finite: the last in forward order, where backward met it."""
    names = [n for n, p in flow.named_parameters() if p.grad is not None and first_bad(p.grad)]
    if not names:
        return "the gradients are finite one by one, but their norm overflows"
    where = f" of node '{node_of(names[-1])}'" if node_of(names[-1]) else ""
    others = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the gradient of '{names[-1]}'{where} is not finite{others}"


def node_of(parameter: str) -> str | None:
    """The node, nested names dotted, that a parameter's name belongs to; None for a base's parameter.

    >>> node_of("network.nodes.level_1.nodes.affine_coupling_2.subnet.first.weight")
    'level_1.affine_coupling_2'
    """
    parts, found = parameter.split("."), []
    for here, following in itertools.pairwise(parts):
        if here == "nodes":
            found.append(following)
    return ".".join(found) or None


class NormStatistics:
    """The running statistics of batch normalisations, kept over one step: a bad batch must not poison them."""

    def __init__(self, module: nn.Module):
        self._norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self) -> None:
        """Remember them as they are."""
        self._kept = [(b, b.clone()) for norm in self._norms for b in norm.buffers(recurse=False)]

    def restore(self) -> None:
        """Put back what was remembered."""
        with torch.no_grad():
            for buffer, before in self._kept:
                buffer.copy_(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a device's or the CPU's lack of memory.

    >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    True
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def takes_less_memory(flow: Flow, rows: int) -> str:
    """What to change where a step of so many rows does not fit: first the way gradients are computed, then the rows."""
    smaller = f"a batch size of {max(1, rows // 2)}" if rows > 1 else "a smaller flow"
    if flow.backprop in ("plain", "checkpoint"):
        return f"flow.backprop = 'reverse' keeps no values of the layers; or use {smaller}"
    return f"use {smaller}"


def _bad_parameter(flow: Flow) -> str | None:
    for name, parameter in flow.named_parameters():
        found = first_bad(parameter)
        if found:
            where = f" of node '{node_of(name)}'" if node_of(name) else ""
            return f"the parameter '{name}'{where} has {found[0]} at index {found[1]}"
    return None
