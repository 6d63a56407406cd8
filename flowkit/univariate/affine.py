"""The affine univariate map, with the field's three ways to clamp its log-scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowkit.errors import ConfigError
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
        if self.clamp == "tanh":
            # gamma tanh(r) = 2 gamma sigmoid(2 r) - gamma: on a CPU this takes a third of tanh's time, and it loses
            # nothing, for s is rounded to float32's 1e-7 of gamma either way.
            return torch.addcmul(-self.gamma, torch.sigmoid(r + r), self.gamma + self.gamma)
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
        return (_as(y, minus_s) - shift) * minus_s.exp(), minus_s

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """In closed form: x exp(s) = y - t, so the gradient of s is grad_y (y - t) + grad_log."""
        raw, shift = parameters
        r = raw.float() if raw.dtype in HALF else raw
        own: dict[str, Tensor] = {}
        if self.clamp == "tanh":
            gate = torch.sigmoid(r + r)
            tanh = gate + gate - 1
            s, slope = torch.addcmul(-self.gamma, gate, self.gamma + self.gamma), self.gamma * (4 * gate * (1 - gate))
        elif self.clamp == "atan":
            over = r if self.limit == 1 else r / self.limit
            s, slope = torch.atan(over) * (self.limit * ATAN_FACTOR), ATAN_FACTOR / (1 + over.square())
        elif self.clamp == "softsign":
            below = 1 / (1 + r.abs() / self.limit)
            s, slope = r * below, below.square()
        else:
            s, slope = r, None
        shrink = (-s).exp()
        scaled = _as(y, s) - shift
        grad_s = torch.addcmul(grad_log, grad_y, scaled)
        if self.clamp == "tanh" and self.gamma.requires_grad:
            own["gamma"] = (grad_s * tanh).sum_to_size(self.gamma.shape)
        grad_raw = grad_s if slope is None else grad_s * slope
        return scaled * shrink, grad_y / shrink, (grad_raw.to(raw.dtype), grad_y.to(shift.dtype)), own

    def extra_repr(self) -> str:
        """The clamp and its bound."""
        return f"clamp={self.clamp!r}, limit={self.limit:g}"
