"""The distribution that `flow.given(y)` returns: the condition's work done once, and renewed when it must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.optim.optimizer import register_optimizer_step_post_hook

from flowkit.bijection import Prepared
from flowkit.call import Batch, sizes_of
from flowkit.errors import InputError

if TYPE_CHECKING:
    from flowkit.flow import Data, Flow


class FlowDistribution(Distribution):
    """q(x | y) for fixed y, a `torch.distributions.Distribution`.

    What depends on y alone (feature nets, the conditions' part of every block) is computed at the first use, without
    gradients, and kept. It is renewed when a parameter's or buffer's identity, storage or version changes, y's, or the
    train / eval mode or autocast, and after a fused optimiser's step. Writes through `.data` cannot be seen: call
    `refresh()` after them. Where gradients are wanted (grad enabled, and a parameter or y requires them) nothing kept
    is used, so training through it is right.

    With several data inputs, x is a dictionary by name, and `event_shape` is `(D,)`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, flow: Flow, conditions: Batch, batch_shape: torch.Size | None = None):
        self.flow = flow
        self._conditions = conditions
        self._cache = _Cache()
        shapes = list(flow.input_shapes.values())
        event = torch.Size(shapes[0] if len(shapes) == 1 else (flow.dim,))
        super().__init__(conditions.lead if batch_shape is None else batch_shape, event, validate_args=False)

    @property
    def support(self) -> Any:
        """All real tensors of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, x: Data) -> Tensor:
        """log q(x | y), `(...)`; x broadcasts against the batch of y."""
        log_prob = self.flow._log_prob(x, self._conditions, self._prepared())
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), temperature: float = 1.0) -> Data:  # type: ignore[override]
        """Samples `(*sample_shape, *batch_shape, *event)`, without gradients."""
        return self._draw(sample_shape, temperature, False)[0]

    def rsample(self, sample_shape: Sequence[int] = (), temperature: float = 1.0) -> Data:  # type: ignore[override]
        """Samples with gradients to the parameters and to y."""
        return self._draw(sample_shape, temperature, False)[0]

    @torch.no_grad()
    def sample_and_log_prob(self, sample_shape: Sequence[int] = (), temperature: float = 1.0) -> tuple[Data, Tensor]:
        """Samples and their log-probabilities (of the untempered flow) in one pass, without gradients."""
        x, log_prob = self._draw(sample_shape, temperature, True)
        assert log_prob is not None
        return x, log_prob

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """The same distribution, its batch expanded; the condition's work is shared, not repeated."""
        shape = torch.Size(batch_shape)
        try:
            reached = torch.broadcast_shapes(shape, self.batch_shape)
        except RuntimeError:
            reached = None
        if reached != shape:
            raise InputError(
                f"a distribution of batch shape {tuple(self.batch_shape)} cannot be expanded to {tuple(shape)}"
            )
        expanded = FlowDistribution(self.flow, self._conditions, shape)
        expanded._cache = self._cache
        return expanded

    def refresh(self) -> None:
        """Forget what was computed: needed only after writing to a parameter through `.data`."""
        self._cache.forget()

    def __repr__(self) -> str:
        names = ", ".join(self._conditions.tensors) or "nothing"
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"FlowDistribution(given {names}, {shapes})"

    def _draw(self, sample_shape: Sequence[int], temperature: float, with_log_prob: bool) -> tuple[Data, Tensor | None]:
        # Drawn at the batch that `expand` may have made larger; the condition's work stays at y's own rows.
        lead = torch.Size((*sizes_of(sample_shape), *self.batch_shape))
        return self.flow._sample(lead, self._conditions, self._prepared(), temperature, with_log_prob=with_log_prob)

    def _prepared(self) -> Prepared | None:
        tensors = [*self.flow.network.parameters(), *self._conditions.tensors.values()]
        if not self._conditions.tensors or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return None
        if torch._C._functorch.peek_interpreter_stack() is not None:  # a transform's tensors must not outlive it
            return None
        return self._cache.get(self.flow, self._conditions)


class _Cache:
    """What was prepared, and the state that it was prepared with."""

    def __init__(self) -> None:
        _watch_fused_steps()
        self.forget()

    def forget(self) -> None:
        self._prepared: Prepared | None = None
        self._tensors: list[Tensor] = []  # held, so that no other tensor can take the identity of a freed one
        self._state: tuple = ()

    def get(self, flow: Flow, conditions: Batch) -> Prepared | None:
        tensors = [*flow.network.parameters(), *flow.network.buffers(), *conditions.tensors.values()]
        fresh = len(tensors) == len(self._tensors) and all(a is b for a, b in zip(tensors, self._tensors, strict=True))
        if self._prepared is None or not fresh or self._state != _state(flow, tensors):
            # Kept values outlive an inference mode of the caller, so they must be ordinary tensors.
            with torch.inference_mode(False), torch.no_grad():
                self._prepared = flow._prepare(conditions)
            # After the work: a batch normalisation in train mode has just written to its buffers.
            self._tensors, self._state = tensors, _state(flow, tensors)
        return self._prepared


_fused_steps = 0  # in this process: a fused optimiser changes parameters without giving them a new version
_watching: Any = None


def _watch_fused_steps() -> None:
    global _watching
    if _watching is None:
        _watching = register_optimizer_step_post_hook(_count_fused_step)


def _count_fused_step(optimizer: Any, *arguments: Any) -> None:
    global _fused_steps
    _fused_steps += any(group.get("fused") for group in optimizer.param_groups)


def _state(flow: Flow, tensors: list[Tensor]) -> tuple:
    device = flow.network.reference.device.type
    versions = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    modes = tuple(module.training for module in flow.network.modules())
    if not torch.amp.is_autocast_available(device):
        return versions, modes, _fused_steps, None
    return versions, modes, _fused_steps, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
