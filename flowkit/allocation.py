"""A bound on what may be allocated while something is built from a stranger's description."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowkit.errors import StorageError

ONE, ALL = 2**28, 2**31  # bytes that are never too many: for one tensor, and for all together
CALLS, CALLS_EACH = 20_000, 64  # new tensors that are never too many, and those for each tensor of the file


class AllocationLimit(TorchDispatchMode):
    """Refuse, before it is made, a new tensor that is out of all proportion to the file it comes from.

    Every factory call is tried on the meta device first, which tells its size and allocates nothing.

    Args:
        size: of the file, in bytes.
        tensors: how many the file has.

    Raises:
        StorageError: one new tensor of more than 256 MiB and twice the file's size, all of them more than 2 GiB and
            16 times its size, or more of them, on the meta device too, than 20,000 and 64 for each of the file's.
    """

    def __init__(self, size: int, tensors: int):
        super().__init__()
        self.one, self.all, self.made = ONE + 2 * size, ALL + 16 * size, 0
        self.calls, self.most_calls = 0, CALLS + CALLS_EACH * tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call, if it is no factory or a modest one."""
        kwargs = kwargs or {}
        if "device" in kwargs and not _has_tensors(args, kwargs):
            self.calls += 1
            if self.calls > self.most_calls:
                raise StorageError(f"building it would make more than {self.most_calls:,} tensors")
            if not _is_meta(kwargs["device"]):
                self._count(func, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Any, args: Any, kwargs: dict) -> None:
        try:
            sketch = func(*args, **{**kwargs, "device": torch.device("meta"), "pin_memory": False})
        except (RuntimeError, TypeError):  # a factory without a sketch: nothing is known of its size
            return
        made = sketch.numel() * sketch.element_size() if isinstance(sketch, Tensor) else 0
        self.made += made
        if made > self.one or self.made > self.all:
            raise StorageError(
                f"building it would allocate {max(made, self.made):,} bytes, out of proportion to the file"
            )


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _has_tensors(args: Any, kwargs: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
