"""Where a map is defined, the check that names the first value outside, and when values may be looked at at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flowkit.errors import InputError


def has_values(x: Tensor) -> bool:
    """Whether numbers can be looked at: not on meta, nor in compile, export, make_fx and function transforms.

    >>> has_values(torch.zeros(1)), has_values(torch.zeros(1, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling() or x.is_meta or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    recorded = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)  # by make_fx
    return recorded is None


def may_branch(x: Tensor) -> bool:
    """Whether a number may decide what is done next: it has values, and nothing is traced or captured.

    >>> may_branch(torch.zeros(1)), torch.func.vmap(lambda x: x + may_branch(x))(torch.zeros(1)).item()
    (True, 0.0)
    """
    if torch.jit.is_tracing() or type(x) is not Tensor or not has_values(x):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


@torch.compiler.assume_constant_result
def is_transformed() -> bool:
    """Whether a function transform or forward mode looks on; a compiler asks while it traces, and guards on both.

    >>> is_transformed(), torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(1)).item()
    (False, 1.0)
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def check_domain(owner: str, x: Tensor, low: float, high: float, closed: bool = False) -> None:
    """Refuse values outside `(low, high)`, or `[low, high]` where it is closed; NaN passes, and is propagated.

    One reduction, in eager mode alone: compile, export, make_fx, function transforms and meta look at nothing.

    Raises:
        InputError: a value outside; the message holds it and its index.

    >>> check_domain("Log", torch.tensor([1.0, 2.0]), 0.0, float("inf"))
    """
    if not has_values(x):
        return
    outside = (x < low) | (x > high) if closed else (x <= low) | (x >= high)
    if not outside.any():
        return
    index = tuple(outside.nonzero()[0].tolist())
    interval = f"[{low:g}, {high:g}]" if closed else f"({low:g}, {high:g})"
    raise InputError(f"{owner} needs values in {interval}, got {x[index].item():g} at index {index}")
