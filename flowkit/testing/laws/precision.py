"""Precision: dtypes, autocast, memory formats."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject, refuse

DIRECTIONS = ("forward", "inverse")
# float32 against float64 at the same weights: a fault is wrong by far more, an ill-conditioned op by a little.
FLOAT32 = 1e-3


def _single(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(v.float() if v.is_floating_point() else v for v in values)


@law(number=2)
def dtypes(subject: Subject, expect: Findings) -> None:
    """float64 data gives float64 values and log-det, float32 data float32 ones that agree with them."""
    for method in DIRECTIONS:
        points = subject.points(method)
        with torch.no_grad():
            values, log_det = subject.call(subject.bijection, method, *points)
            for what, value in (*(("output", v) for v in values), ("log-det", log_det)):
                expect(value.dtype == subject.dtype, f"{method}'s {what} is {value.dtype} for {subject.dtype} data")
            if subject.dtype != torch.float64:
                continue
            singles, single = subject.call(subject.bijection.float(), method, *_single(points))
        tolerance = max(FLOAT32, subject.tolerance)
        for got, want in zip((*singles, single), (*values, log_det), strict=True):
            what = "log-det" if got is single else "output"
            expect(got.dtype == torch.float32, f"{method}'s {what} is {got.dtype} for float32 data")
            # What a stochastic op draws depends on the dtype.
            if got.shape == want.shape and not subject.original.stochastic:
                expect.close(got, want, f"{method}'s {what} in float32 differs from float64's", tolerance)


def _exact_under_autocast(subject: Subject) -> bool:
    # Permutations, reshapes and Haar have nothing that autocast may round: no numbers of their own.
    tensors = (*subject.original.parameters(), *subject.original.buffers())
    return subject.original.volume_preserving and not any(t.is_floating_point() for t in tensors)


def _autocast_law(subject: Subject, expect: Findings, dtype: torch.dtype) -> None:
    for method in DIRECTIONS:
        points = _single(subject.points(method))
        with torch.no_grad():
            plain, _ = subject.call(subject.bijection.float(), method, *points)
            with torch.autocast("cpu", dtype):
                values, log_det = subject.call(subject.bijection.float(), method, *points)
        expect(log_det.dtype == torch.float32, f"{method}'s log-det under autocast is {log_det.dtype}, not float32")
        expect(bool(log_det.isfinite().all()), f"{method}'s log-det under autocast is not finite")
        for got, want in zip(values, plain, strict=True):
            if expect(got.dtype == torch.float32, f"{method}'s output under autocast is {got.dtype}, not float32"):
                expect(bool(got.isfinite().all()), f"{method}'s output under autocast is not finite")
                if _exact_under_autocast(subject):
                    expect.equal(got, want, f"{method} has no numbers of its own, and is not exact under autocast")


@law(number=10)
def autocast_bfloat16(subject: Subject, expect: Findings) -> None:
    """Under bfloat16 autocast, values and log-det stay float32, and permutations and reshapes exact."""
    _autocast_law(subject, expect, torch.bfloat16)


@law(number=10)
def autocast_float16(subject: Subject, expect: Findings) -> None:
    """Under float16 autocast, values and log-det stay float32, and permutations and reshapes exact."""
    _autocast_law(subject, expect, torch.float16)


@law(number=10)
def channels_last(subject: Subject, expect: Findings) -> None:
    """Images in channels_last memory give what contiguous ones give."""
    if not any(len(shape) in (3, 4) for shape in (*subject.original.in_shapes, *subject.original.out_shapes)):
        refuse("none of its tensors is an image")
    subject.exempt("stochastic")  # torch draws in the order of memory
    for method in DIRECTIONS:
        points = subject.points(method)
        with torch.no_grad():
            want, want_log_det = subject.call(subject.bijection, method, *points)
            got, log_det = subject.call(subject.bijection, method, *map(_channels_last, points))
        for a, b in zip((*got, log_det), (*want, want_log_det), strict=True):
            expect.close(a, b, f"{method} gives something else for channels_last tensors")


def _channels_last(value: Tensor) -> Tensor:
    if value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last_3d) if value.dim() == 5 else value
