"""Linear maps of the channels, the same at every position: a fixed rotation, and a learned matrix as P L U."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import HALF, Bijection, zero_log_det
from flowkit.bijections.randomness import check_order, random_rotation
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import Shape, numel


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Autocast switched off for x's device: a linear map in half precision is not inverted by its inverse."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """`weight @ x` on channels at every position, x `(B, C, ...)`.

    A product, not a convolution: torch lets convolutions round to TF32 by default, products not.
    """
    if x.dim() == 2:
        return x @ weight.T
    return torch.matmul(weight, x.flatten(2)).view(x.shape)


def channels_of(owner: str, shape: Shape) -> int:
    """The number of channels of an event shape, for the bijection named `owner`, which mixes them."""
    if not shape:
        raise ShapeError(f"{owner} needs channels to mix, at least one event dimension, got shape ()")
    return shape[0]


def widened(parameter: Tensor) -> Tensor:
    """Float32 or wider: LAPACK has no half precision."""
    return parameter.float() if parameter.dtype in HALF else parameter


class MatrixLinear(Bijection):
    """What the learned matrices on channels share: a subclass has `weight`, `inverse_weight` and `log_abs_det`."""

    constant_log_det = True

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape)
        channels_of(type(self).__name__, self.in_shapes[0])

    def weight(self) -> Tensor:
        """The matrix, `(C, C)`."""
        raise NotImplementedError(f"{type(self).__name__} has no weight")

    def inverse_weight(self) -> Tensor:
        """The inverse matrix, `(C, C)`."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse_weight")

    def log_abs_det(self) -> Tensor:
        """The log of the absolute determinant of the matrix, `()`, float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} has no log_abs_det")

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """The largest singular value of the matrix over the smallest, `()`: rounding errors grow by up to this."""
        return torch.linalg.cond(self.weight())

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_abs_det() * numel(self.in_shapes[0][1:])).expand(x.shape[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(W x, log_det)`."""
        with full_precision(x):
            weight = self.weight()
            return mix(weight, x.to(weight.dtype)), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(W^-1 y, log_det)`."""
        with full_precision(y):
            weight = self.inverse_weight()
            return mix(weight, y.to(weight.dtype)), -self._log_det(y)

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _rotation_examples() -> list[Example]:
    return [Example((1,)), Example((3,)), Example((4,)), Example((3, 4)), Example((3, 2, 2)), Example((2, 2, 1, 3))]


@register("flowkit.fixed_rotation", examples=_rotation_examples)
class FixedRotation(Bijection):
    """A fixed random rotation of the channels: y = Q x at every position.

    forward: y = Q x, log-det 0. inverse: x = Q^T y, log-det 0. Float32 or wider, under autocast too.

    Q is drawn when constructed, from torch's generator, uniformly over all rotations (the Haar measure). It is
    orthogonal to the precision of its dtype: where a module or a saved state is widened to float64, Q is
    orthogonalised again, so that the transpose stays the inverse.

    Cost: the log-det is free, and both directions take C^2 products a position. The condition number is 1.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the buffer `rotation` `(C, C)`.

    Args:
        shape: event shape `(C, ...)`.

    Raises:
        ShapeError: shape ().

    >>> rotation, x = FixedRotation((3,)), torch.randn(2, 3)
    >>> torch.allclose(rotation(x)[0].norm(dim=1), x.norm(dim=1))
    True
    """

    constant_log_det = True
    volume_preserving = True

    rotation: Tensor

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape)
        channels = channels_of("FixedRotation", self.in_shapes[0])
        self.register_buffer("rotation", random_rotation(channels).to(torch.get_default_dtype()))

    def check_state(self) -> None:
        """Refuse a matrix, from a file, that is no rotation: its log-det would not be 0."""
        q = self.rotation.double()
        error = (q @ q.T - torch.eye(len(q), dtype=q.dtype, device=q.device)).abs().amax()
        if not error <= 8 * len(q) * torch.finfo(self.rotation.dtype).eps:
            raise ConfigError(f"FixedRotation: rotation must be an orthogonal matrix, it is off by {error:.1e}")

    def weight(self) -> Tensor:
        """The matrix Q, `(C, C)`."""
        return self.rotation

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """The largest singular value of Q over the smallest, `()`: 1 but for the rounding of Q's entries."""
        return torch.linalg.cond(widened(self.rotation))

    def _turn(self, rotation: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            return mix(rotation, x.to(rotation.dtype)), zero_log_det(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(Q x, 0)`."""
        return self._turn(self.rotation, x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(Q^T y, 0)`."""
        return self._turn(self.rotation.T, y)

    def _apply(self, fn: Callable, recurse: bool = True) -> FixedRotation:
        before = self.rotation.dtype
        super()._apply(fn, recurse)
        self._orthogonalize_if_wider_than(before)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if isinstance(loaded := state_dict.get(prefix + "rotation"), Tensor):
            self._orthogonalize_if_wider_than(loaded.dtype)

    @torch.no_grad()
    def _orthogonalize_if_wider_than(self, dtype: torch.dtype) -> None:
        q = self.rotation
        if torch.finfo(q.dtype).eps < torch.finfo(dtype).eps and not q.is_meta:
            for _ in range(3):  # Newton-Schulz squares the error: 1e-2 (from bfloat16), 1e-4, 1e-8, 1e-16
                q = 1.5 * q - 0.5 * q @ (q.T @ q)
            self.rotation.copy_(q)

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _lu_examples() -> list[Example]:
    return [
        Example((1,)),
        Example((3,)),
        Example((4,), init="identity"),
        Example((3, 4)),
        Example((3, 2, 2)),
        Example((2, 2, 1, 3), init="identity"),
    ]


