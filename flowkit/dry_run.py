"""What shapes a feed-forward net gives, found without computing anything: a run on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import GraphError
from flowkit.shapes import Shape

InputSpec = tuple[Shape, torch.dtype | None]


def output_shapes(net: nn.Module, inputs: Sequence[InputSpec]) -> dict[str | int | None, Shape]:
    """The event shapes that the net returns for these inputs, in eval mode, its own modes and state left alone.

    On the meta device; where the net cannot run there, once on zeros in a forked random state.

    Args:
        net: an ordinary module from tensors `(B, ...)` to a tensor, a tuple or list of them, or a dictionary.
        inputs: event shape and dtype of each input; dtype None is the default floating dtype.

    Returns:
        Shapes by key: None for a single tensor, the position in a tuple, the name in a dictionary.

    Raises:
        GraphError: the net failed in both ways, or returned something else than tensors with the batch in front.
    """
    with evaluating(net), _forked(net):
        try:
            out = _run_on_meta(net, inputs)
        except Exception as on_meta:  # a net may use what the meta device lacks; the real run decides
            try:
                out = _run_on_zeros(net, inputs)
            except Exception as on_zeros:
                cause = on_meta if any(p.is_meta for p in net.parameters()) else on_zeros
                raise GraphError(f"its dry run failed with {type(cause).__name__}: {cause}") from cause
    named = named_outputs(out)
    if not named or (isinstance(out, dict) and not all(isinstance(key, str) for key in named)):
        raise GraphError(
            "it must return a tensor, several, or a dictionary of them by name, got "
            f"{out if not named else list(out)!r}"
        )
    return {key: _event_shape(value) for key, value in named.items()}


def named_outputs(out: Any) -> dict[str | int | None, Any]:
    """A net's return value by key: None for a single tensor, positions for a tuple, names for a dictionary."""
    if isinstance(out, dict):
        return dict(out)
    if isinstance(out, tuple | list):
        return dict(enumerate(out))
    return {None: out}


def _event_shape(value: Any) -> Shape:
    if not isinstance(value, Tensor):
        raise GraphError(f"it must return tensors, got {type(value).__name__}")
    if value.dim() < 1 or value.shape[0] != ROWS:
        raise GraphError(
            f"it must keep the batch dimension in front, {ROWS} rows gave a tensor of shape {tuple(value.shape)}"
        )
    return tuple(value.shape[1:])


ROWS = 3  # unlikely to be a channel count by accident, so a lost batch dimension shows


def _run_on_meta(net: nn.Module, inputs: Sequence[InputSpec]) -> Any:
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    meta = {name: tensor.detach().to("meta") for name, tensor in state.items()}
    arguments = tuple(torch.empty(ROWS, *shape, dtype=dtype, device="meta") for shape, dtype in inputs)
    with torch.no_grad():
        return torch.func.functional_call(net, meta, arguments)


def _run_on_zeros(net: nn.Module, inputs: Sequence[InputSpec]) -> Any:
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    arguments = [
        torch.zeros(ROWS, *shape, dtype=dtype if dtype is not None else like.dtype, device=like.device)
        for shape, dtype in inputs
    ]
    with torch.no_grad():
        return net(*arguments)


def _forked(net: nn.Module) -> Any:
    """The random state is put back afterwards, that of the net's own device too."""
    devices = {p.device for p in net.parameters() if p.is_cuda}
    return torch.random.fork_rng(devices=list(devices))


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The net in eval mode for a while; each module's own mode is restored."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
