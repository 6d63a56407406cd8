"""Memory counted in bytes: what a computation holds, and how many blocks may be plain within a budget.

Bytes are those of tensor storages, as PyTorch's dispatcher creates and frees them: the same on every machine and for
every allocator, which is what a test or a budget needs.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowkit.bijection import as_tuple, event_sum
from flowkit.errors import BudgetWarning, ConfigError

if TYPE_CHECKING:
    from flowkit.graph.network import InvertibleNetwork


class LiveBytes(TorchDispatchMode):
    """Within it, the bytes of all tensors created are counted: `live` now, `peak` at most.

    >>> with LiveBytes() as counter:
    ...     a = torch.zeros(1000, dtype=torch.float32)
    ...     b = a + 1
    ...     del a, b
    >>> counter.live, counter.peak
    (0, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in taken:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        myself = weakref.ref(self)

        def free() -> None:
            counter = myself()
            if counter is not None:
                counter.live -= counter._sizes.pop(key, 0)

        weakref.finalize(storage, free)


def saved_bytes(run: Callable[[], Any], besides: Iterable[Tensor] = ()) -> int:
    """The bytes that autograd keeps for the backward pass of `run()`, each storage once, those of `besides` left out.

    >>> x, w = torch.zeros(100, dtype=torch.float32), torch.zeros(100, dtype=torch.float32, requires_grad=True)
    >>> saved_bytes(lambda: (x * w).exp(), besides=[x, w])
    400
    """
    known = {tensor.untyped_storage()._cdata for tensor in besides}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in known)
    del result
    return total


def plain_from(network: InvertibleNetwork, values: dict[int, Tensor], budget: int) -> int:
    """The first step that may be plain, so that a forward and backward pass stays within the budget.

    Found by running both passes on the meta device, where only shapes are computed, and counting the bytes that they
    would hold, the gradients of parameters included. The last steps are plain, for theirs is the memory that backward
    frees first; so the peak falls as fewer are, and bisection finds the best.

    Raises:
        ConfigError: a part is adaptive, so that its number of steps is known from data alone.
    """
    # A network is adaptive where a part is, and the part is what the message must name.
    parts = (part for part in network.modules() if "nodes" not in part._modules)
    adaptive = next((part for part in parts if getattr(part, "adaptive", False)), None)
    if adaptive is not None:
        raise ConfigError(
            f"backprop='auto' counts bytes on the meta device, where {type(adaptive).__name__}, whose number of steps "
            "depends on the data, cannot run: use 'reverse', 'checkpoint' or 'plain'"
        )
    steps = len(network._schedule.forward)
    if peak_bytes(network, values, 0) <= budget:  # in a shallow flow plain may even take less than all the rest
        return 0
    most = peak_bytes(network, values, steps)
    if most > budget:
        warnings.warn(
            f"backprop='auto': even in reverse mode a pass holds {most:,} bytes, the budget is {budget:,}: use smaller "
            "batches, or chunk=",
            BudgetWarning,
            stacklevel=2,
        )
        return steps
    low, high = 1, steps  # high fits
    while low < high:
        middle = (low + high) // 2
        if peak_bytes(network, values, middle) <= budget:
            high = middle
        else:
            low = middle + 1
    return high


def peak_bytes(network: InvertibleNetwork, values: dict[int, Tensor], cut: int) -> int:
    """The peak of a forward and backward pass with the steps from `cut` on plain, found on the meta device."""
    inputs = {index: _on_meta(value) for index, value in values.items()}
    with _moved_to_meta(network), LiveBytes() as counter:
        outputs, log_det = network._frugal(inputs, None, cut)
        log_prob = log_det  # of a normal base, as most flows have
        for part in as_tuple(outputs):
            log_prob = log_prob - 0.5 * event_sum(part.square())
        loss = -log_prob.mean()
        targets = [t for t in (*inputs.values(), *network.parameters()) if t.requires_grad]
        torch.autograd.grad(loss, targets, allow_unused=True)
    return counter.peak


@contextlib.contextmanager
def _moved_to_meta(network: nn.Module) -> Iterator[None]:
    """For a while every parameter and buffer is one of the same shape on the meta device; a shared module's once."""
    tables: list[Any] = [table for module in network.modules() for table in (module._parameters, module._buffers)]
    real = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update((name, None if tensor is None else _on_meta(tensor)) for name, tensor in table.items())
        yield
    finally:
        for table, before in zip(tables, real, strict=True):
            table.update(before)


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
