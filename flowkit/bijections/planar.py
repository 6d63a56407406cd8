"""Planar and radial flows: the whole vector moves along one direction, or away from one point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowkit.bijection import HALF, Bijection, Prepared, join
from flowkit.bijections.conditioning import check_conditions, default_subnet
from flowkit.bisection import solve_monotone
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.subnets import MLP, build_subnet

FLOOR = 0.01  # the smallest stretch: what is squeezed further cannot be inverted in float32
ONE = math.log(math.e - 1)  # softplus of this is one
STEPS = 32


def _examples() -> list[Example]:
    mlp = MLP(hidden=4, activation="silu")
    return [
        Example((1,)),
        Example((3,)),
        Example((2,), given=((2,), (1,)), subnet=mlp),
    ]


def positive(raw: Tensor) -> Tensor:
    """Any number to one above FLOOR, zero to one."""
    return FLOOR + (1 - FLOOR) * softplus(raw + ONE)


class VectorMap(Bijection):
    """What planar and radial maps share: one list of numbers, learned or predicted from the conditions."""

    sizes: tuple[int, ...]

    def __init__(self, shape: int | Sequence[int], given: int | Sequence, subnet: Any):
        super().__init__(shape, given=given)
        name, shape = type(self).__name__, self.in_shapes[0]
        if len(shape) != 1 or not shape[0]:
            raise ShapeError(f"{name} needs vectors (D,), got shape {shape}: put fk.Flatten before it")
        channels = check_conditions(name, shape, self.condition_shapes)
        if subnet is not None and not self.condition_shapes:
            raise ConfigError(f"{name}: a subnet needs conditions to predict from, got {subnet!r} and none")
        self.sizes = self._sizes(shape[0])
        self.subnet: nn.Module | None = None
        if self.condition_shapes:
            recipe = default_subnet(shape) if subnet is None else subnet
            self.subnet = build_subnet(recipe, (channels,), (), sum(self.sizes))
        else:
            self.numbers = nn.Parameter(torch.zeros(sum(self.sizes)))
            with torch.no_grad():  # a place of its own for every one in a stack; the map is still the identity
                self.numbers[: shape[0]].normal_(0, shape[0] ** -0.5)

    def _sizes(self, dim: int) -> tuple[int, ...]:
        raise NotImplementedError

    def _constrained(self, numbers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """The parameters for the rows of the conditions: all of the work but the map itself."""
        return self._values(conditions) if conditions else None

    def _values(self, given: tuple) -> tuple[Tensor, ...]:
        """The constrained parameters, `(D,)` and `()`, or with conditions `(R, D)` and `(R,)`."""
        if given and isinstance(given[0], Prepared):
            return given[0]
        numbers = self.numbers if self.subnet is None else self.subnet(join(given))
        numbers = numbers.float() if numbers.dtype in HALF else numbers
        return self._constrained(numbers.split(self.sizes, -1))

    def _rows(self, x: Tensor, parameter: Tensor) -> Tensor:
        """x of S x R rows as `(S, R, D)`, so that parameters of R rows broadcast; x itself where they fit."""
        if self.subnet is None or x.shape[0] == parameter.shape[0]:
            return x
        rows = parameter.shape[0]
        return x.unflatten(0, (x.shape[0] // rows if rows else 0, rows))

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


@register("flowkit.planar", examples=_examples)
class Planar(VectorMap):
    """y = x + u tanh(w.x + b): space is stretched or squeezed across one hyperplane.

    forward: y = x + u tanh(w.x + b), log-det log(1 + w.u (1 - tanh(w.x + b)^2)).
    inverse: x = y - u tanh(a + b), where a = w.x is the root of a + w.u tanh(a + b) = w.y, log-det minus the above.

    The map is invertible where w.u > -1. The free vector v is moved along w, so that 1 + w.u = g(w.v): u = v +
    (g(w.v) - 1 - w.v) w / |w|^2, where g(z) = 0.01 + 0.99 softplus(z + log(e - 1)), so that w.u > -0.99. The root is
    found by safeguarded Newton steps to rounding, with exact gradients, see `flowkit.bisection`; the tolerance
    1e-12 is that of float64, and where |w.u| is beyond 1e5 the bracket may not be narrow enough.

    w, v and b are parameters, or with conditions `(B, C')` all are predicted by a subnet, w around (1, ..., 1) /
    sqrt(D). It starts as the identity, v = 0. Rezende and Mohamed 2015, equation 10 and appendix A.1.

    Shapes: x `(B, D)`, log_det `(B,)`.

    Args:
        shape: event shape `(D,)`.
        given: shapes of the conditions, vectors.
        subnet: with conditions, a recipe, see `flowkit.subnets`; by default `MLP()`.

    Raises:
        ShapeError: data or a condition that is no vector; a subnet that does not fit.
        ConfigError: a subnet without conditions or not a recipe.

    >>> y, log_det = Planar((3,), given=(2,))(torch.ones(5, 3), torch.zeros(5, 2))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    iterative = True
    tolerance = 1e-12

    def __init__(self, shape: int | Sequence[int], given: int | Sequence = (), subnet: Any = None):
        super().__init__(shape, given, subnet)

    def _sizes(self, dim: int) -> tuple[int, ...]:
        return dim, dim, 1

    def _constrained(self, numbers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """w, u, b and 1 + w.u, the last without cancellation."""
        w, v, b = numbers
        if self.subnet is not None:
            w = w + w.shape[-1] ** -0.5  # a subnet starts at zero, where w has no direction
        z = (w * v).sum(-1)
        stretch = positive(z)
        square = (w * w).sum(-1).clamp_min(torch.finfo(w.dtype).tiny)
        u = v + ((stretch - 1 - z) / square).unsqueeze(-1) * w
        return w, u, b.squeeze(-1), stretch

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x + u tanh(w.x + b), log_det)`; `given` is the conditions or one `fk.Prepared`."""
        w, u, b, stretch = self._values(given)
        rows = self._rows(x, w)
        t = ((rows * w).sum(-1) + b).tanh()
        y = rows + u * t.unsqueeze(-1)
        return y.reshape(x.shape), slope_of(t, stretch).log().reshape(x.shape[:1])

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(y - u tanh(a + b), log_det)` with a + w.u tanh(a + b) = w.y."""
        w, u, b, stretch = self._values(given)
        rows = self._rows(y, w)
        target = (rows * w).sum(-1)
        product = stretch - 1

        def projected(a: Tensor) -> tuple[Tensor, Tensor]:
            t = (a + b).tanh()
            return a + product * t, slope_of(t, stretch)

        width = product.abs()
        t = (solve_monotone(projected, target, target - width, target + width, STEPS) + b).tanh()
        x = rows - u * t.unsqueeze(-1)
        return x.reshape(y.shape), -slope_of(t, stretch).log().reshape(y.shape[:1])


def slope_of(t: Tensor, stretch: Tensor) -> Tensor:
    """1 + w.u (1 - t^2) as a sum of positive numbers."""
    square = t * t
    return square + stretch * (1 - square)


@register("flowkit.radial", examples=_examples)
class Radial(VectorMap):
    """y = x + beta h(alpha, r) (x - x0), with h = 1 / (alpha + r), r = |x - x0|: towards or away from the point x0.

    forward: y = x + beta h (x - x0), log-det (D - 1) log(1 + beta h) + log(1 + alpha beta h^2).
    inverse: x = x0 + (y - x0) / (1 + beta h), where r is the positive root of r^2 + (alpha + beta - R) r - alpha R = 0
    with R = |y - x0|, log-det minus the above.

    The map is invertible where beta > -alpha. With the free numbers p and q, alpha = g(p) and beta = alpha (g(q) - 1),
    where g(z) = 0.01 + 0.99 softplus(z + log(e - 1)), so that beta > -0.99 alpha. The root has a closed form, evaluated
    without cancellation.

    x0, p and q are parameters, or with conditions `(B, C')` all are predicted by a subnet. It starts as the identity,
    q = 0. Rezende and Mohamed 2015, equation 14 and appendix A.2.

    Shapes: x `(B, D)`, log_det `(B,)`.

    Args:
        shape: event shape `(D,)`.
        given: shapes of the conditions, vectors.
        subnet: with conditions, a recipe, see `flowkit.subnets`; by default `MLP()`.

    Raises:
        ShapeError: data or a condition that is no vector; a subnet that does not fit.
        ConfigError: a subnet without conditions or not a recipe.

    >>> y, log_det = Radial((3,), given=(2,))(torch.ones(5, 3), torch.zeros(5, 2))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, shape: int | Sequence[int], given: int | Sequence = (), subnet: Any = None):
        super().__init__(shape, given, subnet)

    def _sizes(self, dim: int) -> tuple[int, ...]:
        return dim, 1, 1

    def _constrained(self, numbers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """x0, alpha and alpha + beta."""
        center, p, q = numbers
        alpha = positive(p.squeeze(-1))
        return center, alpha, alpha * positive(q.squeeze(-1))

    def _scale_and_log_det(self, r: Tensor, alpha: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """1 + beta h and the log-det, `total` being alpha + beta: positive numbers only."""
        scale = (r + total) / (r + alpha)
        slope = (r * (r + 2 * alpha) + alpha * total) / (r + alpha).square()
        return scale.unsqueeze(-1), (self.in_shapes[0][0] - 1) * scale.log() + slope.log()

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x + beta h (x - x0), log_det)`; `given` is the conditions or one `fk.Prepared`."""
        center, alpha, total = self._values(given)
        offset = self._rows(x, center) - center
        scale, log_det = self._scale_and_log_det(torch.linalg.vector_norm(offset, dim=-1), alpha, total)
        return (center + offset * scale).reshape(x.shape), log_det.reshape(x.shape[:1])

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x0 + (y - x0) / (1 + beta h), log_det)`."""
        center, alpha, total = self._values(given)
        offset = self._rows(y, center) - center
        radius = torch.linalg.vector_norm(offset, dim=-1)
        p = total - radius
        q = (torch.where(p > 0, p, -p) + (p * p + 4 * alpha * radius).sqrt()) / 2  # never zero, as total is not
        r = torch.where(p > 0, alpha * radius / q, q)
        scale, log_det = self._scale_and_log_det(r, alpha, total)
        return (center + offset / scale).reshape(y.shape), -log_det.reshape(y.shape[:1])
