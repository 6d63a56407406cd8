"""An invertible convolution with a 1x1 kernel, its matrix parametrised in one of several ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.bijection import Bijection
from flowkit.bijections.decompositions import QRLinear, SVDLinear
from flowkit.bijections.linear import LULinear, MatrixLinear
from flowkit.bijections.orthogonal import FORMS, OrthogonalLinear
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import as_shape

MATRICES = {"lu": LULinear, "qr": QRLinear, "svd": SVDLinear}


def _examples() -> list[Example]:
    return [
        Example((3, 2, 2)),
        Example((1, 3), form="qr"),
        Example((4, 2), form="svd"),
        Example((3, 2, 1, 2), form="householder"),
    ]


@register("flowkit.invertible_conv1x1", examples=_examples)
class InvertibleConv1x1(Bijection):
    """An invertible convolution with a 1x1 kernel: y = W x at every position, W a learned matrix on the channels.

    forward: y = W x, log-det H W times log abs det W. inverse: x = W^-1 y, log-det minus that. Float32 or wider, under
    autocast too.

    One name for the linear maps, where the form is a setting to compare: `"lu"` is `fk.LULinear`, which starts as a
    random rotation; `"qr"` is `fk.QRLinear`, `"svd"` `fk.SVDLinear`, and `"householder"`, `"matrix_exp"` and
    `"cayley"` are the forms of `fk.OrthogonalLinear`: these start as the identity.

    Cost: the log-det is a sum of C numbers, or zero for the orthogonal forms. The matrix or its inverse is built once
    a call, with a multiple of C^3 products, and both directions then take C^2 products a position.

    Shapes: x `(B, C, ...)`, any rank of at least 2. State: that of the map, in the part `linear`.

    Args:
        shape: event shape `(C, ...)`, with at least one dimension of positions.
        form: how W is parametrised.

    Raises:
        ShapeError: no dimension of positions.
        ConfigError: an unknown form.

    Source: Kingma and Dhariwal, Glow, 2018, section 3.2.

    >>> convolution, x = InvertibleConv1x1((3, 8, 8), form="svd"), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(convolution.inverse(convolution(x)[0])[0], x, atol=1e-5)
    True
    """

    constant_log_det = True

    def __init__(self, shape: int | Sequence[int], form: str = "lu"):
        super().__init__(shape)
        if len(as_shape(shape)) < 2:
            raise ShapeError(
                f"InvertibleConv1x1 needs channels and at least one dimension of positions, got shape {as_shape(shape)}"
            )
        if form not in (*MATRICES, *FORMS):
            raise ConfigError(f"InvertibleConv1x1: form must be one of {', '.join((*MATRICES, *FORMS))}, got {form!r}")
        self.form = form
        linear: MatrixLinear = OrthogonalLinear(shape, form=form) if form in FORMS else MATRICES[form](shape)
        self.linear = linear
        self.volume_preserving = linear.volume_preserving

    def weight(self) -> Tensor:
        """The matrix W, `(C, C)`."""
        return self.linear.weight()

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """The largest singular value of W over the smallest, `()`: rounding errors grow by up to this."""
        return self.linear.condition_number()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(W x, log_det)`."""
        return self.linear.forward(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(W^-1 y, log_det)`."""
        return self.linear.inverse(y)

    def extra_repr(self) -> str:
        """The event shape and the form."""
        return f"{self.in_shapes[0]}, form={self.form!r}"
