"""How far a flow or a bijection can be trusted: round trip, log-det against the Jacobian, condition, cost.

Every function takes a `fk.Flow` or a `fk.Bijection`, data, and conditions as that object itself takes them, on one
batch dimension. Nothing given is changed: where float64 is needed, a copy is measured.

    from flowkit import diagnostics
    diagnostics.round_trip(flow, x, given=y)         # in the dtype that x and the flow have
    diagnostics.log_det_error(flow, x, given=y)      # in float64, against autograd's Jacobian
    diagnostics.condition_number(flow, x, given=y)
    diagnostics.log_det_cost(flow, x, given=y)
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkit.bijection import Bijection, as_tuple
from flowkit.errors import ConfigError, InputError

TOGETHER = 64  # rows of a Jacobian that are computed at once

Data = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class RoundTrip:
    """What comes back from a map and its inverse.

    Attributes:
        error: the largest |inverse(forward(x)) - x|; infinite where a value is not finite.
        relative: the largest error of a value, divided by 1 + its size.
        log_det_error: the largest |forward's log-det + inverse's|; infinite likewise.
        largest: the largest |latent value|.
    """

    error: float
    relative: float
    log_det_error: float
    largest: float

    @property
    def finite(self) -> bool:
        """Whether every value and every log-det was finite, there and back."""
        return math.isfinite(self.error) and math.isfinite(self.log_det_error)


@dataclass(frozen=True)
class LogDetError:
    """The log-det beside log |det J| of autograd's Jacobian J, in float64: the worst row of the batch.

    Attributes:
        forward: the largest |log_det - log |det J|| / (1 + |log |det J||), data to latent.
        inverse: the same for the inverse, with its own Jacobian, at the latent values.
        log_abs_det: log |det J| of the forward Jacobian, of every row, `(B,)`.
        singular_values: of the forward Jacobian, as in `singular_values`, `(B, D)`.
    """

    forward: float
    inverse: float
    log_abs_det: Tensor
    singular_values: Tensor


@dataclass(frozen=True)
class LogDetCost:
    """The time of a forward pass with its log-det, and of the same operations without those that only it needs.

    Attributes:
        seconds: with the log-det, the fastest round: whatever else the machine does only adds to it.
        seconds_without: without it, likewise.
    """

    seconds: float
    seconds_without: float

    @property
    def ratio(self) -> float:
        """How many times longer the log-det makes the pass: 1 means that it is free."""
        return self.seconds / self.seconds_without


def round_trip(bijection: Any, x: Data, given: Data | None = None, *, autocast: torch.dtype | None = None) -> RoundTrip:
    """Data to latent and back, in the dtype that the bijection and the data have.

    Args:
        bijection: a `fk.Flow` or a `fk.Bijection`.
        x: data `(B, ...)`; several inputs as a tuple, or for a flow as a dictionary by name.
        given: the conditions, likewise; None for none.
        autocast: run under autocast with this dtype.

    Raises:
        InputError: names or a number of tensors that do not fit.

    >>> import flowkit as fk
    >>> round_trip(fk.Permute((4,)), torch.randn(8, 4)).error
    0.0
    """
    op, inputs, conditions = _resolve(bijection, x, given)
    context = torch.autocast(inputs[0].device.type, autocast) if autocast else contextlib.nullcontext()
    with torch.no_grad(), context:
        outputs, log_det = op(*inputs, *conditions)
        back, log_det_back = op.inverse(*as_tuple(outputs), *conditions)
    differences = [(b.double() - i.double()).abs() for b, i in zip(as_tuple(back), inputs, strict=True)]
    return RoundTrip(
        error=_worst(differences),
        relative=_worst([d / (1 + i.double().abs()) for d, i in zip(differences, inputs, strict=True)]),
        log_det_error=_worst([(log_det.double() + log_det_back.double()).abs()]),
        largest=_worst([o.double().abs() for o in as_tuple(outputs)]),
    )


def log_det_error(bijection: Any, x: Data, given: Data | None = None) -> LogDetError:
    """The log-det of both directions against the Jacobian that autograd finds, on a copy in float64.

    The Jacobian costs one backward pass for each dimension of an event, so this is for small events. Rows must not
    depend on one another: a batch norm within must be in eval mode.

    Args:
        bijection: a `fk.Flow` or a `fk.Bijection`.
        x: data `(B, ...)`, as in `round_trip`.
        given: the conditions, likewise.

    Raises:
        InputError: names or a number of tensors that do not fit, or a map that changes the number of dimensions.

    >>> import flowkit as fk
    >>> log_det_error(fk.LULinear((3,)), torch.randn(8, 3)).forward < 1e-12
    True
    """
    op, inputs, conditions = _in_double(*_resolve(bijection, x, given))
    outputs, log_det, matrix = _jacobian(op, inputs, conditions)
    _, log_det_back, matrix_back = _jacobian(op.inverse, outputs, conditions)
    errors, references = [], []
    for ours, true in ((log_det, matrix), (log_det_back, matrix_back)):
        references.append(torch.linalg.slogdet(true).logabsdet)
        errors.append(_worst([(ours.double() - references[-1]).abs() / (1 + references[-1].abs())]))
    return LogDetError(errors[0], errors[1], references[0], _singular_values(matrix))


def jacobian(bijection: Any, x: Data, given: Data | None = None) -> Tensor:
    """The Jacobian d latent / d data of every row, `(B, D, D)` in float64, by autograd on a copy.

    Several inputs (or outputs) are flattened and joined in order. Arguments, costs and errors as in `log_det_error`.

    >>> import flowkit as fk
    >>> jacobian(fk.Permute((2,)), torch.randn(1, 2)).tolist()
    [[[0.0, 1.0], [1.0, 0.0]]]
    """
    return _jacobian(*_in_double(*_resolve(bijection, x, given)))[2]


def singular_values(bijection: Any, x: Data, given: Data | None = None) -> Tensor:
    """The singular values of the Jacobian of every row, largest first, `(B, D)` in float64; NaN where it is not finite.

    The largest says how much the map stretches a perturbation of the data, 1 / the smallest how much its inverse
    stretches one of the latent: what a rounding error grows by at worst. Arguments as in `log_det_error`.

    >>> import flowkit as fk
    >>> singular_values(fk.FixedRotation((3,)), torch.randn(1, 3)).round(decimals=6).tolist()
    [[1.0, 1.0, 1.0]]
    """
    return _singular_values(jacobian(bijection, x, given))


def condition_number(bijection: Any, x: Data, given: Data | None = None) -> Tensor:
    """The largest singular value of the Jacobian over the smallest, of every row, `(B,)` in float64.

    >>> import flowkit as fk
    >>> condition_number(fk.Permute((3,)), torch.randn(2, 3)).tolist()
    [1.0, 1.0]
    """
    values = singular_values(bijection, x, given)
    return values[:, 0] / values[:, -1]


def log_det_cost(bijection: Any, x: Data, given: Data | None = None, *, rounds: int = 15) -> LogDetCost:
    """The time that the log-det costs in a forward pass without gradient, in eager mode.

    The pass is recorded as a list of tensor operations; the operations that lead to the log-det alone are struck from a
    second copy of the list; the two are timed in turns. Not for an `adaptive` bijection, whose operations depend on
    the data.

    Args:
        bijection: a `fk.Flow` or a `fk.Bijection`.
        x: data `(B, ...)`, as in `round_trip`.
        given: the conditions, likewise.
        rounds: how often each is timed.

    Raises:
        InputError: names or a number of tensors that do not fit, or an adaptive bijection.

    >>> import flowkit as fk
    >>> log_det_cost(fk.ElementwiseAffine((8,)), torch.randn(64, 8), rounds=3).ratio > 0
    True
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    op, inputs, conditions = _resolve(bijection, x, given)
    if op.adaptive:
        raise InputError(f"{type(op).__name__} is adaptive, so its operations cannot be recorded and timed")
    arguments = (*inputs, *conditions)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, log_det = op(*tensors)
        return (*as_tuple(outputs), log_det)

    with torch.no_grad():
        full = make_fx(run)(*arguments)
        values_only = copy.deepcopy(full)
        last = next(node for node in values_only.graph.nodes if node.op == "output")
        last.args = (tuple(last.args[0][:-1]),)
        values_only.graph.eliminate_dead_code()
        values_only.recompile()
        seconds = timings({"full": lambda: full(*arguments), "values": lambda: values_only(*arguments)}, rounds=rounds)
    return LogDetCost(min(seconds["full"]), min(seconds["values"]))


