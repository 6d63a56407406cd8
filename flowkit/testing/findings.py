"""How a law records what it finds."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.testing.report import Finding


class NotApplicable(Exception):
    """Raised by a law that has nothing to say about this subject; the message is the reason it is skipped."""


class Findings:
    """What one law found on one subject. Failures are collected, so that a law says at once all that is wrong."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.broken: list[Finding] = []
        self.worst: tuple[float, float] | None = None  # the figure nearest to its tolerance, or furthest beyond it

    def __call__(self, ok: bool, text: str) -> bool:
        """Record a failure unless `ok`; `text` says what is wrong."""
        if not ok:
            self.broken.append(Finding(text))
        return ok

    def figure(self, value: float, text: str, tolerance: float | None = None) -> bool:
        """Record a figure, and a failure where it is above the tolerance or not a number; `text` says what it is."""
        limit = self.tolerance if tolerance is None else tolerance
        if self.worst is None or value / max(limit, 1e-300) > self.worst[0] / max(self.worst[1], 1e-300):
            self.worst = (value, limit)
        ok = value <= limit
        if not ok:
            self.broken.append(Finding(text, value, limit))
        return ok

    def close(self, got: Tensor, want: Tensor, text: str, tolerance: float | None = None) -> bool:
        """Compare the worst element: |got - want| <= tolerance (1 + |want|). Different shapes are a failure."""
        if got.shape != want.shape:
            return self(False, f"{text}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if not want.numel():
            return True
        wide = torch.promote_types(torch.float64, want.dtype)
        got, want = got.detach().to(wide), want.detach().to(wide)
        same = (got == want) | (got.isnan() & want.isnan())  # infinities of one sign agree
        error = torch.where(same, torch.zeros_like(want), (got - want).abs() / (1 + want.abs()))
        worst = error.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()
        return self.figure(worst, text, tolerance)

    def equal(self, got: Tensor, want: Tensor, text: str) -> bool:
        """Compare bit for bit (NaN equals NaN)."""
        same = (
            got.shape == want.shape
            and got.dtype == want.dtype
            and bool(((got == want) | ((got != got) & (want != want))).all())
        )
        return self(same, text)
