"""The root of an increasing function, in few steps, within a bracket, and with exact gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowkit.domain import is_transformed, may_branch

POLISH = 2  # differentiable Newton steps: with one the first derivatives are exact, with two the first three
TOLERANCE = 1e-9  # what maps that are inverted by it declare, in float64; float32 ends at its own rounding
SHRINK = 0.5  # a Newton step that is longer than this part of the step before gives way to a bisection
NOISE = 4  # an error of so many roundings of the numbers at hand can be rounding
SETTLED = 3  # points near a root that are no better than rounding allows, before it counts as found
TIGHT = 64  # a bracket of so many roundings is searched by bisection
Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def solve_monotone(
    f_and_derivative: Function, target: Tensor, low: Tensor, high: Tensor, steps: int, start: Tensor | None = None
) -> Tensor:
    """x with f(x) = target, elementwise, for an increasing f whose root lies between `low` and `high`.

    Newton's method, which gives way to bisection where it would leave the bracket, or where its steps do not halve: f
    is computed at most `steps` times. None of these steps is recorded. Where gradients are wanted, Newton steps that
    are recorded follow: their gradients with respect to the target, and to all that f holds, are those of the implicit
    function theorem. They leave the value as it is, for where f is nearly flat its rounding would take an unguarded
    step far away. What is compiled or exported takes all steps, without branches on data, as one graph; eager mode
    stops when all elements are found, and gets the same: what has been found is not touched again.

    Args:
        f_and_derivative: gives f(x) and its derivative, which is positive, both of x's shape.
        target: the values of f to reach.
        low, high: bounds of the root, of the target's shape.
        steps: how often f is computed at most.
        start: where to begin within the bracket; by default in its middle.

    >>> target = torch.tensor([0.0, 10.0])
    >>> x = solve_monotone(lambda x: (x**3 + x, 3 * x**2 + 1), target, target * 0 - 1, target, 12)
    >>> [round(value, 4) for value in x.tolist()]
    [0.0, 2.0]
    """
    with torch.no_grad():
        x = _search(f_and_derivative, target, low, high, steps, (low + high) / 2 if start is None else start)
    if not (torch.is_grad_enabled() or is_transformed()):
        return x
    for _ in range(POLISH):
        value, derivative = f_and_derivative(x)
        error = value - target
        # A derivative that rounds to zero must not make 0 / 0 of a root that has been found.
        x = x - (error - error.detach()) / derivative.clamp_min(torch.finfo(x.dtype).tiny)
    return x


def _search(function: Function, target: Tensor, low: Tensor, high: Tensor, steps: int, x: Tensor) -> Tensor:
    """The point nearest to the root, of those where the function is computed."""
    rounding = torch.finfo(x.dtype).eps
    best, smallest, most = x, torch.full_like(x, torch.inf), high - low
    found, settled = torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.int8)
    from_low, from_high = low, high  # Newton's step from either end, or the end itself until f is computed there
    may_stop = may_branch(x)
    for _ in range(steps):
        value, derivative = function(x)
        error = value - target
        size, move = error.abs(), error / derivative
        better = (size < smallest) & ~found
        low, high, middle = _narrowed(low, high, x, error)
        # Where an error that rounding explains is not halved, rounding is all there is: of a few such points the best
        # is taken.
        noise = NOISE * rounding * (1 + target.abs() + derivative * x.abs())
        near, ulps = size <= noise, 2 * rounding * x.abs()
        settled = settled + ((move.abs() <= ulps) | (near & (size > smallest / 2)))
        found = found | (settled >= SETTLED) | (error == 0) | (high - low <= ulps)
        best, smallest = torch.where(better, x, best), torch.where(better, size, smallest)
        if may_stop and bool((found | error.isnan()).all()):
            break
        newton, tight = x - move, high - low <= TIGHT * rounding * (1 + x.abs())
        from_low = torch.where(error <= 0, newton, from_low)
        from_high = torch.where(error >= 0, newton, from_high)
        # A step that overshoots an end says that the root is near it: the next is from there.
        other = torch.where(error <= 0, from_high, from_low)
        step = torch.where((newton >= low) & (newton <= high), newton, other)
        trusted = (step >= low) & (step <= high) & ((step - x).abs() <= most) & (step != x)
        clamped = near & ~tight
        following = torch.where(trusted, step, torch.where(clamped, newton.clamp(low, high), middle))
        # A bisection is followed by a step of any length, so that not even a root at an end is come near by halves.
        most = torch.where(trusted | clamped, SHRINK * (following - x).abs(), high - low)
        x = following
    return best


def _narrowed(low: Tensor, high: Tensor, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bracket after f's sign at x, and its middle."""
    low, high = torch.where(error <= 0, x, low), torch.where(error >= 0, x, high)
    return low, high, (low + high) / 2
