"""The affine univariate map, with the field's three ways to clamp its log-scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowkit.bijection import may_overwrite
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.univariate import Univariate

CLAMPS = ("tanh", "atan", "softsign", None)
# FrEIA's rounding of 2 / pi, kept so that weights trained there give the same numbers here.
ATAN_FACTOR = 0.636
HALF = (torch.float16, torch.bfloat16)


def _as(value: Tensor, like: Tensor) -> Tensor:
    return (
        value if value.dtype == like.dtype else value.to(like.dtype)
    )  # a call of `to` costs even where it does nothing


@register("flowkit.affine")
class Affine(Univariate):
    """y = x exp(s) + t, with a clamped log-scale s = clamp(r); r and t are predicted.

    forward: y = x exp(s) + t, log-derivative s. inverse: x = (y - t) exp(-s), log-derivative -s.

    | clamp | s | bound |
    | --- | --- | --- |
    | `"tanh"` | gamma tanh(r), gamma learned per channel, `limit` at the start (the paper, section 4) | abs(gamma) |
    | `"atan"` | limit 0.636 atan(r / limit) (the paper's code; FrEIA 0.2 does not divide r) | 0.999 limit |
    | `"softsign"` | r / (1 + abs(r) / limit), the cheapest | limit |
    | `None` | r; exp overflows float32 beyond 88 | none |

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        clamp: see above.
        limit: the bound on the log-scale, above 0.

    Raises:
        ConfigError: an unknown clamp, or a limit that is not positive.
    """

    parameters_per_element: ClassVar[int] = 2

    def __init__(self, shape: Shape, clamp: str | None = "tanh", limit: float = 2.0):
        super().__init__(shape)
        if clamp not in CLAMPS:
            raise ConfigError(f"clamp must be 'tanh', 'atan', 'softsign' or None, got {clamp!r}")
        if not 0 < limit < float("inf"):
            raise ConfigError(f"limit, the bound on the log-scale, must be positive and finite, got {limit!r}")
        self.clamp, self.limit = clamp, float(limit)
        if clamp == "tanh":
            self.gamma = nn.Parameter(torch.full(shape[:1] + (1,) * len(shape[1:]), self.limit))

    def log_scale(self, raw: Tensor) -> Tensor:
        """s = clamp(r), in float32 or wider whatever autocast made of r."""
        r = raw.float() if raw.dtype in HALF else raw
        return self._log_scale(r, torch.sigmoid(r + r) if self.clamp == "tanh" else None)

    def _log_scale(self, r: Tensor, gate: Tensor | None) -> Tensor:
        if gate is not None:
            # gamma tanh(r) = 2 gamma sigmoid(2 r) - gamma: on a CPU this takes a third of tanh's time, and it loses
            # nothing, for s is rounded to float32's 1e-7 of gamma either way.
            return torch.addcmul(-self.gamma, gate, self.gamma + self.gamma)
        if self.clamp == "atan":
            # Divisions by 1 are left out: each pass over the data counts.
            return torch.atan(r if self.limit == 1 else r / self.limit) * (self.limit * ATAN_FACTOR)
        if self.clamp == "softsign":
            return r / (1 + (r.abs() if self.limit == 1 else r.abs() / self.limit))
        return r

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(x exp(s) + t, s)`."""
        raw, shift = parameters
        s = self.log_scale(raw)
        return torch.addcmul(_as(shift, s), _as(x, s), s.exp()), s

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`((y - t) exp(-s), -s)`."""
        raw, shift = parameters
        minus_s = -self.log_scale(raw)
        centred = _as(y, minus_s) - shift
        return centred.mul_(minus_s.exp()) if may_overwrite() else centred * minus_s.exp(), minus_s

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """In closed form: x exp(s) = y - t, so the gradient of s is grad_y (y - t) + grad_log."""
        raw, shift = parameters
        r = raw.float() if raw.dtype in HALF else raw
        gate = torch.sigmoid(r + r) if self.clamp == "tanh" else None
        s = self._log_scale(r, gate)
        shrink, scaled = (-s).exp_(), _as(y, s) - shift
        grad_s = torch.addcmul(grad_log, grad_y, scaled)
        own: dict[str, Tensor] = {}
        if gate is not None:
            grad_raw = torch.ops.aten.sigmoid_backward(grad_s, gate).mul_(4 * self.gamma)
            if self.gamma.requires_grad:
                own["gamma"] = 2 * (grad_s * gate).sum_to_size(self.gamma.shape) - grad_s.sum_to_size(self.gamma.shape)
        elif self.clamp == "atan":
            grad_raw = grad_s * (ATAN_FACTOR / (1 + (r / self.limit).square()))
        elif self.clamp == "softsign":
            grad_raw = grad_s / (1 + r.abs() / self.limit).square()
        else:
            grad_raw = grad_s
        grad_x = grad_y / shrink
        return scaled.mul_(shrink), grad_x, (grad_raw.to(raw.dtype), grad_y.to(shift.dtype)), own

    def extra_repr(self) -> str:
        """The clamp and its bound."""
        return f"clamp={self.clamp!r}, limit={self.limit:g}"


@register("flowkit.volume_preserving_affine")
class VolumePreservingAffine(Affine):
    """y = x exp(s) + t with s = clamp(r) minus its mean over the event: all s of a row sum to 0.

    forward: y = x exp(s) + t, log-derivative s. inverse: x = (y - t) exp(-s), log-derivative -s. The log-scales lie
    within twice the clamp's bound. Arguments and errors are `fk.Affine`'s.

    Source: Sorrenson et al., Disentanglement by nonlinear ICA with general incompressible-flow networks (GIN), 2020.
    """

    def log_scale(self, raw: Tensor) -> Tensor:
        """clamp(r) minus its mean over the event."""
        s = super().log_scale(raw)
        return s - s.mean(tuple(range(1, s.dim())), keepdim=True) if s.dim() > 1 else s - s

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """By autograd: the mean ties the elements together, so the parent's closed form does not hold."""
        return Univariate.undo(self, y, parameters, grad_y, grad_log)
