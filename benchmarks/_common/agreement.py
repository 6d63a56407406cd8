"""What is timed against one another computes the same: the check, and the error that names what does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

import flowkit as fk

TOLERANCE = 1e-9  # relative, in float64


class MismatchError(fk.FlowkitError):
    """Two implementations that are to be timed do not compute the same."""


def agree(name: str, what: str, found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    """Refuse to time what differs by more than the tolerance, relative to the largest value.

    Raises:
        MismatchError: it does; the message names the toolkit and the distance.
    """
    found, wanted = found.detach().double(), wanted.detach().double()
    if found.shape != wanted.shape:
        raise MismatchError(f"{name}: {what} of shape {tuple(found.shape)} where {tuple(wanted.shape)} is right")
    distance = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()
    if not distance <= tolerance:
        raise MismatchError(
            f"{name}'s {what} is off by {distance:.1e} of the largest value, at most {tolerance:.0e} is allowed: "
            "what differs is not timed"
        )


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """float64 as the default dtype: normflows starts its log-det with the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
