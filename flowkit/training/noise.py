"""Noise that belongs to the number of a sample, not to a process or to what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator on the CPU that depends on these three alone."""
    # torch's generators of neighbouring seeds are alike at first, so the key is hashed.
    key = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)


def keyed_noise(like: Tensor, seed: int, purpose: str, numbers: Sequence[int]) -> Tensor:
    """Standard normal noise of a batch's shape, in which row i depends on (seed, purpose, numbers[i]) alone.

    So a run that is resumed, or split over processes, sees the noise that it would have seen otherwise.

    >>> a = keyed_noise(torch.zeros(2, 3), 0, "x", [7, 8])
    >>> b = keyed_noise(torch.zeros(1, 3), 0, "x", [8])
    >>> torch.equal(a[1], b[0])
    True
    """
    rows = [
        torch.randn(like.shape[1:], generator=generator_for(seed, purpose, number), dtype=like.dtype)
        for number in numbers
    ]
    return torch.stack(rows).to(like.device) if rows else torch.zeros_like(like)
