"""What is passed to a flow: names, shapes, dtypes, devices and batches, checked in one place and brought to rows."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.errors import ConditionError, InputError
from flowkit.shapes import Shape, listing
from flowkit.strict_json import shown

HALF = (torch.float16, torch.bfloat16)


class Batch(NamedTuple):
    """Checked tensors by name, `(*lead_i, *shape_i)`, and the leading shape that they broadcast to."""

    tensors: dict[str, Tensor]
    lead: torch.Size


def check_batch(
    values: Any,
    shapes: Mapping[str, Shape],
    what: str,
    reference: Tensor,
    dtypes: Mapping[str, torch.dtype | None] | None = None,
) -> Batch:
    """Tensors by name, checked.

    Args:
        values: one tensor where one is expected, or a mapping by name; None where none is.
        shapes: the event shapes, by name.
        what: "input", "condition" or "latent", for messages; decides the error's class.
        reference: a tensor of the flow's dtype and device.
        dtypes: of integer conditions.

    Raises:
        InputError, ConditionError: names, shapes, dtypes, devices or batch sizes that do not fit.
    """
    error = ConditionError if what == "condition" else InputError
    named = _by_name(values, shapes, what, error)
    lead: torch.Size | None = None
    for name, shape in shapes.items():
        tensor = named[name]
        if not isinstance(tensor, Tensor):
            raise error(f"{what} '{name}' must be a tensor, got {type(tensor).__name__}")
        events = tensor.dim() - len(shape)
        if events < 0 or tuple(tensor.shape[events:]) != shape:
            raise error(f"{what} '{name}' must be of shape (..., {_inside(shape)}), got {tuple(tensor.shape)}")
        _check_dtype(tensor, name, what, reference, (dtypes or {}).get(name), error)
        if tensor.layout is not torch.strided:
            raise error(f"{what} '{name}' must be dense, got {tensor.layout}: x.to_dense() makes it so")
        if tensor.device != reference.device:
            raise error(f"{what} '{name}' is on {tensor.device}, the flow is on {reference.device}")
        mine = tensor.shape[:events]
        if lead is None or lead == mine:
            lead = mine
        else:
            both = _broadcast(lead, mine)
            if both is None:
                raise error(f"the {what}s do not agree on the batch: {_leads(named, shapes)}")
            lead = both
    return Batch(named, torch.Size() if lead is None else lead)


def common_lead(data: Batch, conditions: Batch, what: str) -> torch.Size:
    """The leading shape of data and conditions together."""
    if data.lead == conditions.lead or not conditions.tensors:
        return data.lead
    lead = _broadcast(data.lead, conditions.lead)
    if lead is None:
        raise ConditionError(
            f"the batch of the {what}s {listing(list(data.tensors))} is {tuple(data.lead)}, that of the conditions "
            f"{listing(list(conditions.tensors))} is {tuple(conditions.lead)}: they do not broadcast"
        )
    return lead


def rows(batch: Batch, shapes: Mapping[str, Shape], lead: torch.Size) -> list[Tensor]:
    """Every tensor with one batch dimension, `(prod(lead), *shape)`."""
    return [to_rows(batch.tensors[name], shape, lead) for name, shape in shapes.items()]


def to_rows(tensor: Tensor, shape: Shape, lead: torch.Size) -> Tensor:
    """`(..., *shape)` broadcast to `lead` and flattened to one batch dimension; a view where it can be."""
    mine = tensor.shape[: tensor.dim() - len(shape)]
    if len(lead) == 1 and mine == lead:
        return tensor
    return tensor.expand((*lead, *shape)).reshape(math.prod(lead), *shape)


def sizes_of(shape: Any) -> tuple[int, ...]:
    """A sample shape, as a tuple; an int is one size.

    Raises:
        InputError: it holds something else than sizes.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape) if isinstance(shape, Sequence) else None
    if sizes is None or any(not is_int(n) or n < 0 for n in sizes):
        raise InputError(f"a sample shape is made of sizes of 0 or more, got {shown(shape)}")
    return sizes


