"""torch.distributions: a bijection as a Transform, so that a TransformedDistribution can be built on it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from flowkit.bijection import Bijection, as_tuple
from flowkit.errors import ShapeError
from flowkit.shapes import numel


class BijectionTransform(Transform):
    """A bijection of one input and one output as a `torch.distributions.Transform`, data to latent.

    Its `.inv` maps latent to data: `TransformedDistribution(base, [BijectionTransform(b).inv])` is the flow's density.

    Args:
        bijection: a bijection with one input and one output.
        conditions: its conditions, each `(*batch, *shape)`; the batch, if any, broadcasts against x's.

    Raises:
        ShapeError: several inputs or outputs, or conditions of other shapes.

    >>> import torch
    >>> import flowkit as fk
    >>> BijectionTransform(fk.Permute((3,)))(torch.zeros(5, 4, 3)).shape
    torch.Size([5, 4, 3])
    """

    bijective = True
    sign: ClassVar[int] = 1

    def __init__(self, bijection: Bijection, *conditions: Tensor):
        super().__init__()
        if len(bijection.in_shapes) != 1 or len(bijection.out_shapes) != 1:
            raise ShapeError(
                f"a Transform needs one input and one output, {type(bijection).__name__} has "
                f"{len(bijection.in_shapes)} and {len(bijection.out_shapes)}"
            )
        shapes = tuple(tuple(c.shape) for c in conditions)
        fits = [shape[len(shape) - len(s) :] == s for shape, s in zip(shapes, bijection.condition_shapes, strict=False)]
        if len(shapes) != len(bijection.condition_shapes) or not all(fits):
            raise ShapeError(
                f"{type(bijection).__name__} takes conditions of shapes {bijection.condition_shapes}, got {shapes}"
            )
        self.bijection, self.conditions = bijection, conditions
        (self._in,), (self._out,) = bijection.in_shapes, bijection.out_shapes
        self.domain: Any = constraints.independent(constraints.real, len(self._in))
        self.codomain: Any = constraints.independent(constraints.real, len(self._out))

    def _run(self, name: str, value: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        lead = value.shape[: value.dim() - len(old)]
        shapes = self.bijection.condition_shapes
        leads = [c.shape[: c.dim() - len(s)] for c, s in zip(self.conditions, shapes, strict=True)]
        lead = torch.broadcast_shapes(lead, *leads)
        count = numel(tuple(lead))
        rows = value.expand(*lead, *old).reshape(count, *old)
        conditions = [c.expand(*lead, *s).reshape(count, *s) for c, s in zip(self.conditions, shapes, strict=True)]
        method = self.bijection if name == "forward" else self.bijection.inverse
        output, log_det = method(rows, *conditions)
        return as_tuple(output)[0].reshape(*lead, *new), log_det.reshape(lead)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log|det dy/dx|)` in one pass; the name is zuko's."""
        return self._run("forward", x, self._in, self._out)

    def _call(self, x: Tensor) -> Tensor:
        return self._run("forward", x, self._in, self._out)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._run("inverse", y, self._out, self._in)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx|, of the batch's shape."""
        return self._run("forward", x, self._in, self._out)[1]

    def forward_shape(self, shape: Any) -> Any:
        """The shape of y for x's."""
        return (*shape[: len(shape) - len(self._in)], *self._out)

    def inverse_shape(self, shape: Any) -> Any:
        """The shape of x for y's."""
        return (*shape[: len(shape) - len(self._out)], *self._in)