def timings(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 15, warm_up: int = 2, at_least: float = 5e-3
) -> dict[str, list[float]]:
    """Seconds a call of several functions, timed in turns so that a change of the machine's speed meets all of them.

    Args:
        functions: by name, each called without arguments.
        rounds: how many turns.
        warm_up: untimed calls of each, before.
        at_least: a function that takes less, in seconds, is called several times a turn and the time divided.

    Raises:
        ConfigError: fewer than one round.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    repeats = {}
    for name, function in functions.items():
        for _ in range(warm_up):
            function()
        repeats[name] = max(1, math.ceil(at_least / max(_time(function, 1), 1e-9)))
    order = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds):
        for name in order if turn % 2 == 0 else reversed(order):
            seconds[name].append(_time(functions[name], repeats[name]))
    return seconds


def _time(function: Callable[[], object], repeats: int) -> float:
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _wait_for_device()
    return (time.perf_counter() - start) / repeats


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _worst(tensors: Sequence[Tensor]) -> float:
    worst = max((t.max().item() if t.numel() else 0.0 for t in map(_no_nan, tensors)), default=0.0)
    return float(worst)


def _no_nan(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, torch.inf)


def _resolve(bijection: Any, x: Data, given: Data | None) -> tuple[Bijection, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The bijection itself, and its inputs and conditions in the order in which it takes them."""
    op: Bijection = getattr(bijection, "network", bijection)
    inputs = _in_order(x, getattr(op, "input_names", None), len(op.in_shapes), "inputs")
    rows = inputs[0].shape[0]
    conditions = _in_order(given, getattr(op, "condition_names", None), len(op.condition_shapes), "conditions")
    conditions = tuple(
        c if c.dim() > len(shape) and c.shape[0] == rows else c.expand(rows, *shape)
        for c, shape in zip(conditions, op.condition_shapes, strict=True)
    )
    return op, inputs, conditions