def check_temperature(value: Any) -> None:
    """Refuse what is no temperature; a tensor of one number is one.

    Raises:
        InputError: no number, one below 0, NaN or infinity.
    """
    number = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    number = number or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    if not (number and 0 <= value <= sys.float_info.max):
        raise InputError(f"temperature must be 0 or more and finite, got {shown(value)}")


def is_tail(inner: torch.Size, outer: torch.Size) -> bool:
    """Whether `inner` repeats outermost to make `outer`: its sizes, leading ones aside, end it.

    >>> is_tail(torch.Size((5,)), torch.Size((8, 5))), is_tail(torch.Size((5, 1)), torch.Size((5, 7)))
    (True, False)
    """
    bare = list(inner)
    while bare and bare[0] == 1:
        bare.pop(0)
    return list(outer[len(outer) - len(bare) :]) == bare


def _by_name(values: Any, shapes: Mapping[str, Shape], what: str, error: type[InputError]) -> dict[str, Any]:
    if values is None and not shapes:
        return {}
    if not isinstance(values, Mapping):
        if values is None:
            raise error(f"the {what}s {_wanted(shapes)} are needed, none was given")
        if len(shapes) != 1:
            wanted = (
                f"needs the {what}s {_wanted(shapes)}: pass a dictionary by name" if shapes else f"takes no {what}s"
            )
            raise error(f"the flow {wanted}, got {type(values).__name__}")
        return {next(iter(shapes)): values}
    missing, unknown = [n for n in shapes if n not in values], [n for n in values if n not in shapes]
    if missing or unknown:
        problems = [f"missing {listing(missing)}"] * bool(missing)
        problems += [f"not known {listing([str(n) for n in unknown])}"] * bool(unknown)
        raise error(f"the flow needs the {what}s {_wanted(shapes)}: {', '.join(problems)}")
    return {name: values[name] for name in shapes}


def _check_dtype(
    tensor: Tensor, name: str, what: str, reference: Tensor, integer: torch.dtype | None, error: type[InputError]
) -> None:
    dtype, wanted = tensor.dtype, reference.dtype
    if integer is not None:
        if dtype.is_floating_point or dtype.is_complex or (dtype == torch.bool) != (integer == torch.bool):
            raise error(
                f"{what} '{name}' must be of {'booleans' if integer == torch.bool else 'integers'} ({integer}), "
                f"got {dtype}"
            )
        return
    if dtype == wanted and (what == "condition" or dtype not in HALF):
        return
    if not dtype.is_floating_point:
        hint = (
            f"; labels are declared by graph.condition('{name}', ..., dtype=torch.int64)" if what == "condition" else ""
        )
        raise error(f"{what} '{name}' must be {wanted}, got {dtype}: convert it first{hint}")
    if dtype in HALF:
        wanted = torch.float32 if wanted in HALF else wanted
        device = tensor.device.type
        if what == "condition" and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return
        raise error(
            f"{what} '{name}' must be {wanted}, got {dtype}: pass it as {wanted} and leave half precision to "
            "torch.autocast"
        )
    raise error(
        f"{what} '{name}' must be {wanted} as the flow is, got {dtype}: convert one of the two, x.to(dtype) or "
        "flow.to(dtype)"
    )


def _broadcast(a: torch.Size, b: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(a, b)
    except RuntimeError:
        return None


def _inside(shape: Shape) -> str:
    return ", ".join(map(str, shape)) if shape else "*batch"


def _wanted(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"'{name}' {shape}" for name, shape in shapes.items()) or "none"


def _leads(named: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> str:
    return ", ".join(
        f"'{name}' has {tuple(named[name].shape[: named[name].dim() - len(s)])}" for name, s in shapes.items()
    )
