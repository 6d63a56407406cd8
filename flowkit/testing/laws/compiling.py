"""Compiling: torch.compile over the full graph, torch.export, torch.func, in both directions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkit.bijection import as_tuple
from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Direction, Subject


def _value_and_gradients(
    subject: Subject, function: Callable[..., Any], module: torch.nn.Module, points: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    if subject.original.stochastic:
        torch.manual_seed(subject.seed)
    data = [p.clone().requires_grad_() if p.is_floating_point() else p for p in points]
    output, log_det = function(*data)
    values = [*as_tuple(output), log_det]
    variables = [*(d for d in data if d.requires_grad), *(p for p in module.parameters() if p.requires_grad)]
    # The sum of squares, not the sum: its gradient is a tensor of its own strides.
    total = sum((v.square().sum() for v in values if v.requires_grad), torch.zeros((), dtype=torch.float64))
    if not total.requires_grad:
        return values, []
    return values, list(torch.autograd.grad(total, variables, allow_unused=True, materialize_grads=True))


def _compile_law(subject: Subject, expect: Findings, method: str) -> None:
    subject.exempt("adaptive")
    module = Direction(subject.bijection, method)
    points = subject.points(method)
    want, want_gradients = _value_and_gradients(subject, module, module, points)
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns about itself; the law is about the bijection
            compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
            got, gradients = _value_and_gradients(subject, compiled, module, points)
    finally:
        torch._dynamo.reset()
    for a, b in zip(got, want, strict=True):
        expect.close(a, b, f"{method} compiled gives something else")
    for a, b in zip(gradients, want_gradients, strict=True):
        expect.close(a, b, f"{method} compiled has other gradients", max(1e-8, subject.tolerance))


@law(number=9)
def compile_forward(subject: Subject, expect: Findings) -> None:
    """`torch.compile(fullgraph=True)` of forward, with its backward, gives what eager gives (backend aot_eager)."""
    _compile_law(subject, expect, "forward")


@law(number=9)
def compile_inverse(subject: Subject, expect: Findings) -> None:
    """`torch.compile(fullgraph=True)` of the inverse, with its backward, gives what eager gives (backend aot_eager)."""
    _compile_law(subject, expect, "inverse")


def _export_law(subject: Subject, expect: Findings, method: str) -> None:
    subject.exempt("adaptive")
    module = Direction(subject.bijection, method)
    points = subject.points(method)
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in points)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, points, dynamic_shapes=(batch,)).module()
        for rows in (subject.rows, subject.rows + 2):
            points = subject.points(method, rows=rows)
            want, want_log_det = subject.call(module, "forward", *points)
            got, log_det = subject.call(program, "forward", *points)
            if not subject.original.stochastic:
                for a, b in zip((*got, log_det), (*want, want_log_det), strict=True):
                    expect.close(a, b, f"{method} exported gives something else for {rows} rows")


@law(number=9)
def export_forward(subject: Subject, expect: Findings) -> None:
    """`torch.export` of forward, with a dynamic batch, gives what eager gives."""
    _export_law(subject, expect, "forward")


@law(number=9)
def export_inverse(subject: Subject, expect: Findings) -> None:
    """`torch.export` of the inverse, with a dynamic batch, gives what eager gives."""
    _export_law(subject, expect, "inverse")


@law(number=9)
def functional_transforms(subject: Subject, expect: Findings) -> None:
    """`torch.func.vmap` of `grad` with functional weights gives what autograd gives row by row, in both directions."""
    subject.exempt("adaptive", "stochastic")
    for method in ("forward", "inverse"):
        module = Direction(subject.bijection, method)
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        points, count = subject.points(method), subject.arity(method)

        def energy(
            weights: dict[str, Tensor], *row: Tensor, module: torch.nn.Module = module, weighted: bool = True
        ) -> Tensor:
            arguments = tuple(r.unsqueeze(0).clone() for r in row)
            output, log_det = torch.func.functional_call(module, weights, arguments) if weighted else module(*arguments)
            return sum((o.square().sum() for o in as_tuple(output)), log_det.sum())

        floating = [i for i in range(count) if points[i].is_floating_point()]
        argnums = tuple(1 + i for i in floating)
        in_dims = (None, *[0] * len(points))
        got = torch.func.vmap(torch.func.grad(energy, argnums=argnums), in_dims=in_dims)(parameters, *points)
        data = [p.clone().requires_grad_(i in floating) for i, p in enumerate(points)]
        total = sum(
            (energy({}, *(d[row] for d in data), weighted=False) for row in range(subject.rows)), torch.zeros(())
        )
        want = torch.autograd.grad(total, [data[i] for i in floating], allow_unused=True, materialize_grads=True)
        for a, b in zip(got, want, strict=True):
            expect.close(a, b, f"{method} under torch.func has other gradients", max(1e-8, subject.tolerance))
