"""Batches: empty, of one, non-contiguous, with extra leading dimensions; each row alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject

DIRECTIONS = ("forward", "inverse")


def _compare(subject: Subject, expect: Findings, change: Callable[[Tensor], Tensor], text: str) -> None:
    for method in DIRECTIONS:
        points = subject.points(method)
        with torch.no_grad():
            want, want_log_det = subject.call_with(subject.bijection, method, *map(change, points))
            got, log_det = subject.call(subject.bijection, method, *(change(p).contiguous() for p in points))
        for a, b in zip((*want, want_log_det), (*got, log_det), strict=True):
            if subject.original.stochastic:  # torch draws in the order of memory, which is what differs here
                b = a if a.shape == b.shape else b
            expect.close(a, b, f"{method} gives something else for {text}")


@law(number=15)
def empty_batch(subject: Subject, expect: Findings) -> None:
    """A batch of no rows gives no rows."""
    count = len(subject.original.in_shapes)
    for method in DIRECTIONS:
        shapes = subject.original.in_shapes if method == "forward" else subject.original.out_shapes
        wanted = subject.original.out_shapes if method == "forward" else subject.original.in_shapes
        conditions = tuple(c[:0] for c in subject.arguments()[count:])
        empty = tuple(torch.zeros(0, *shape, dtype=subject.dtype) for shape in shapes)
        with torch.no_grad():
            values, log_det = subject.call(subject.bijection, method, *empty, *conditions)
        got, want = [tuple(v.shape) for v in values], [(0, *shape) for shape in wanted]
        expect(got == want, f"{method} of an empty batch gives shapes {got}, not {want}")
        expect(
            tuple(log_det.shape) == (0,),
            f"{method}'s log-det of an empty batch has shape {tuple(log_det.shape)}, not (0,)",
        )


@law(number=15)
def rows_alone(subject: Subject, expect: Findings) -> None:
    """Each row in a batch of one gives what it gives among others."""
    subject.exempt("stochastic")
    for method in DIRECTIONS:
        points = subject.points(method)
        with torch.no_grad():
            values, log_det = subject.call(subject.bijection, method, *points)
            for row in range(subject.rows):
                alone, one = subject.call(subject.bijection, method, *(p[row : row + 1] for p in points))
                for a, b in zip(alone, values, strict=True):
                    expect.close(a, b[row : row + 1], f"{method} of row {row} alone differs")
                if log_det.dim() and one.dim():
                    expect.close(one, log_det[row : row + 1], f"{method}'s log-det of row {row} alone differs")


@law(number=15)
def non_contiguous(subject: Subject, expect: Findings) -> None:
    """Strided and expanded arguments give what contiguous ones give."""
    _compare(subject, expect, _reversed_strides, "strided arguments")
    _compare(subject, expect, lambda x: x[:1].expand(x.shape), "arguments expanded over the batch")


def _reversed_strides(x: Tensor) -> Tensor:
    # The batch runs fastest in memory: no two dimensions can be viewed as one.
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


@law(number=15)
def leading_dimensions(subject: Subject, expect: Findings) -> None:
    """Through `Flow(bijection)`, any leading batch dimensions, none included, give what one gives."""
    subject.exempt("stochastic")
    import flowkit as fk

    flow = fk.Flow(subject.bijection).to(subject.dtype).eval()
    count, rows = subject.arity("forward"), 6
    arguments = subject.arguments(rows)
    inputs, conditions = arguments[:count], arguments[count:]
    with torch.no_grad():
        z, log_det = flow(as_data(flow, inputs), given=as_given(flow, conditions))
        for leading in ((2, 3), (6, 1), (1, 2, 1, 3)):
            x = as_data(flow, tuple(x.reshape(*leading, *x.shape[1:]) for x in inputs))
            given = as_given(flow, tuple(c.reshape(*leading, *c.shape[1:]) for c in conditions))
            got, got_log_det = flow(x, given=given)
            expect.close(got, z.reshape(*leading, -1), f"flow(x) with leading dimensions {leading} differs")
            expect.close(
                got_log_det, log_det.reshape(leading), f"flow(x)'s log-det with leading dimensions {leading} differs"
            )
            back, _ = flow.inverse(got.clone(), given=given)
            again, _ = flow.inverse(z.clone(), given=as_given(flow, conditions))
            for name in flow.input_shapes:
                a = back[name] if isinstance(back, dict) else back
                b = again[name] if isinstance(again, dict) else again
                expect.close(a, b.reshape(a.shape), f"flow.inverse(z) with leading dimensions {leading} differs")
        none, _ = flow(
            as_data(flow, tuple(x[0] for x in inputs)), given=as_given(flow, tuple(c[0] for c in conditions))
        )
        expect.close(none, z[0], "flow(x) without a batch dimension differs")
        nothing, no_log_det = flow(
            as_data(flow, tuple(x[:0].reshape(2, 0, *x.shape[1:]) for x in inputs)),
            given=as_given(flow, tuple(c[:0].reshape(2, 0, *c.shape[1:]) for c in conditions)),
        )
        expect(
            tuple(nothing.shape) == (2, 0, z.shape[-1]), f"leading dimensions (2, 0) give shape {tuple(nothing.shape)}"
        )
        expect(
            tuple(no_log_det.shape) == (2, 0),
            f"leading dimensions (2, 0) give a log-det of shape {tuple(no_log_det.shape)}",
        )


def as_data(flow: Any, inputs: tuple[Tensor, ...]) -> Any:
    """Inputs as a flow takes them: one tensor, or a dictionary by name."""
    return inputs[0] if len(inputs) == 1 else dict(zip(flow.input_shapes, inputs, strict=True))


def as_given(flow: Any, conditions: tuple[Tensor, ...]) -> Any:
    """Conditions as a flow takes them: None, or a dictionary by name."""
    return dict(zip(flow.condition_shapes, conditions, strict=True)) or None