def _in_order(values: Data | None, names: Sequence[str] | None, count: int, what: str) -> tuple[Tensor, ...]:
    if isinstance(values, Mapping):
        if names is None or set(values) != set(names):
            raise InputError(f"{what} {sorted(names) if names else 'without names'} are needed, got {sorted(values)}")
        return tuple(values[name] for name in names)
    ordered = () if values is None else (values,) if isinstance(values, Tensor) else tuple(values)
    if len(ordered) != count:
        raise InputError(f"{count} {what} are needed, got {len(ordered)}")
    return ordered


def _in_double(
    op: Bijection, inputs: tuple[Tensor, ...], conditions: tuple[Tensor, ...]
) -> tuple[Bijection, tuple[Tensor, ...], tuple[Tensor, ...]]:
    def wide(t: Tensor) -> Tensor:
        return t.detach().double() if t.is_floating_point() else t

    return copy.deepcopy(op).double(), tuple(map(wide, inputs)), tuple(map(wide, conditions))


def _jacobian(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], conditions: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """The outputs, the log-det and the Jacobian `(B, D, D)`: a row of every matrix by one backward pass."""
    # A copy of each leaf is what is called with: some modules write to their arguments, which a leaf would refuse.
    leaves = tuple(i.detach().clone().requires_grad_() for i in inputs)
    with torch.enable_grad():
        outputs, log_det = function(*(leaf.clone() for leaf in leaves), *conditions)
        outputs = as_tuple(outputs)
        joined = _joined(outputs)
    size = _joined(leaves).shape[1]
    if joined.shape[1] != size:
        raise InputError(
            f"a square Jacobian is needed, and this map has {size} dimensions in and {joined.shape[1]} out"
        )
    columns = joined.sum(0)  # rows of the batch do not depend on one another
    matrix = torch.cat([_gradients(columns, leaves, start) for start in range(0, size, TOGETHER)], 0).transpose(0, 1)
    return tuple(o.detach() for o in outputs), log_det.detach(), matrix


def _gradients(columns: Tensor, leaves: tuple[Tensor, ...], start: int) -> Tensor:
    """Some rows of every Jacobian, `(rows, B, D)`: together where autograd can, else one by one."""
    with torch.enable_grad():
        picked = columns[start : start + TOGETHER]
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    try:
        units = torch.eye(len(picked), dtype=picked.dtype, device=picked.device)
        found = torch.autograd.grad(picked, leaves, units, is_grads_batched=True, **options)
        return torch.cat([g.reshape(*g.shape[:2], -1) if g.dim() > 2 else g[..., None] for g in found], 2)
    except RuntimeError:  # an operation without a batching rule, or one that looks at its values
        return torch.stack([_joined(torch.autograd.grad(column, leaves, **options)) for column in picked])


def _singular_values(matrix: Tensor) -> Tensor:
    """NaN for a matrix that is not finite, of which LAPACK would refuse the whole batch."""
    finite = matrix.isfinite().flatten(1).all(1)[:, None]
    return torch.where(finite, torch.linalg.svdvals(torch.where(finite[..., None], matrix, 0.0)), torch.nan)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Several `(B, *shape)`, of any rank, as one `(B, D)`."""
    return torch.cat([t.flatten(1) if t.dim() > 1 else t[:, None] for t in tensors], 1)
