"""Batch layouts: from what a data loader yields to the data and the conditions of a flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from flowkit.errors import InputError
from flowkit.flow import Flow
from flowkit.shapes import listing

Parts = tuple[dict[str, Tensor], dict[str, Tensor]]
Layout = Callable[[Any], tuple[Any, Any]]


def by_name(batch: Any, flow: Flow) -> Parts:
    """Data and conditions by name, from a batch in any of the usual layouts.

    - a dictionary that has the flow's input and condition names (others are left out);
    - a tensor, for a flow with one input and no condition;
    - a sequence: the inputs in declaration order, then the conditions (later entries are left out).

    Raises:
        InputError: entries that the flow needs are not there; the message lists them.

    Example:
        >>> import torch, flowkit as fk
        >>> graph = fk.Graph()
        >>> label = graph.condition("label", (10,))
        >>> graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=label))
        >>> data, given = by_name((torch.zeros(5, 2), torch.zeros(5, 10)), fk.Flow(graph))
        >>> sorted(data), sorted(given)
        (['x'], ['label'])
    """
    inputs, conditions = list(flow.input_shapes), list(flow.condition_shapes)
    if isinstance(batch, Mapping):
        missing = [name for name in (*inputs, *conditions) if name not in batch]
        if missing:
            raise InputError(
                f"the batch has no {listing(missing)}: it has {listing(sorted(map(str, batch)))}, and the flow needs "
                f"the data {listing(inputs)} and the conditions {listing(conditions)}"
            )
        return {name: batch[name] for name in inputs}, {name: batch[name] for name in conditions}
    entries = [batch] if isinstance(batch, Tensor) else list(batch)
    if len(entries) < len(inputs) + len(conditions):
        raise InputError(
            f"the batch has {len(entries)} entries, and the flow needs {len(inputs) + len(conditions)}: "
            f"the data {listing(inputs)}, then the conditions {listing(conditions)}"
        )
    return dict(zip(inputs, entries, strict=False)), dict(zip(conditions, entries[len(inputs) :], strict=False))


def named(values: Any, shapes: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """What a user's own layout returned, as a dictionary: a bare tensor goes by the only name, None is nothing."""
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return dict(values)
    if len(shapes) != 1:
        raise InputError(f"the layout returned one tensor for the {kind} {listing(list(shapes))}: return a dictionary")
    return {next(iter(shapes)): values}


def bare(parts: dict[str, Tensor]) -> Any:
    """What a Flow takes: the tensor alone where there is one, None for none, else the dictionary."""
    if not parts:
        return None
    return next(iter(parts.values())) if len(parts) == 1 else parts
