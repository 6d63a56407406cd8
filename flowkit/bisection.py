"""The root of an increasing function, in a fixed number of steps and with exact gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NEWTON = 6  # safeguarded steps after the bisection: each doubles the number of right digits
POLISH = 2  # differentiable Newton steps: with one the first derivatives are exact, with two the first three


def solve_monotone(
    f_and_derivative: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, low: Tensor, high: Tensor, steps: int
) -> Tensor:
    """x with f(x) = target, elementwise, for an increasing f whose root lies between `low` and `high`.

    `steps` bisections narrow the bracket by `2 ** steps`, then Newton's method, which falls back to bisection where it
    would leave the bracket, finds the root to rounding. None of these steps is recorded. Newton steps that are recorded
    follow: their gradients with respect to the target, and to all that f holds, are those of the implicit function
    theorem. There are no branches on data, so that it compiles and exports as one graph.

    Args:
        f_and_derivative: gives f(x) and its derivative, which is positive, both of x's shape.
        target: the values of f to reach.
        low, high: bounds of the root, of the target's shape.
        steps: the number of bisections; the bracket must end up where Newton's method converges.

    >>> target = torch.tensor([0.0, 10.0])
    >>> x = solve_monotone(lambda x: (x**3 + x, 3 * x**2 + 1), target, target * 0 - 1, target, 10)
    >>> [round(value, 4) for value in x.tolist()]
    [0.0, 2.0]
    """
    with torch.no_grad():
        x = (low + high) / 2
        for step in range(steps + NEWTON):
            value, derivative = f_and_derivative(x)
            error = value - target
            low, high = torch.where(error <= 0, x, low), torch.where(error >= 0, x, high)
            x = (low + high) / 2
            if step >= steps:
                newton = torch.where(error <= 0, low, high) - error / derivative
                x = torch.where((newton >= low) & (newton <= high), newton, x)
    for _ in range(POLISH):
        value, derivative = f_and_derivative(x)
        x = x - (value - target) / derivative
    return x
