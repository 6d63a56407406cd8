"""Memory-frugal gradients: a backward pass that recomputes each block's input from its output, for any graph.

Every data wire x travels with a *carrier*, a tensor of x's shape that holds no memory. The gradient of the carrier
is, by definition, the value of x. In backward the autograd engine itself then hands each block the value of its
output, and takes from it the value of its input:

    block forward   (x, carrier of x, log_det, conditions, parameters)  ->  (y, carrier of y, log_det + own)
    block backward  (grad y, value of y, grad log_det)  ->  (grad x, value of x, grad log_det, grads of the rest)

A *joint anchor* over all outputs saves their values once and sends them back. A *snapshot* is an anchor in
mid-chain: it sends back the value that it saved rather than the one that arrives, and their distance is the drift.
Nothing else is kept: memory does not grow with depth but for the snapshots.

| mode | what is kept | recomputed |
| --- | --- | --- |
| plain | all that autograd saves | nothing |
| checkpoint | each block's input | each block, forward |
| reverse | the outputs, a snapshot every few blocks | each block, inverse and forward |
| auto | as reverse, and all of the last blocks, as many as a byte budget allows | the other blocks |

Gradients are those of plain autograd: to rounding in float64, and within plain's own error in float32 as long as there
are snapshots. (Pure inversion explodes silently in ill-conditioned flows: Behrmann et al., AISTATS 2021.)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, as_tuple
from flowkit.errors import BackpropError, ConfigError, DriftWarning
from flowkit.replay import Replay
from flowkit.undo import Arrived, has_own_step, run_in_chunks, undo_in_chunks

MODES = ("plain", "checkpoint", "reverse", "auto")
DRIFT_LIMIT = 1e-3  # beyond, gradients are no longer plain's: seen with log-scales that amplify over many blocks


def carrier(value: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A tensor of the value's shape, or another, that holds one number: its gradient will be the value."""
    shape = value.shape if shape is None else shape
    return torch.empty_strided(shape, (0,) * len(shape), dtype=value.dtype, device=value.device)


def report_drift(drift: Tensor) -> None:
    """Warn of what the last backward passes measured, and start anew."""
    worst = float(drift)
    if worst > DRIFT_LIMIT:
        warnings.warn(
            f"reverse mode: inverted values drifted by {worst:.1e} from their snapshots (limit {DRIFT_LIMIT:g}): "
            "take snapshots more often, find the ill-conditioned node with flow.trace, or use backprop='checkpoint'",
            DriftWarning,
            stacklevel=2,
        )
    drift.zero_()


def applies(tensors: Sequence[Tensor], network: nn.Module) -> bool:
    """Whether a backward pass can follow that these gradients serve: not under torch.func, not without gradients."""
    if not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling():
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        if torch.autograd.forward_ad._current_level >= 0:
            return False
        # `torch.func.functional_call` puts tensors in the parameters' places, which are gone when backward runs.
        if not all(isinstance(p, nn.Parameter) for p in network.parameters()):
            return False
    return any(t.requires_grad for t in tensors) or any(p.requires_grad for p in network.parameters())


