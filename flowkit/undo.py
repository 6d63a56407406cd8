"""Undoing one block: from its outputs (or its kept inputs) and their gradients, its inputs and all other gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit.bijection import Bijection, as_tuple
from flowkit.tape import Tape, shares_parameters

MaybeTensors = Sequence[Tensor | None]


class Arrived(NamedTuple):
    """What a block has in backward: its kept inputs or its outputs' values, its conditions, and gradients."""

    kept: tuple[Tensor, ...] | None
    values: tuple[Tensor | None, ...]  # of the outputs; None where the inputs were kept
    conditions: tuple[Tensor, ...]
    grad_outputs: tuple[Tensor | None, ...]
    grad_log_det: Tensor

    def rows(self, cut: slice) -> Arrived:
        """The same for some rows of the batch."""
        kept, values, conditions, grads = (
            None if group is None else tuple(t if t is None else t[cut] for t in group) for group in self[:4]
        )
        return Arrived(kept, values, conditions, grads, self.grad_log_det[cut])  # type: ignore[arg-type]


class Undone(NamedTuple):
    """The inputs of a block, their gradients, and those of its conditions and of its trainable parameters."""

    inputs: Sequence[Tensor]
    grad_inputs: MaybeTensors
    grad_conditions: MaybeTensors
    grad_parameters: MaybeTensors


def has_own_step(part: Any) -> bool:
    """Whether the bijection has its own reverse step, `Bijection.undo`."""
    return type(part).undo is not Bijection.undo


def undo(part: Any, arrived: Arrived, need: Sequence[bool], parameters: Sequence[Tensor]) -> Undone:
    """One block, by its compiled step, by its own step, or by its inverse and a second run forward.

    Args:
        part: the bijection.
        arrived: what there is of it.
        need: which conditions need gradients.
        parameters: those that require gradients.
    """
    compiling = torch.compiler.is_compiling()
    compiled = None if compiling or "uncompiled" in part.__dict__ else part.__dict__.get("compiled_undo")
    if compiled is not None:
        return Undone(*compiled(*arrived, need))
    if arrived.kept is None and has_own_step(part) and not (compiling and shares_parameters(part)):
        tape = Tape(part, arrived.conditions, need, parameters)
        with torch.no_grad():
            own = part.undo(arrived.values, arrived.conditions, arrived.grad_outputs, arrived.grad_log_det, tape)
        if own is not None:
            (inputs, grad_inputs), (grad_conditions, grad_parameters) = own, tape.gradients()
            return Undone(inputs, grad_inputs, grad_conditions, grad_parameters)
    return (_run_again_functionally if compiling else _run_again)(part, arrived, need, parameters)


def _inputs(part: Any, arrived: Arrived) -> tuple[Tensor, ...]:
    if arrived.kept is not None:
        return arrived.kept
    with torch.no_grad():
        return as_tuple(part.inverse(*arrived.values, *arrived.conditions)[0])


def _run_again(part: Any, arrived: Arrived, need: Sequence[bool], parameters: Sequence[Tensor]) -> Undone:
    inputs = _inputs(part, arrived)
    at = [x.detach().requires_grad_() for x in inputs]
    leaves = [c.detach().requires_grad_(needed) for c, needed in zip(arrived.conditions, need, strict=True)]
    wanted = [*at, *[c for c, needed in zip(leaves, need, strict=True) if needed], *parameters]
    with torch.enable_grad():
        out, log_det = _call(part, *at, *leaves)
    pairs = list(zip((*as_tuple(out), log_det), (*arrived.grad_outputs, arrived.grad_log_det), strict=True))
    pairs = [(y, g) for y, g in pairs if y.requires_grad and g is not None]
    grads = torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
    following = iter(grads[len(at) :])
    grad_conditions = [next(following) if needed else None for needed in need]
    return Undone([x.detach() for x in inputs], grads[: len(at)], grad_conditions, list(following))


def _run_again_functionally(part: Any, arrived: Arrived, need: Sequence[bool], parameters: Sequence[Tensor]) -> Undone:
    # torch.autograd.grad cannot be traced by torch.compile; torch.func.vjp can.
    inputs = _inputs(part, arrived)
    names = [name for name, p in part.named_parameters() if p.requires_grad]
    count, given = len(inputs), len(arrived.conditions)

    def run(*a: Tensor) -> tuple:
        weights = dict(zip(names, a[count + given :], strict=True))
        out, log_det = torch.func.functional_call(part, weights, a[: count + given])
        return (*as_tuple(out), log_det)

    functional: Any = torch.func.vjp(run, *inputs, *arrived.conditions, *parameters)
    outputs, vjp = functional
    cotangents = zip(outputs, (*arrived.grad_outputs, arrived.grad_log_det), strict=True)
    grads = vjp(tuple(torch.zeros_like(y) if g is None else g for y, g in cotangents))
    return Undone(inputs, grads[:count], grads[count : count + given], grads[count + given :])


def undo_in_chunks(
    part: Any, arrived: Arrived, need: Sequence[bool], parameters: Sequence[Tensor], chunk: int | None
) -> Undone:
    """`undo`, some rows of the batch at a time."""
    rows = arrived.grad_log_det.shape[0]
    if chunk is None or chunk >= rows:
        return undo(part, arrived, need, parameters)
    found = [undo(part, arrived.rows(slice(i, i + chunk)), need, parameters) for i in range(0, rows, chunk)]
    joined = [[_cat(pieces) for pieces in zip(*group, strict=True)] for group in list(zip(*found, strict=True))[:3]]
    return Undone(
        joined[0],
        joined[1],
        joined[2],
        [_sum(pieces) for pieces in zip(*[f.grad_parameters for f in found], strict=True)],
    )


def run_in_chunks(
    part: Any, inputs: Sequence[Tensor], conditions: Sequence[Tensor], chunk: int | None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """`part(*inputs, *conditions)`, some rows of the batch at a time: the outputs and the log-det."""
    rows = inputs[0].shape[0]
    if chunk is None or chunk >= rows:
        out, log_det = _call(part, *inputs, *conditions)
        return as_tuple(out), log_det
    pieces = []
    for start in range(0, rows, chunk):
        cut = slice(start, start + chunk)
        out, log_det = _call(part, *[x[cut] for x in inputs], *[c[cut] for c in conditions])
        pieces.append((*as_tuple(out), log_det))
    joined = [torch.cat(tensors) for tensors in zip(*pieces, strict=True)]
    return tuple(joined[:-1]), joined[-1]


def _call(part: Any, *arguments: Tensor) -> Any:
    return part._call_impl(*arguments) if "uncompiled" in part.__dict__ else part(*arguments)


def _sum(pieces: Sequence[Tensor | None]) -> Tensor | None:
    present = [t for t in pieces if t is not None]
    return sum(present[1:], present[0]) if present else None


def _cat(pieces: Sequence[Tensor | None]) -> Any:
    present = [t for t in pieces if t is not None]
    return torch.cat(present) if present else None
