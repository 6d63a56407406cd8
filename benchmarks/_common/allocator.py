"""An allocator that does not decide the figures: glibc's keeps freed memory rather than giving it back."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 2**30  # bytes


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 1 GiB; nothing happens where the C library is not glibc.

    Else a step's time depends on whether the heap happens to be returned in between, and its pages faulted in again:
    measured here, the same step took 124 ms or 250 ms, by what had run before it.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEEP)
        mallopt(M_MMAP_THRESHOLD, KEEP)
