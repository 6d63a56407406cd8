"""The root x of x + g(x) = y for a contraction g, with exact gradients, and the check that it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkit.domain import has_values, may_branch
from flowkit.errors import ConvergenceError
from flowkit.first_order import refuse_second
from flowkit.jacobian_net import Linearized

POLISH = 2  # recorded Newton steps: with one the first derivatives are exact, with two the first three
LENGTHS = (1.0, 0.5, 0.25)  # of Newton's step: measured on trained nets, 7 steps were enough, with 1 alone 21
ROUNDINGS = 256  # a residual cannot be expected to be smaller than so many roundings
Function = Callable[[Tensor], Linearized]


def limit_of(y: Tensor, tolerance: float, least: float = 1.0) -> Tensor:
    """What the residual's norm may be at most, `(B,)`: relative to 1 + |y|, or to `least` + |y|."""
    return max(tolerance, ROUNDINGS * torch.finfo(y.dtype).eps) * (least + _norm(y))


def newton_or_picard(owner: str, function: Function, y: Tensor, iterations: int, tolerance: float) -> Tensor:
    """The root by steps of which each is the best of x <- y - g(x), Newton's, a half and a quarter of Newton's.

    The residual shrinks by the Lipschitz constant of g at every step at least, and is squared near the root; the parts
    of Newton's step are for trained nets that bend sharply, where whole steps overshoot again and again. In eager mode
    the steps end when every row's residual is below the tolerance, and the recorded steps, which square it twice, come
    to the same for every row; elsewhere their number is fixed, and there are no branches on data.

    Raises:
        ConvergenceError: the residual is above the tolerance.
    """

    def newton(x: Tensor) -> tuple[Tensor, Tensor]:
        g = function(x)
        residual = y - x - g.value
        matrix = g.jacobian()
        matrix = matrix + torch.eye(matrix.shape[-1], dtype=y.dtype, device=y.device)
        return torch.linalg.solve(matrix, residual.flatten(1).unsqueeze(2)).reshape(y.shape), residual

    limit = limit_of(y.detach(), tolerance)
    with torch.no_grad():
        x = y - function(y).value
        for _ in range(iterations):
            step, residual = newton(x)
            roots = torch.stack((x + residual, *[x + length * step for length in LENGTHS]))
            rest = y - roots - function(roots.flatten(0, 1)).value.view(roots.shape)
            norms = torch.linalg.vector_norm(rest.flatten(2), dim=2)
            best = norms.nan_to_num(torch.inf).argmin(0).reshape(1, -1, *[1] * (y.dim() - 1))
            x = roots.gather(0, best.expand(1, *y.shape))[0]
            if may_branch(y) and not (norms.nan_to_num(torch.inf).amin(0) > limit).any():
                break
    for _ in range(POLISH):
        step, residual = newton(x)
        x = x + step
    _check(owner, residual.detach(), limit, iterations)
    return x


def fixed_point(owner: str, function: Function, y: Tensor, iterations: int, tolerance: float) -> Tensor:
    """The root by x <- y - g(x) until the residual of every row is below the tolerance; `iterations` at most.

    Gradients come by the implicit function theorem, whose linear system is solved likewise; they are not recorded, and
    a second derivative is refused.

    Raises:
        ConvergenceError: the residual is above the tolerance after that many steps, here or in backward.
        BackpropError: in backward, a second derivative is wanted.
    """
    limit = limit_of(y.detach(), tolerance)
    with torch.no_grad():
        x = y
        for _ in range(iterations):
            residual = y - x - function(x).value
            if not (_norm(residual) > limit).any():  # not a number: passed on
                break
            x = x + residual
        else:
            _check(owner, y - x - function(x).value, limit, iterations)
    g = function(x.detach())
    return _Root.apply(y - g.value, x, g, (owner, iterations, tolerance))


class _Root(torch.autograd.Function):
    """x, as a function of y - g(x) with x held fixed: backward multiplies by the inverse of I + J^T."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, x: Tensor, g: Linearized, settings: tuple) -> Tensor:
        ctx.g, ctx.settings = g, settings
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        owner, iterations, tolerance = ctx.settings
        refuse_second(f"{owner}'s inverse by the fixed point: use log_det='exact'")
        limit, solution = limit_of(grad, tolerance, 0.0), grad  # a gradient has no scale of its own
        for _ in range(iterations):
            residual = grad - solution - ctx.g.pull(solution.unsqueeze(0))[0]
            if not (_norm(residual) > limit).any():
                break
            solution = solution + residual
        else:
            _check(f"{owner}'s gradient", residual, limit, iterations)
        return solution, None, None, None


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _check(owner: str, residual: Tensor, limit: Tensor, iterations: int) -> None:
    if not has_values(residual):
        return
    norm = _norm(residual)
    if not (norm > limit).any():
        return
    row = int((norm / limit).nan_to_num(0).argmax())
    raise ConvergenceError(
        f"{owner}: row {row} has a residual of {norm[row].item():.3g} after {iterations} iterations, and may have "
        f"{limit[row].item():.3g}: allow more iterations, or a smaller coeff"
    )
