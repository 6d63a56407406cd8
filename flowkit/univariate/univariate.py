"""The contract of a univariate map."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from flowkit.shapes import Shape


class Univariate(nn.Module):
    """An elementwise monotone map y = f(x; p) whose parameters p are predicted, element by element, by a subnet.

    Attributes:
        parameters_per_element: how many predicted tensors of x's shape `forward` takes after x.
    """

    parameters_per_element: ClassVar[int]

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(f(x), log f'(x))`, both of x's shape `(B, C, ...)`, the second float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(f^-1(y), log (f^-1)'(y))`."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")
