"""What a block's forward saw, for its second run in backward: random state, buffers and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Replay:
    """The random state, buffers and autocast that a block's forward saw, for its second run in backward.

    Random state and buffers are kept only where the forward changed them (dropout, batch normalisation, spectral norm);
    after the second run both are as if it had not happened.
    """

    def __init__(self, part: nn.Module, like: Tensor):
        self.part, self.device = part, like.device
        watch = part.training or getattr(part, "stochastic", False)
        self._random = _random_state(like.device) if watch else None
        self._buffers = [(b, b.clone()) for b in part.buffers()] if watch else []
        self._versions = {id(b): b._version for b, _ in self._buffers}
        kind = "cpu" if like.is_meta else like.device.type  # on meta bytes are counted, those kept here too
        self._autocast = (
            kind,
            torch.get_autocast_dtype(kind),
            torch.is_autocast_enabled(kind),
            torch.is_autocast_cache_enabled(),
        )

    def ran(self) -> None:
        """Called after the forward: forget what it did not change."""
        if self._random is not None and all(
            torch.equal(a, b) for a, b in zip(self._random, _random_state(self.device), strict=True)
        ):
            self._random = None
        if self.device.type == "cpu":
            self._buffers = [(now, before) for now, before in self._buffers if not torch.equal(now, before)]
        elif self._buffers:  # comparing values would wait for them; batch normalisation writes without a new version
            norms = [m for m in self.part.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
            silent = {id(buffer) for norm in norms for buffer in norm.buffers()}
            wrote = [id(b) in silent or b._version != self._versions[id(b)] for b, _ in self._buffers]
            self._buffers = [pair for pair, changed in zip(self._buffers, wrote, strict=True) if changed]

    @property
    def changes_something(self) -> bool:
        """Whether the forward drew random numbers or wrote to buffers; on a GPU, whether it may have."""
        return self._random is not None or bool(self._buffers)

    def restore(self) -> None:
        """Put random state and buffers back to what the forward saw."""
        if self._random is not None:
            _set_random_state(self.device, self._random)
        for buffer, before in self._buffers:
            buffer.data.copy_(before)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it the block sees what it saw."""
        kind, dtype, enabled, cache = self._autocast
        now_random = _random_state(self.device) if self._random is not None else None
        now_buffers = [(buffer, buffer.clone()) for buffer, _ in self._buffers]
        try:
            self.restore()
            if enabled:
                with torch.autocast(kind, dtype=dtype, cache_enabled=cache):
                    yield
            else:
                yield
        finally:
            if now_random is not None:
                _set_random_state(self.device, now_random)
            for buffer, now in now_buffers:
                buffer.data.copy_(now)


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