class Pass:
    """One forward pass that prepares a frugal backward: the running log-det, and where the next snapshot is due.

    Args:
        mode: `"reverse"`, `"checkpoint"` or `"auto"`.
        snapshots: a snapshot every so many blocks; 0 for none.
        chunk: rows that a block takes at a time; None for all.
        drift: a tensor that takes the largest relative difference seen between an inverted and a saved value.
        like: a data input, for the dtype and device of the log-det.
    """

    def __init__(self, mode: str, snapshots: int, chunk: int | None, drift: Tensor, like: Tensor):
        self.keep_inputs = mode == "checkpoint"
        self.snapshots, self.chunk, self.drift = snapshots, chunk, drift
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.log_det = like.new_zeros(like.shape[0], dtype=dtype)
        self.blocks = 0

    def step(
        self, part: Bijection, inputs: Sequence[Tensor], carriers: Sequence[Tensor], conditions: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One bijection: its outputs and their carriers."""
        if part.views:
            outputs = as_tuple(part(*inputs)[0])
            return outputs, as_tuple(_Views.apply(part, len(outputs), *carriers))
        inexact = part.stochastic or part.iterative or part.adaptive or part.dimension_changing
        keep = self.keep_inputs or inexact or part.slow_inverse
        result = part(*inputs, *conditions, carriers=(tuple(carriers), self.log_det, keep, self.chunk))
        count = len(result) // 2
        outputs, carriers, self.log_det = result[:count], result[count:-1], result[-1]
        has_parameters = next(part.parameters(), None) is not None
        self.blocks = 0 if keep else self.blocks + has_parameters  # what is kept serves as a snapshot, too
        if has_parameters and not keep and self.snapshots and self.blocks % self.snapshots == 0:
            outputs, carriers = self.anchor(outputs, carriers, self.drift)
        return tuple(outputs), tuple(carriers)

    def anchor(
        self, values: Sequence[Tensor], carriers: Sequence[Tensor], drift: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Save these values, and send them back to their carriers in backward."""
        count = len(values)
        result = _Anchor.apply(count, drift, *values, *carriers, self.log_det)
        self.log_det = result[-1]
        return tuple(result[:count]), tuple(result[count:-1])


def step(part: Bijection, arguments: tuple[Tensor, ...], carriers: tuple) -> tuple[Tensor, ...]:
    """What `part(*inputs, *conditions, carriers=...)` does: one node of the frugal backward pass."""
    hats, log_det, keep, chunk = carriers
    parameters = [p for p in part.parameters() if p.requires_grad]
    count = len(hats)
    if torch.compiler.is_compiling():
        _refuse_random(part)
    else:
        _refuse_sharded(part, parameters)
    return _Step.apply(part, count, keep, chunk, *arguments[:count], *hats, log_det, *arguments[count:], *parameters)


class _Step(torch.autograd.Function):
    """A bijection that saves its conditions and parameters (by reference) and, where it must, its inputs."""

    @staticmethod
    def forward(ctx: Any, part: Any, count: int, keep: bool, chunk: int | None, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        inputs, rest = tensors[:count], tensors[2 * count + 1 :]
        conditions = rest[: len(part.condition_shapes)]
        ctx.replay = None if torch.compiler.is_compiling() else Replay(part, inputs[0])
        outputs, own = run_in_chunks(part, inputs, conditions, chunk)
        if ctx.replay is not None:
            ctx.replay.ran()
            if ctx.replay.changes_something and "compiled_undo" in part.__dict__ and "uncompiled" not in part.__dict__:
                # Compiled, a second run would draw other numbers, and could not write to buffers.
                part.__dict__["uncompiled"] = True
                ctx.replay.restore()
                outputs, own = run_in_chunks(part, inputs, conditions, chunk)
            # Run twice, by the inverse and again forward, such a part would see something else the second time.
            keep = keep or (ctx.replay.changes_something and not has_own_step(part))
        ctx.part, ctx.count, ctx.keep, ctx.chunk = part, count, keep, chunk
        if not torch.compiler.is_compiling():
            held = {t.untyped_storage()._cdata for t in inputs}
            outputs = tuple(y.clone() if y.untyped_storage()._cdata in held else y for y in outputs)
        ctx.save_for_backward(*(inputs if keep else ()), *rest)
        return (*outputs, *[carrier(y) for y in outputs], tensors[2 * count] + own)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise BackpropError(
                "a second derivative cannot be taken through backprop='reverse' or 'checkpoint': use 'plain'"
            )
        part, count = ctx.part, ctx.count
        many = (len(grads) - 1) // 2
        kept = ctx.saved_tensors[:count] if ctx.keep else None
        rest = ctx.saved_tensors[count if ctx.keep else 0 :]
        conditions, parameters = rest[: len(part.condition_shapes)], rest[len(part.condition_shapes) :]
        if not torch.compiler.is_compiling():
            _refuse_exchanged(part, parameters)
        values = grads[many : 2 * many]
        like = kept[0] if kept is not None else values[0]
        grad_outputs = grads[:many]
        if kept is None:
            grad_outputs = tuple(
                torch.zeros_like(v) if g is None else g for g, v in zip(grad_outputs, values, strict=True)
            )
        grad_log_det = grads[-1]
        if grad_log_det is None:
            wide = torch.float64 if like.dtype == torch.float64 else torch.float32
            grad_log_det = like.new_zeros(like.shape[0], dtype=wide)
        start = 4 + 2 * count + 1
        need = ctx.needs_input_grad[start : start + len(conditions)]
        with ctx.replay() if ctx.replay is not None else contextlib.nullcontext():
            found = undo_in_chunks(
                part, Arrived(kept, values, conditions, grad_outputs, grad_log_det), need, parameters, ctx.chunk
            )
        inputs, grad_inputs, *rest = found
        return (None, None, None, None, *grad_inputs, *inputs, grad_log_det, *rest[0], *rest[1])


class _Views(torch.autograd.Function):
    """The carriers of a pure re-indexing: values come back through its inverse."""

    @staticmethod
    def forward(ctx: Any, part: Any, many: int, *carriers: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.part = part
        rows, like = carriers[0].shape[0], carriers[0]
        out = tuple(carrier(like, (rows, *shape)) for shape in part.out_shapes)
        return out if many > 1 else out[0]

    @staticmethod
    def backward(ctx: Any, *values: Any) -> Any:
        return None, None, *as_tuple(ctx.part.inverse(*values)[0])


class _Anchor(torch.autograd.Function):
    """Saves values and sends them back to their carriers; measures how far the arriving ones have drifted."""

    @staticmethod
    def forward(ctx: Any, count: int, drift: Tensor | None, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.count, ctx.drift = count, drift
        values = tensors[:count]
        ctx.save_for_backward(*values)
        return (
            *[v.view_as(v) for v in values],
            *[carrier(v) for v in values],
            tensors[2 * count].view_as(tensors[2 * count]),
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved = [v.detach() for v in ctx.saved_tensors]
        if ctx.drift is not None:
            for value, arrived in zip(saved, grads[ctx.count : 2 * ctx.count], strict=True):
                if arrived is not None and value.numel():
                    distance = (arrived - value).norm() / value.norm().clamp_min(torch.finfo(value.dtype).tiny)
                    # NaN is the worst drift of all, and must not be lost in a maximum.
                    ctx.drift.copy_(torch.maximum(ctx.drift, distance.nan_to_num(nan=torch.inf).to(ctx.drift.dtype)))
        return None, None, *grads[: ctx.count], *saved, grads[-1]


def _refuse_random(part: nn.Module) -> None:
    """While something around is compiled, random state and buffers cannot be put back; `fk.compile` does it."""
    for module in part.modules():
        stateful = isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase)
        if module.training and (stateful or "parametrizations" in module._modules):
            raise BackpropError(
                f"torch.compile cannot replay {type(module).__name__} in {type(part).__name__} for backprop='reverse' "
                "or 'checkpoint': use fk.compile, which can"
            )


def _refuse_exchanged(part: nn.Module, parameters: Sequence[Tensor]) -> None:
    """The part is run again, with the parameters that it has now: they must be those of forward."""
    own = {id(p) for p in part.parameters()}
    if any(isinstance(p, nn.Parameter) and id(p) not in own for p in parameters):
        raise BackpropError(
            f"{type(part).__name__} has other parameters than in forward, as after torch.func.functional_call with "
            "parameters: pass it plain tensors, or use backprop='plain'"
        )


def _refuse_sharded(part: nn.Module, parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        if type(parameter) is not nn.Parameter and type(parameter.data).__name__ == "DTensor":
            raise BackpropError(
                f"{type(part).__name__} holds sharded parameters, whose gradients would be lost: shard the whole "
                "bijection "
                "(its own forward gathers them), or use backprop='plain'"
            )


def check_options(mode: str, snapshots: int, chunk: int | None, budget: int | None = None) -> None:
    """Refuse options of `Flow` that mean nothing.

    Raises:
        ConfigError: an unknown mode, a negative number of blocks, a chunk below 1, `"auto"` without a budget.
    """
    if mode not in MODES:
        raise ConfigError(f"backprop must be one of {', '.join(MODES)}, got {mode!r}")
    if budget is not None and (not is_int(budget) or budget < 1):
        raise ConfigError(f"budget, in bytes, must be None or a positive int, got {budget!r}")
    if mode == "auto" and budget is None:
        raise ConfigError("backprop='auto' needs a budget in bytes: fk.Flow(graph, backprop='auto', budget=2**30)")
    if not is_int(snapshots) or snapshots < 0:
        raise ConfigError(f"snapshots, a snapshot every so many blocks, must be an int of 0 or more, got {snapshots!r}")
    if chunk is not None and (not is_int(chunk) or chunk < 1):
        raise ConfigError(
            f"chunk, the rows that a block takes at a time, must be None or an int of 1 or more, got {chunk!r}"
        )
