"""Gradients: of outputs and log-det, with respect to data, conditions and parameters; right, and not silently zero.

Each is compared with central differences along a random direction of each tensor: one direction finds any error in a
gradient, except for an unlucky draw of probability zero, and costs two evaluations, where all elements cost thousands.

Where the two differ, the difference may be the estimate's: third derivatives are large within compositions of inverses,
and a spline's knot, where its slope or its density jumps, may lie within the step. So before a gradient is called
wrong, the steps are made smaller and extrapolated, and the estimate that is nearest to its neighbours is the judge. It
is chosen without a look at the gradient, so a wrong one is found as before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowkit.bijection import as_tuple
from flowkit.errors import BackpropError
from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Direction, Subject

DIRECTIONS = ("forward", "inverse")
ROWS = 2
STEP = 1e-5  # central differences: truncation ~1e-10, rounding ~1e-11 of the value
TOLERANCE = 1e-6
SHRINK = 4.0  # of the step, from one estimate to the next
LEVELS = 7  # down to a step of 2e-9; where that is too small, rounding makes neighbours differ, and it is not chosen


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


def _gradients(function: _Function, which: int, changed: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    variables = _leaves(function, changed)
    return {name: grad.detach() for name, grad in _taken(function, which, variables, kept=False).items()}


def _leaves(function: _Function, changed: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {n: v.clone().requires_grad_() for n, v in {**function.variables(), **(changed or {})}.items()}


def _taken(function: _Function, which: int, variables: dict[str, Tensor], kept: bool) -> dict[str, Tensor]:
    """The gradients, zero where there are none; `kept` to be differentiated themselves."""
    value = function.values(variables)[which]
    if not value.requires_grad:
        return {n: torch.zeros_like(v) for n, v in variables.items()}
    leaves = list(variables.values())
    grads = torch.autograd.grad(value, leaves, create_graph=kept, allow_unused=True, materialize_grads=True)
    return dict(zip(variables, grads, strict=True))


def central_difference(along: Callable[[float], float], step: float) -> float:
    """The derivative at 0 of a function of one number, right to the square of the step.

    >>> round(central_difference(math.exp, 1e-3), 4)
    1.0
    """
    return (along(step) - along(-step)) / (2 * step)


def extrapolated_difference(along: Callable[[float], float], step: float) -> float:
    """The same by Ridders' method: central differences of shrinking steps, extrapolated to a step of 0.

    Of all extrapolations it is the one that differs least from those it is made of. Steps that reach over a kink spoil
    those made of them, not the ones of smaller steps.

    Source: Ridders, Accurate computation of F'(x) and F'(x) F''(x), 1982.

    >>> abs(extrapolated_difference(lambda h: math.exp(100 * h), 1e-2) - 100) < 1e-8
    True
    """
    best, smallest = math.nan, math.inf
    before: list[float] = []
    for level in range(LEVELS):
        row = [central_difference(along, step / SHRINK**level)]
        for order, coarse in enumerate(before, start=1):
            factor = SHRINK ** (2 * order)
            row.append((factor * row[-1] - coarse) / (factor - 1))
            error = max(abs(row[-1] - row[-2]), abs(row[-1] - coarse))
            if error < smallest:
                best, smallest = row[-1], error
        before = row
    return best


def _accuracy(subject: Subject) -> tuple[float, float]:
    """The step of central differences, and how far they are from what is right, for maps that are right themselves."""
    declared = subject.original.tolerance if subject.original.iterative else 0.0
    step = max(STEP, declared ** (1 / 3))
    return step, max(TOLERANCE, 10 * (declared / step + step**2))


def _compare(subject: Subject, expect: Findings, which: int, what: str) -> None:
    step, tolerance = _accuracy(subject)
    for method in DIRECTIONS:
        function = _Function(subject, method)
        exact = _gradients(function, which)
        generator = torch.Generator().manual_seed(subject.seed + 1)
        for name, value in function.variables().items():
            direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            along = _Line(function, which, name, value, direction)
            got, want = (exact[name] * direction).sum().item(), central_difference(along, step)
            if not abs(got - want) <= tolerance * (1 + abs(want)):
                want = extrapolated_difference(along, step)
            text = f"the gradient of {method}'s {what} with respect to {name} differs from finite differences"
            expect.close(_scalar(got), _scalar(want), text, tolerance)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class _Line:
    """A scalar of a direction as a function of how far one of its tensors is moved."""

    def __init__(self, function: _Function, which: int, name: str, value: Tensor, direction: Tensor) -> None:
        self.function, self.which, self.name, self.value, self.direction = function, which, name, value, direction

    def __call__(self, step: float) -> float:
        with torch.no_grad():
            return self.function.values({self.name: self.value + step * self.direction})[self.which].item()


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


@law(number=4)
def second_derivatives(subject: Subject, expect: Findings) -> None:
    """Gradients taken to be differentiated are the plain ones, and their derivatives are right; or both are refused."""
    step, tolerance = _accuracy(subject)
    for method, which in itertools.product(DIRECTIONS, (0, 1)):
        function = _Function(subject, method)
        variables = _leaves(function)
        try:
            kept = _taken(function, which, variables, kept=True)
        except BackpropError:
            continue
        of = f"{method}'s {('output', 'log-det')[which]}"
        for name, plain in _gradients(function, which).items():
            text = f"the gradient of {of} with respect to {name} is another where it is kept for a second derivative"
            expect.close(kept[name].detach(), plain, text, TOLERANCE)
        directions = _directions(function, subject.seed + 2)
        slope = torch.stack([(kept[name] * directions[name]).sum() for name in kept]).sum()
        got = 0.0
        if slope.requires_grad:
            grads = torch.autograd.grad(slope, list(variables.values()), allow_unused=True, materialize_grads=True)
            got = sum((grad * directions[name]).sum().item() for name, grad in zip(kept, grads, strict=True))
        along = _SlopeLine(function, which, directions)
        want = central_difference(along, step)
        if not abs(got - want) <= tolerance * (1 + abs(want)):
            want = extrapolated_difference(along, step)
        text = f"the second derivative of {of} along a direction differs from finite differences of the first"
        expect.close(_scalar(got), _scalar(want), text, tolerance)


def _directions(function: _Function, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in function.variables().items()}
    length = sum(each.square().sum().item() for each in drawn.values()) ** 0.5
    return {name: each / length for name, each in drawn.items()}


class _SlopeLine:
    """The derivative along the directions, as a function of how far all is moved along them."""

    def __init__(self, function: _Function, which: int, directions: dict[str, Tensor]) -> None:
        self.function, self.which, self.directions = function, which, directions

    def __call__(self, step: float) -> float:
        changed = {n: v + step * self.directions[n] for n, v in self.function.variables().items()}
        grads = _gradients(self.function, self.which, changed)
        return sum((grads[name] * direction).sum().item() for name, direction in self.directions.items())
