"""Results whose first derivatives alone are right: the second are refused, not silently wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.errors import BackpropError


def refuse_second(why: str) -> None:
    """Called in a backward that records nothing.

    `torch.autograd.function.once_differentiable` would not do: its error stands on a node that `torch.autograd.grad`
    does not visit, so that the missing part of a second derivative is taken for zero.

    Raises:
        BackpropError: the gradients are themselves to be differentiated (`create_graph=True`).
    """
    if torch.is_grad_enabled():
        raise BackpropError(f"a second derivative cannot be taken through {why}")


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, why: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.why = why
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second(ctx.why)
        return None, *grads


def first_order(why: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, a second derivative of which is refused in eager mode: "... cannot be taken through `why`".

    Function transforms do not run that backward, so within two of reverse mode the call itself is refused.

    Raises:
        BackpropError: two transforms of reverse mode, such as `grad` of `grad`, are at work.

    >>> x = torch.ones(2, requires_grad=True)
    >>> (y,) = first_order("this example", x.square())
    >>> torch.autograd.grad(y.sum(), x)[0].tolist()
    [2.0, 2.0]
    """
    if torch.compiler.is_compiling():
        return tensors
    transforms = torch._C._functorch.get_interpreter_stack()
    if transforms:
        reverse = torch._C._functorch.TransformType.Grad
        if sum(each.key() == reverse for each in transforms) > 1:
            raise BackpropError(f"a second derivative cannot be taken through {why}")
        return tensors
    return _FirstOrder.apply(why, *tensors)