@register("flowkit.lu_linear", examples=_lu_examples)
class LULinear(MatrixLinear):
    """A learned invertible matrix on the channels (Glow's 1x1 convolution): y = P L U x at every position.

    forward: y = P L U x, log-det H W times the sum of the log of abs(diagonal of U).
    inverse: x = U^-1 L^-1 P^T y by two triangular solves, log-det minus that. Float32 or wider, under autocast too.

    P is a fixed permutation, L has ones on its diagonal, U has sign exp(log diagonal), so the log-det is a sum and the
    matrix cannot become singular, though its condition number is not bounded.

    Cost: the log-det is a sum of C numbers. The matrix is built once a call, with C^3 products, its inverse by two
    triangular solves, with C^3, and both directions then take C^2 products a position; the inverse of a vector is
    solved for directly, with C^2.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the parameter `packed` `(C, C)`, as LAPACK packs an LU
    decomposition (L below the diagonal, U above it, the log of abs(U)'s diagonal on it), and the buffers `sign` `(C,)`
    and `order` `(C,)`: row i of the product is row order[i] of L U.

    Args:
        shape: event shape `(C, ...)`.
        init: `"rotation"` starts as a random rotation, drawn from torch's generator, `"identity"` as the identity.

    Raises:
        ShapeError: shape ().
        ConfigError: an unknown init.

    Source: Kingma and Dhariwal, Glow, 2018, section 3.2.

    >>> linear, x = LULinear((3, 8, 8)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(linear.inverse(linear(x)[0])[0], x, atol=1e-5)
    True
    """

    sign: Tensor
    order: Tensor

    def __init__(self, shape: int | Sequence[int], init: str = "rotation"):
        super().__init__(shape)
        channels = self.in_shapes[0][0]
        if init not in ("rotation", "identity"):
            raise ConfigError(f"LULinear: init must be 'rotation' or 'identity', got {init!r}")
        packed = torch.zeros(channels, channels, dtype=torch.float64)
        sign, order = torch.ones(channels, dtype=torch.float64), torch.arange(channels)
        if init == "rotation":
            permutation, lower, upper = torch.linalg.lu(random_rotation(channels))
            diagonal = upper.diagonal()
            packed = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
            sign, order = diagonal.sign(), permutation.argmax(1)
        dtype = torch.get_default_dtype()
        self.packed = nn.Parameter(packed.to(dtype))
        self.register_buffer("sign", sign.to(dtype))
        self.register_buffer("order", order)

    def check_state(self) -> None:
        """Refuse an order or signs, from a file, with which the matrix would have no inverse."""
        check_order("LULinear", self.order)
        if not bool((self.sign.abs() == 1).all()):
            raise ConfigError("LULinear: sign must hold 1 and -1 alone")

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L, with whatever lies on and above its diagonal, and U."""
        packed = widened(self.packed)
        return packed, packed.triu(1) + (self.sign.to(packed.dtype) * packed.diagonal().exp()).diag_embed()

    def weight(self) -> Tensor:
        """The matrix P L U, `(C, C)`."""
        with full_precision(self.packed):
            lower, upper = self._factors()
            return (upper + lower.tril(-1) @ upper).index_select(0, self.order)

    def inverse_weight(self) -> Tensor:
        """The matrix U^-1 L^-1 P^T, `(C, C)`."""
        with full_precision(self.packed):
            packed = self.packed
            return self._solve(torch.eye(len(packed), dtype=widened(packed).dtype, device=packed.device)).T

    def log_abs_det(self) -> Tensor:
        """The sum of the log of abs(U)'s diagonal, `()`."""
        return widened(self.packed).diagonal().sum()

    def _solve(self, rows: Tensor) -> Tensor:
        """`rows (P L U)^-T`, for rows `(M, C)`: in this layout the solver needs no copies."""
        lower, upper = self._factors()
        rows = rows.index_select(1, self.order.argsort())
        rows = torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper.T, rows, upper=False, left=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(U^-1 L^-1 P^T y, log_det)`; on maps the inverse matrix is solved for once, and applied everywhere."""
        if y.dim() > 2:  # as exact but for a small factor, and five to ten times as fast as solving at every position
            return super().inverse(y)
        with full_precision(y):
            return self._solve(y.to(widened(self.packed).dtype)), -self._log_det(y)
