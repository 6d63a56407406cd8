"""The affine univariate map of Glow, whose scale is a sigmoid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.bijection import HALF
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.affine import Affine

OFFSET = 2.0  # of the authors' code: a subnet that gives zeros scales by sigmoid(2) = 0.88


@register("flowkit.sigmoid_affine")
class SigmoidAffine(Affine):
    """y = x exp(s) + t with the scale exp(s) = sigmoid(r + 2) + m; r and t are predicted.

    forward: y = x exp(s) + t, log-derivative s. inverse: x = (y - t) exp(-s), log-derivative -s.

    The scale lies between m and 1 + m, so the forward map can hardly stretch, and with m above 0 the inverse cannot
    explode. Zero parameters give y = (0.88 + m) x, which is the nearest to the identity that Glow's scale comes.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        min_scale: m; 0 is the authors' code, where exp(-s) has no bound, 0.001 nflows'.

    Raises:
        ConfigError: a min_scale that is negative or not finite.

    Source: Kingma and Dhariwal, Glow, 2018, table 1, and the sigmoid of its code.

    >>> SigmoidAffine((1,), min_scale=0.0)(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))[0].round(decimals=4)
    tensor([[0.8808]])
    """

    def __init__(self, shape: Shape, min_scale: float = 1e-3):
        super().__init__(shape, clamp=None)
        if not 0 <= min_scale < math.inf:
            raise ConfigError(f"min_scale must be finite and not negative, got {min_scale!r}")
        self.min_scale = float(min_scale)

    def log_scale(self, raw: Tensor) -> Tensor:
        """s = log(sigmoid(r + 2) + m), in float32 or wider whatever autocast made of r."""
        r = raw.float() if raw.dtype in HALF else raw
        s = logsigmoid(r + OFFSET)
        return s if self.min_scale == 0 else torch.logaddexp(s, s.new_full((), math.log(self.min_scale)))

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """In closed form: with g = sigmoid(r + 2), the gradient of r is that of s times g (1 - g) / (g + m)."""
        raw, shift = parameters
        r = (raw.float() if raw.dtype in HALF else raw) + OFFSET
        s = self.log_scale(raw)
        scaled = y.to(s.dtype) - shift
        grad_s = torch.addcmul(grad_log, grad_y, scaled)
        slope = torch.sigmoid(-r) * (logsigmoid(r) - s).exp()
        return scaled * (-s).exp(), grad_y * s.exp(), ((grad_s * slope).to(raw.dtype), grad_y.to(shift.dtype)), {}

    def extra_repr(self) -> str:
        """The smallest scale."""
        return f"min_scale={self.min_scale:g}"
