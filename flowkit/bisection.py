"""The root of an increasing function, in a fixed number of steps and with exact gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NEWTON = 8  # safeguarded steps after the bisection: each doubles the number of right digits
POLISH = 2  # differentiable Newton steps: with one the first derivatives are exact, with two the first three
TOLERANCE = 1e-9  # what maps that are inverted by it declare, in float64; float32 ends at its own rounding


def solve_monotone(
    f_and_derivative: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, low: Tensor, high: Tensor, steps: int
) -> Tensor:
    """x with f(x) = target, elementwise, for an increasing f whose root lies between `low` and `high`.

    `steps` bisections narrow the bracket by `2 ** steps`, then Newton's method finds the root to rounding; where it
    would leave the bracket, it goes on from the other end, which may be the root itself, or else bisects. None of these
    steps is recorded. Newton steps that are recorded follow: their gradients with respect to the target, and to all
    that f holds, are those of the implicit function theorem. They leave the value as it is, for where f is nearly flat
    its rounding would take an unguarded step far away. There are no branches on data, so that it compiles and exports
    as one graph.

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
        best = x = (low + high) / 2
        smallest = torch.full_like(x, torch.inf)
        from_low, from_high = low, high  # Newton's step from either end, or the end itself until it is evaluated
        for step in range(steps + NEWTON):
            value, derivative = f_and_derivative(x)
            error = value - target
            better = error.abs() < smallest
            best, smallest = torch.where(better, x, best), torch.where(better, error.abs(), smallest)
            left, right = error <= 0, error >= 0
            low, high = torch.where(left, x, low), torch.where(right, x, high)
            if step < steps - 1:
                x, from_low, from_high = (low + high) / 2, low, high
                continue
            newton = x - error / derivative
            from_low, from_high = torch.where(left, newton, from_low), torch.where(right, newton, from_high)
            # A step that overshoots an end says that the root is near it: the next is from there.
            other = torch.where(left, from_high, from_low)
            useful = (other >= low) & (other <= high) & (other != x)
            otherwise = torch.where(useful, other, (low + high) / 2)
            x = torch.where((newton >= low) & (newton <= high), newton, otherwise)
    x = best  # where Newton's step leaves the bracket by rounding alone, an earlier point is nearer
    for _ in range(POLISH):
        value, derivative = f_and_derivative(x)
        error = value - target
        # A derivative that rounds to zero must not make 0 / 0 of a root that has been found.
        x = x - (error - error.detach()) / derivative.clamp_min(torch.finfo(x.dtype).tiny)
    return x
