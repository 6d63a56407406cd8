"""What happens to data inside a flow, node by node: so that the first node that goes wrong has a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowkit.bijection import Bijection, as_tuple
from flowkit.dry_run import evaluating
from flowkit.errors import NonFiniteError


@dataclass(frozen=True)
class TraceRecord:
    """One node's record.

    Attributes:
        name: nested names dotted, `inner.affine_coupling_1`.
        op: the class of the bijection.
        values: what it gave, a tuple of `(B, *shape)`.
        log_det: `(B,)`.
        round_trip: the largest absolute error of its inverse on what it gave.
        scales: lowest and highest log-scale that it applied; where it has none, the lowest and highest standard
            deviation of the rows that it gave, and `scales_are` says so.
        scales_are: "log-scale" or "row std".
    """

    name: str
    op: str
    values: tuple[Tensor, ...] = field(repr=False)
    log_det: Tensor = field(repr=False)
    round_trip: float
    scales: tuple[float, float]
    scales_are: str

    @property
    def finite(self) -> bool:
        """Whether the values, the log-det and the inverse are finite."""
        tensors = [*self.values, self.log_det]
        return all(bool(t.isfinite().all()) for t in tensors) and self.round_trip < float("inf")


class Trace(Sequence[TraceRecord]):
    """The records of every node, in forward order; printed as a table."""

    def __init__(self, records: Sequence[TraceRecord]):
        self.records = tuple(records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            for record in self.records:
                if record.name == index:
                    return record
            raise KeyError(index)
        found = self.records[index]
        return Trace(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self.records)

    def first_bad(self, tolerance: float = 1e-2) -> TraceRecord | None:
        """The first node that gives something not finite, or whose inverse misses by more than `tolerance`."""
        for record in self.records:
            if not record.finite or not record.round_trip <= tolerance:
                return record
        return None

    def __repr__(self) -> str:
        width = max([len(r.name) for r in self.records], default=4)
        lines = [f"{'node':<{width}}  {'log-det (mean)':>14}  {'round trip':>10}  scales"]
        for r in self.records:
            mean = float(r.log_det.mean()) if r.log_det.numel() else 0.0
            low, high = r.scales
            lines.append(
                f"{r.name:<{width}}  {mean:>14.4g}  {r.round_trip:>10.2g}  {r.scales_are} {low:.3g} .. {high:.3g}"
            )
        return "\n".join(lines)


@torch.no_grad()
def trace(network: Any, inputs: Sequence[Tensor], conditions: Sequence[Tensor]) -> Trace:
    """Run the network's nodes one by one, in eval mode, and record each."""
    records: list[TraceRecord] = []

    def visit(name: str, part: Bijection, taken: list[Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        out, log_det = part(*taken, *given)
        outputs = as_tuple(out)
        back = as_tuple(part.inverse(*outputs, *given)[0])
        error = max([_largest(a - b) for a, b in zip(back, taken, strict=True)], default=0.0)
        if part.dimension_changing:
            error = 0.0
        scales = part.log_scales(*taken, *given)
        kind, values = ("log-scale", scales) if scales is not None else ("row std", _row_stds(outputs))
        records.append(TraceRecord(name, type(part).__name__, outputs, log_det, error, _range(values), kind))
        return outputs

    with evaluating(network):
        network.walk(visit, inputs, conditions)
    return Trace(records)


@torch.no_grad()
def initialize(network: Any, inputs: Sequence[Tensor], conditions: Sequence[Tensor], again: bool) -> None:
    """Let every node that needs it see the data of its place, in forward order; a shared instance at its first use."""
    done: set[int] = set()

    def visit(name: str, part: Any, taken: list[Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        if part.needs_initialization and id(part) not in done:
            done.add(id(part))
            if again or not bool(part.initialized):
                part.initialize(*taken, *given)
        outputs = as_tuple(part(*taken, *given)[0])
        for output in outputs:
            if not bool(output.isfinite().all()):
                raise NonFiniteError(f"node '{name}' gave {_bad(output)} while the flow was initialised on finite data")
        return outputs

    network.walk(visit, inputs, conditions)


def check_finite(named: dict[str, Tensor], what: str) -> None:
    """Refuse NaN and infinity in data, with the first bad index."""
    for name, tensor in named.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{what} '{name}' holds {_bad(tensor)}")


def _bad(tensor: Tensor) -> str:
    places = (~tensor.isfinite()).nonzero()
    index = tuple(places[0].tolist())
    return f"{float(tensor[index])} at index {index} ({len(places)} of {tensor.numel()} values are not finite)"


def _largest(difference: Tensor) -> float:
    # As infinity, for max() of several outputs would lose a NaN.
    return float(difference.abs().nan_to_num(nan=math.inf, posinf=math.inf).max()) if difference.numel() else 0.0


def _row_stds(outputs: tuple[Tensor, ...]) -> Tensor:
    stds = [t.flatten(1).std(1, unbiased=False) for t in outputs if t.dim() > 1 and t.numel()]
    return torch.cat(stds) if stds else torch.cat([t.flatten().abs() for t in outputs])


def _range(values: Tensor) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
