"""Sylvester flows: planar flows with several hidden units, orthogonal to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, Prepared, join
from flowkit.bijections.conditioning import check_conditions, default_subnet
from flowkit.bijections.linear import full_precision, widened
from flowkit.bijections.orthogonal import hold, householder, reflection_vectors
from flowkit.bijections.planar import STEPS, positive, slope_of
from flowkit.bisection import solve_monotone
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.subnets import MLP, build_subnet


def _examples() -> list[Example]:
    mlp = MLP(hidden=4, activation="silu")
    return [
        Example((1,)),
        Example((3,), units=2, reflections=3),
        Example((2,)),
        Example((3,), given=((2,), (1,)), units=2, subnet=mlp),
    ]


@register("flowkit.sylvester", examples=_examples)
class Sylvester(Bijection):
    """y = x + Q R tanh(S Q^T x + b): M orthonormal columns Q, triangular matrices R and S.

    forward: y = x + Q R t, t = tanh(S Q^T x + b), log-det the sum over i of log(1 + R_ii S_ii (1 - t_i^2)).
    inverse: x = y - Q R t, where a = Q^T x solves a + R tanh(S a + b) = Q^T y from its last element to its first, one
    scalar root each; log-det minus the above.

    R and S are upper triangular, so each equation holds one unknown once those after it are found. S_ii = g(p_i) and
    R_ii = (g(q_i) - 1) / S_ii with g of `fk.Planar`, so that R_ii S_ii > -0.99. Q is M columns of a product of
    reflections. The roots are found to rounding, with exact gradients, see `flowkit.bisection`; the tolerance 1e-12 is
    that of float64. It starts as the identity, R = 0. Van den Berg et al. 2018, equations 13 to 15.

    With conditions `(B, C')` a subnet predicts what is added to every one of the learned numbers, those of Q among
    them: K D + M^2 + 2 M for each row, K the number of reflections (their amortised Householder flow).

    Shapes: x `(B, D)`, log_det `(B,)`.

    Args:
        shape: event shape `(D,)`.
        given: shapes of the conditions, vectors.
        subnet: with conditions, a recipe, see `flowkit.subnets`; by default `MLP()`.
        units: M, from 1 to D; D by default.
        reflections: how many of them make Q; by default D, or one fewer where D is odd, but at least 2.

    Raises:
        ShapeError: data or a condition that is no vector; a subnet that does not fit.
        ConfigError: units or reflections out of range; a subnet without conditions or not a recipe.

    >>> y, log_det = Sylvester((3,), given=(2,), units=2)(torch.ones(5, 3), torch.zeros(5, 2))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    vectors: Tensor
    iterative = True
    tolerance = 1e-12

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        units: int | None = None,
        reflections: int | None = None,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        if len(shape) != 1 or not shape[0]:
            raise ShapeError(f"Sylvester needs vectors (D,), got shape {shape}: put fk.Flatten before it")
        channels = check_conditions("Sylvester", shape, self.condition_shapes)
        if subnet is not None and not self.condition_shapes:
            raise ConfigError(f"Sylvester: a subnet needs conditions to predict from, got {subnet!r} and none")
        units = shape[0] if units is None else units
        if not is_int(units) or not 1 <= units <= shape[0]:
            raise ConfigError(f"Sylvester: units must be a whole number from 1 to {shape[0]}, got {units!r}")
        self.units = units
        hold(self, "vectors", reflection_vectors("Sylvester", shape[0], reflections))
        # R above the diagonal, S transposed below it, q on it: no entry goes unused.
        self.triangles = nn.Parameter((torch.randn(units, units) * units**-0.5).tril(-1))
        self.inner_diagonal = nn.Parameter(torch.zeros(units))
        self.bias = nn.Parameter(torch.zeros(units))
        self.subnet: nn.Module | None = None
        if self.condition_shapes:
            recipe = default_subnet(shape) if subnet is None else subnet
            self.subnet = build_subnet(recipe, (channels,), (), sum(each.numel() for each in self._learned()))

    def _learned(self) -> list[Tensor]:
        learned: list[Tensor] = [self.triangles, self.inner_diagonal, self.bias]
        # For one dimension the vectors are not learned, nor is there anything to predict.
        return [self.vectors, *learned] if self.in_shapes[0][0] > 1 else learned

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """The matrices for the rows of the conditions: all of the work but the map itself."""
        return self._matrices(conditions) if conditions else None

    def _matrices(self, given: tuple = ()) -> tuple[Tensor, ...]:
        """Q, R, S, b and 1 + R_ii S_ii, the last without cancellation; with conditions for each of their R rows."""
        if given and isinstance(given[0], Prepared):
            return given[0]
        numbers = [widened(each) for each in self._learned()]
        if self.subnet is not None:
            predicted = self.subnet(join(given)).to(numbers[0].dtype)
            parts = predicted.split([each.numel() for each in numbers], 1)
            numbers = [each + part.reshape(-1, *each.shape) for each, part in zip(numbers, parts, strict=True)]
        vectors = numbers[0] if len(numbers) == 4 else widened(self.vectors)
        triangles, inner_diagonal, bias = numbers[-3:]
        stretch, inner = positive(triangles.diagonal(dim1=-2, dim2=-1)), positive(inner_diagonal)
        outer = triangles.triu(1) + ((stretch - 1) / inner).diag_embed()
        return householder(vectors, self.units), outer, triangles.tril(-1).mT + inner.diag_embed(), bias, stretch

    def _rows(self, x: Tensor, bias: Tensor) -> Tensor:
        """x of S x R rows as `(S, R, D)`, so that matrices of R rows broadcast; x itself where they fit."""
        if self.subnet is None or x.shape[0] == bias.shape[0]:
            return x
        rows = bias.shape[0]
        return x.unflatten(0, (x.shape[0] // rows if rows else 0, rows))

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x + Q R tanh(S Q^T x + b), log_det)`; `given` is the conditions or one `fk.Prepared`."""
        with full_precision(x):
            q, outer, inner, bias, stretch = self._matrices(given)
            rows = self._rows(x.to(bias.dtype), bias)
            t = (_times(_times(rows, q), inner.mT) + bias).tanh()
            y = rows + _times(_times(t, outer.mT), q.mT)
            return y.reshape(x.shape), slope_of(t, stretch).log().sum(-1).reshape(x.shape[:1])

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(y - Q R t, log_det)`, with t from the last unit to the first."""
        with full_precision(y):
            q, outer, inner, bias, stretch = self._matrices(given)
            rows = self._rows(y.to(bias.dtype), bias)
            targets = _times(rows, q)
            found = t = targets[..., :0]
            for i in reversed(range(self.units)):
                target = targets[..., i] - (t * outer[..., i, i + 1 :]).sum(-1)
                offset = (found * inner[..., i, i + 1 :]).sum(-1) + bias[..., i]
                a = _root(target, outer[..., i, i], inner[..., i, i], offset, stretch[..., i])
                found = torch.cat((a.unsqueeze(-1), found), -1)
                t = torch.cat(((inner[..., i, i] * a + offset).tanh().unsqueeze(-1), t), -1)
            x = rows - _times(_times(t, outer.mT), q.mT)
            return x.reshape(y.shape), -slope_of(t, stretch).log().sum(-1).reshape(y.shape[:1])

    def extra_repr(self) -> str:
        """The event shape and the number of units."""
        return f"{self.in_shapes[0]}, units={self.units}"


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows @ matrix` for one matrix, or for one of each row."""
    return rows @ matrix if matrix.dim() == 2 else (rows.unsqueeze(-2) @ matrix).squeeze(-2)


def _root(target: Tensor, outer: Tensor, inner: Tensor, offset: Tensor, stretch: Tensor) -> Tensor:
    """a with a + outer tanh(inner a + offset) = target."""

    def function(a: Tensor) -> tuple[Tensor, Tensor]:
        t = (inner * a + offset).tanh()
        return a + outer * t, slope_of(t, stretch)

    width = outer.abs()
    return solve_monotone(function, target, target - width, target + width, STEPS)
