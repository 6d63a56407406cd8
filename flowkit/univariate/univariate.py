"""The contract of a univariate map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
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

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """Reverse mode's step, without gradients enabled: x, and the gradients of x, the parameters and its own.

        By default by autograd; override with a closed form, which is cheaper.

        Args:
            y: the output of `forward`.
            parameters: those that it was given.
            grad_y: the gradient of y.
            grad_log: the gradient of the log-derivative, which broadcasts against y.
        """
        x = self.inverse(y, *parameters)[0].detach().requires_grad_()
        leaves = [p.detach().requires_grad_() for p in parameters]
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            out, log_derivative = self.forward(x, *leaves)
        grads = torch.autograd.grad(
            (out, log_derivative), [x, *leaves, *own.values()], (grad_y, grad_log.expand_as(log_derivative))
        )
        count = 1 + len(leaves)
        return x.detach(), grads[0], grads[1:count], dict(zip(own, grads[count:], strict=True))
