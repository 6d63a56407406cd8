"""torch.distributions: a bijection as a Transform, so that a TransformedDistribution can be built on it."""

from __future__ import annotations

from typing import Any, ClassVar

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
        conditions: its conditions, each `(*shape)` without a batch dimension: the same for every row.

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
        if shapes != bijection.condition_shapes:
            raise ShapeError(
                f"{type(bijection).__name__} takes conditions of shapes {bijection.condition_shapes}, got {shapes}"
            )
        self.bijection, self.conditions = bijection, conditions
        (self._in,), (self._out,) = bijection.in_shapes, bijection.out_shapes
        self.domain: Any = constraints.independent(constraints.real, len(self._in))
        self.codomain: Any = constraints.independent(constraints.real, len(self._out))

    def _run(self, name: str, value: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        lead = value.shape[: value.dim() - len(old)]
        rows = value.reshape(numel(tuple(lead)), *old)
        conditions = [c.expand(rows.shape[0], *c.shape) for c in self.conditions]
        method = self.bijection if name == "forward" else self.bijection.inverse
        output, log_det = method(rows, *conditions)
        return as_tuple(output)[0].reshape(*lead, *new), log_det.reshape(lead)

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
