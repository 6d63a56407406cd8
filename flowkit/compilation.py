"""torch.compile for flows: block by block, both directions, one artifact for all blocks that are alike."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection
from flowkit.errors import ConfigError
from flowkit.graph.network import InvertibleNetwork
from flowkit.undo import Arrived, undo

F = TypeVar("F", bound=nn.Module)
# Where a block keeps what is called in its place: nn.Module's own attribute for forward, the method's name for the
# rest.
ATTRIBUTES = {
    "forward": "_compiled_call_impl",
    "inverse": "inverse",
    "inverse_only": "inverse_only",
    "undo": "compiled_undo",
}


def compile(flow: F, *, whole: bool = False, **options: Any) -> F:  # fk.compile, as torch's is torch.compile
    """Compile a flow, in place, in both directions; the same flow is returned.

    Each block is compiled by itself, and blocks that are alike share one artifact: compile time does not grow with
    depth, and memory-frugal gradients keep their memory (compiled as a whole, the recomputation would be merged with
    the forward, and its values kept). The batch dimension is dynamic: batch sizes of two or more do not compile again.
    State names, saving and copying are as before; a copy is not compiled. Blocks that are declared `adaptive` are
    left as they are.

    On small data the call of each artifact is felt. `whole=True` compiles the whole network as one artifact a
    direction: compile time then grows with depth, and gradients must be plain.

    Args:
        flow: a `Flow`, or a `Bijection`.
        whole: one artifact for the whole network instead of one for each kind of block.
        options: passed on to `torch.compile`: `mode`, `backend`, ...

    Raises:
        ConfigError: something else than a flow or a bijection; `whole` where gradients are not plain, or where a
            block is adaptive.

    >>> import flowkit as fk
    >>> flow = fk.compile(fk.Flow(fk.AffineCoupling((4,))), backend="eager")
    >>> flow.log_prob(torch.zeros(2, 4)).shape
    torch.Size([2])
    """
    parts = flow.modules() if isinstance(flow, nn.Module) else ()
    blocks = [m for m in parts if isinstance(m, Bijection) and not isinstance(m, InvertibleNetwork)]
    if not blocks:
        raise ConfigError(f"fk.compile takes a Flow or a Bijection, got {type(flow).__name__}")
    if whole:
        blocks = [_all_of(flow, blocks)]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    options.setdefault("fullgraph", True)
    alike: dict[str, dict[str, Callable]] = {}
    for block in blocks:
        if id(block) in inside or block.adaptive:
            continue  # a bijection inside another is compiled with it
        compiled = alike.setdefault(_likeness(block), {})
        for direction in ATTRIBUTES:
            if direction not in compiled:
                compiled[direction] = torch.compile(_caller(direction), **options)
        for direction, attribute in ATTRIBUTES.items():
            block.__dict__[attribute] = _Compiled(direction, compiled[direction], block)
    return flow


def _all_of(flow: nn.Module, blocks: list[Bijection]) -> Bijection:
    """What is compiled as a whole: the network of a flow, or the bijection itself."""
    top: Any = flow if isinstance(flow, Bijection) else getattr(flow, "network", None)
    if not isinstance(top, Bijection):
        raise ConfigError(f"fk.compile(whole=True) takes a Flow or a Bijection, got {type(flow).__name__}")
    if getattr(top, "backprop", "plain") != "plain":
        raise ConfigError(
            f"fk.compile(whole=True) needs backprop='plain', got {top.backprop!r}: compiled as a whole, what is "
            "computed again would be kept; leave whole=False"
        )
    if adaptive := next((block for block in blocks if block.adaptive), None):
        raise ConfigError(
            f"fk.compile(whole=True) cannot take {type(adaptive).__name__}, whose number of steps depends on the data: "
            "leave whole=False"
        )
    return top


class _Compiled:
    """One block's call of the artifact that it shares; the batch dimension of every tensor is marked dynamic."""

    def __init__(self, direction: str, function: Callable, block: Bijection):
        self.direction, self.function, self.block = direction, function, block

    def __call__(self, *tensors: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():  # something around it is being compiled, and takes the block in
            return CALLS[self.direction](self.block, *tensors, **keywords)
        if "carriers" in keywords:
            # Reverse mode's step is not compiled, but what it calls is: so what it saves is saved as it is.
            return self.block._call_impl(*tensors, **keywords)
        _mark_batch(tensors)
        return self.function(self.block, *tensors, **keywords)


def _mark_batch(values: Iterable) -> None:
    for value in values:
        if isinstance(value, tuple):  # what was prepared of the conditions, or what has arrived in backward
            _mark_batch(value)
        elif isinstance(value, dict):  # a network's, by wire and by node
            _mark_batch(value.values())
        elif isinstance(value, Tensor) and value.dim() and value.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(value, 0)


def _forward(block: Any, *tensors: Any, **keywords: Any) -> Any:
    return block._call_impl(*tensors, **keywords)


def _inverse(block: Any, *tensors: Any) -> Any:
    return type(block).inverse(block, *tensors)


def _inverse_only(block: Any, *tensors: Any) -> Any:
    return type(block).inverse_only(block, *tensors)


def _undo(block: Any, *arrived_and_need: Any) -> Any:
    *arrived, need = arrived_and_need
    return undo(block, Arrived(*arrived), need, [p for p in block.parameters() if p.requires_grad])


CALLS = {"forward": _forward, "inverse": _inverse, "inverse_only": _inverse_only, "undo": _undo}


def _caller(direction: str) -> Callable:
    """A function with a code object of its own: torch.compile keeps, and limits, its artifacts by code object."""
    return types.FunctionType(CALLS[direction].__code__.replace(co_name=direction), globals(), direction)


def _likeness(block: Bijection) -> str:
    """What blocks that can share an artifact have in common: class, shapes, options, parameters' shapes."""
    tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in (*block.named_parameters(), *block.named_buffers())]
    return f"{type(block).__qualname__} {block.in_shapes} {block.condition_shapes} {block!r} {tensors}"
