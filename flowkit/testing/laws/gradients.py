"""Gradients: of outputs and log-det, with respect to data, conditions and parameters; right, and not silently zero.

Each is compared with central differences along a random direction of each tensor: one direction finds any error in a
gradient, except for an unlucky draw of probability zero, and costs two evaluations, where all elements cost thousands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.bijection import as_tuple
from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Direction, Subject

DIRECTIONS = ("forward", "inverse")
ROWS = 2
STEP = 1e-5  # central differences: truncation ~1e-10, rounding ~1e-11 of the value
TOLERANCE = 1e-6


def _differentiable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t.is_floating_point()}


class _Function:
    """A direction as a scalar function of its data, its conditions and its parameters, all by name."""

    def __init__(self, subject: Subject, method: str) -> None:
        self.subject, self.method = subject, method
        bijection = subject.bijection.to(torch.float64)
        self.module = Direction(bijection, method)
        points = subject.points(method, rows=ROWS)
        count = subject.arity(method)
        names = [f"data {i}" if i < count else f"condition {i - count}" for i in range(len(points))]
        self.arguments = {
            n: p.to(torch.float64) if p.is_floating_point() else p for n, p in zip(names, points, strict=True)
        }
        self.parameters = {n: p.detach().clone() for n, p in self.module.named_parameters() if p.requires_grad}
        self.weights: list[Tensor] | None = None

    def variables(self) -> dict[str, Tensor]:
        return _differentiable(
            {**self.arguments, **{f"parameter {n[len('bijection.') :]}": p for n, p in self.parameters.items()}}
        )

    def values(self, changed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A random projection of the outputs, and of the log-det: `(B,)`-weighted sums, scalars."""
        arguments = [changed.get(n, v).clone() for n, v in self.arguments.items()]
        parameters = {n: changed.get(f"parameter {n[len('bijection.') :]}", p) for n, p in self.parameters.items()}
        if self.subject.original.stochastic:
            torch.manual_seed(self.subject.seed)
        outputs, log_det = torch.func.functional_call(self.module, parameters, tuple(arguments))
        outputs = as_tuple(outputs)
        if self.weights is None:
            generator = torch.Generator().manual_seed(self.subject.seed)
            self.weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (*outputs, log_det)]
        value = torch.zeros((), dtype=torch.float64)
        for weight, output in zip(self.weights[:-1], outputs, strict=True):
            value = value + (weight * output).sum()
        return value, (self.weights[-1] * log_det).sum()


def _gradients(function: _Function, which: int) -> dict[str, Tensor]:
    variables = {n: v.clone().requires_grad_() for n, v in function.variables().items()}
    value = function.values(variables)[which]
    if not value.requires_grad:
        return {n: torch.zeros_like(v) for n, v in variables.items()}
    grads = torch.autograd.grad(value, list(variables.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(variables, grads, strict=True))


def _compare(subject: Subject, expect: Findings, which: int, what: str) -> None:
    declared = subject.original.tolerance if subject.original.iterative else 0.0
    step = max(STEP, declared ** (1 / 3))
    tolerance = max(TOLERANCE, 10 * (declared / step + step**2))
    for method in DIRECTIONS:
        function = _Function(subject, method)
        exact = _gradients(function, which)
        generator = torch.Generator().manual_seed(subject.seed + 1)
        for name, value in function.variables().items():
            direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            with torch.no_grad():
                above = function.values({name: value + step * direction})[which]
                below = function.values({name: value - step * direction})[which]
            want = (above - below) / (2 * step)
            text = f"the gradient of {method}'s {what} with respect to {name} differs from finite differences"
            expect.close((exact[name] * direction).sum(), want, text, tolerance)


@law(number=4)
def output_gradients(subject: Subject, expect: Findings) -> None:
    """The outputs' gradients with respect to data, conditions and every parameter are right."""
    _compare(subject, expect, 0, "output")


@law(number=4)
def log_det_gradients(subject: Subject, expect: Findings) -> None:
    """The log-det's gradients with respect to data, conditions and every parameter are right, and not silently zero."""
    _compare(subject, expect, 1, "log-det")


@law(number=4)
def parameters_used(subject: Subject, expect: Findings) -> None:
    """Every parameter gets a gradient from outputs and log-det that is neither None nor zero throughout."""
    function = _Function(subject, "forward")
    parameters = {n: v.clone().requires_grad_() for n, v in function.variables().items() if n.startswith("parameter ")}
    if not parameters:
        return
    output, log_det = function.values(parameters)
    total = output + log_det
    if not expect(total.requires_grad, "neither the outputs nor the log-det depend on any parameter for autograd"):
        return
    for name, grad in zip(
        parameters, torch.autograd.grad(total, list(parameters.values()), allow_unused=True), strict=True
    ):
        if expect(grad is not None, f"{name} gets no gradient"):
            expect(bool((grad != 0).any()) or not grad.numel(), f"{name} gets a gradient of zeros")
