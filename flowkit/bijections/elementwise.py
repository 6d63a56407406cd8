"""Elementwise maps: every element by itself, its parameters learned or predicted from the conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, Prepared, event_sum, join
from flowkit.bijections.conditioning import check_conditions, default_subnet
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import numel
from flowkit.subnets import MLP, ConvNet, build_subnet
from flowkit.univariate import Affine


def _examples() -> list[Example]:
    mlp, conv = MLP(hidden=5, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example(()),
        Example((1,)),
        Example((3,), clamp="tanh", limit=1.0),
        Example((3, 4), clamp="atan"),
        Example((3, 2, 3)),
        Example((1, 2, 2, 3), clamp="softsign"),
        Example((), given=(2,), subnet=mlp),
        Example((1,), given=((2,), (1,)), subnet=mlp, clamp="tanh"),
        Example((3, 2, 2), given=((2, 2, 2),), subnet=conv, clamp="softsign", limit=1.0),
    ]


@register("flowkit.elementwise_affine", examples=_examples)
class ElementwiseAffine(Bijection):
    """y = x exp(s) + t: s and t learned per channel, or with conditions predicted for every element.

    forward: y = x exp(s) + t, log-det the sum of s over the event. inverse: x = (y - t) exp(-s), log-det minus that.

    Without conditions s = clamp(r) and t are parameters `(C, 1, ...)`, and the log-det is constant. With conditions
    `(B, C', ...)` of the data's spatial size (vectors for scalar data) a subnet turns them into r and t of x's shape.
    It works on one channel and on shape (), where a coupling cannot. It starts as the identity.

    Shapes: x `(B, C, ...)` or `(B,)`, log_det `(B,)`.

    Args:
        shape: event shape `(C, ...)`, or `()`.
        given: shapes of the conditions.
        subnet: with conditions, a recipe, see `flowkit.subnets`; by default `MLP()` for vectors and scalars,
            `ConvNet()` for maps.
        clamp: None, `"tanh"`, `"atan"` or `"softsign"`, see `fk.Affine`; None lets exp overflow float32 beyond s = 88.
        limit: the bound on s where there is a clamp.

    Raises:
        ShapeError: a condition of another spatial size; a subnet that does not fit.
        ConfigError: an unknown clamp, a limit that is not positive, a subnet without conditions or not a recipe.

    >>> y, log_det = ElementwiseAffine((), given=(10,))(torch.ones(5), torch.zeros(5, 10))
    >>> y.shape, log_det.shape
    (torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        clamp: str | None = None,
        limit: float = 2.0,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        name = type(self).__name__
        channels = check_conditions(name, shape, self.condition_shapes)
        if subnet is not None and not self.condition_shapes:
            raise ConfigError(f"{name}: a subnet needs conditions to predict from, got {subnet!r} and none")
        self.univariate = Affine(shape, clamp, limit)
        # An instance without conditions keeps a promise that the class cannot make.
        self.constant_log_det = not self.condition_shapes
        self.subnet: nn.Module | None = None
        if self.condition_shapes:
            recipe = default_subnet(shape) if subnet is None else subnet
            self.subnet = build_subnet(recipe, (channels, *shape[1:]), (), 2 * numel(shape[:1]))
        else:
            per_channel = shape[:1] + (1,) * len(shape[1:])
            self.log_scale = nn.Parameter(torch.zeros(per_channel))  # before the clamp
            self.shift = nn.Parameter(torch.zeros(per_channel))

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """`(s, t)` for the rows of the conditions: all of the work but the map itself."""
        return self._predicted(conditions) if conditions else None

    def _predicted(self, conditions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        assert self.subnet is not None
        predicted = self.subnet(join(conditions))
        raw, shift = predicted.chunk(2, 1) if self.in_shapes[0] else predicted.unbind(1)
        s = self.univariate.log_scale(raw)
        return s, shift.to(s.dtype)

    def _scale_and_shift(self, given: tuple) -> tuple[Tensor, Tensor]:
        """s and t: per channel, or for the rows of the conditions."""
        if self.subnet is None:
            return self.univariate.log_scale(self.log_scale), self.shift
        return given[0] if isinstance(given[0], Prepared) else self._predicted(given)

    def _log_det(self, s: Tensor, batch: int) -> Tensor:
        if self.subnet is None:
            return (s.sum() * numel(self.in_shapes[0][1:])).expand(batch)
        log_det = event_sum(s)
        rows = log_det.shape[0]
        return log_det if rows == batch else log_det.expand(batch // rows if rows else 0, rows).flatten()

    def _rows(self, x: Tensor, s: Tensor) -> Tensor:
        """x of S x R rows as `(S, R, ...)`, so that parameters of R rows broadcast; x itself where they fit."""
        if self.subnet is None or x.shape[0] == s.shape[0]:
            return x
        rows = s.shape[0]
        return x.unflatten(0, (x.shape[0] // rows if rows else 0, rows))

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x exp(s) + t, log_det)`; `given` is the conditions or one `fk.Prepared`."""
        s, t = self._scale_and_shift(given)
        y = torch.addcmul(t, self._rows(x, s), s.exp())
        return y.reshape(x.shape), self._log_det(s, x.shape[0])

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`((y - t) exp(-s), log_det)`."""
        s, t = self._scale_and_shift(given)
        x = (self._rows(y, s) - t) * (-s).exp()
        return x.reshape(y.shape), -self._log_det(s, y.shape[0])

    def log_scales(self, x: Tensor, *given: Any) -> Tensor:
        """s of every element of x, in x's shape."""
        s = self._scale_and_shift(given)[0]
        return s.expand(self._rows(x, s).shape).reshape(x.shape)

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _conditional_examples() -> list[Example]:
    mlp, conv = MLP(hidden=5, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((3,), given=(2,), subnet=mlp),
        Example((1, 4), given=((2, 4), (1, 4)), subnet=conv, clamp="atan"),
        Example((3, 2, 2), given=((2, 2, 2),), subnet=conv, clamp="softsign", limit=1.0),
        Example((), given=(2,), subnet=mlp, clamp=None),
    ]


@register("flowkit.conditional_affine", examples=_conditional_examples)
class ConditionalAffine(ElementwiseAffine):
    """The conditional affine transform: all of x is scaled and shifted by what the conditions alone predict.

    forward: y = x exp(s(c)) + t(c), log-det the sum of s. inverse: x = (y - t(c)) exp(-s(c)), log-det minus that.

    It is `fk.ElementwiseAffine` that insists on a condition and bounds its log-scale; all of its work but the map
    itself is done once for the rows of a condition. It starts as the identity.

    Shapes: x `(B, C, ...)` or `(B,)`, conditions `(B, C', ...)` of the data's spatial size, log_det `(B,)`.

    Args:
        shape, given, subnet, clamp, limit: see `fk.ElementwiseAffine`.

    Raises:
        ShapeError: no condition, or one of another spatial size; a subnet that does not fit.
        ConfigError: an unknown clamp, a limit that is not positive, a subnet that is not a recipe.

    Source: Park et al., Semantic image synthesis with spatially-adaptive normalization (SPADE), 2019, as a bijection;
        FrEIA's `ConditionalAffineTransform`.

    >>> y, log_det = ConditionalAffine((3,), given=(10,))(torch.ones(5, 3), torch.zeros(5, 10))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        clamp: str | None = "tanh",
        limit: float = 2.0,
    ):
        if isinstance(given, Sequence) and not given:
            raise ShapeError(
                "ConditionalAffine needs at least one condition, got none: name one with given=, or use "
                "fk.ElementwiseAffine"
            )
        super().__init__(shape, given, subnet, clamp, limit)
