"""FrEIA's blocks under what others offer to save memory: torch's checkpointing, and memcnn's inversion."""

from __future__ import annotations

import importlib.util
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from .stacks import Freia


class Checkpointed(nn.Module):
    """Every block under `torch.utils.checkpoint`, as a user of FrEIA would have it."""

    def __init__(self, stack: Freia):
        super().__init__()
        self.inn = stack.inn

    def nll(self, x: Tensor, c: Tensor) -> Tensor:
        """The mean negative log-likelihood."""
        total = x.new_zeros(len(x))
        for block in self.inn:
            (x,), log_det = checkpoint(block, (x,), [c], use_reentrant=False)
            total = total + log_det
        return (0.5 * x.square().flatten(1).sum(1) - total).mean()


class Memcnn(nn.Module):
    """Every block in memcnn's wrapper, which frees its inputs and inverts it in backward.

    The wrapper knows one kind of input, so the condition goes through every block as data; and it is copied there,
    because an output that shared its memory would be freed with it.
    """

    def __init__(self, stack: Freia):
        super().__init__()
        from memcnn import InvertibleModuleWrapper

        self.blocks = nn.ModuleList(InvertibleModuleWrapper(_Through(block), keep_input=False) for block in stack.inn)

    def nll(self, x: Tensor, c: Tensor) -> Tensor:
        """The mean negative log-likelihood; the data are copied, for they are freed too."""
        x, c, total = x.clone(), c.clone(), x.new_zeros(len(x))
        for block in self.blocks:
            x, c, total = block(x, c, total)
        return (0.5 * x.square().flatten(1).sum(1) - total).mean()


class _Through(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, c: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (y,), log_det = self.block((x,), c=[c])
        return y, c.clone(), total + log_det

    def inverse(self, y: Tensor, c: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x,), log_det = self.block((y,), c=[c], rev=True)
        return x, c.clone(), total + log_det


def frugal_peers(stack: Freia) -> dict[str, nn.Module]:
    """Those that are installed, on the weights of the stack itself."""
    found: dict[str, nn.Module] = {"FrEIA, torch's checkpoint": Checkpointed(stack)}
    if importlib.util.find_spec("memcnn"):
        found["FrEIA, memcnn"] = Memcnn(stack)
    return found


class ResizedBytes(TorchDispatchMode):
    """As `flowkit.memory.LiveBytes`, but a storage counts what it holds now: memcnn empties those that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in taken:
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = weakref.ref(storage)
        alive = {key: ref() for key, ref in self._storages.items()}
        self._storages = {key: ref for key, ref in self._storages.items() if alive[key] is not None}
        self.peak = max(self.peak, sum(s.nbytes() for s in alive.values() if s is not None))
        return result
