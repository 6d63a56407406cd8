"""Two interleaving half circles with Gaussian noise: samples, and the true density to judge a flow by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE = 0.1
ANGLES = 512  # of the quadrature: their distance, 0.006, is far below the noise


def centres(angle: Tensor, label: Tensor) -> Tensor:
    """The noiseless point at an angle in 0..pi of moon 0 (upper) or 1 (lower), `(..., 2)`."""
    upper = torch.stack((angle.cos(), angle.sin()), -1)
    lower = torch.stack((1 - angle.cos(), 0.5 - angle.sin()), -1)
    return torch.where(label[..., None] == 1, lower, upper) - upper.new_tensor((0.5, 0.25))


def sample(count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Points `(N, 2)` and which moon each is from `(N,)`."""
    label = torch.randint(2, (count,), generator=generator)
    angle = math.pi * torch.rand(count, generator=generator)
    return centres(angle, label) + NOISE * torch.randn(count, 2, generator=generator), label


def log_prob(x: Tensor, label: Tensor) -> Tensor:
    """The true log p(x | label) `(N,)`: the Gaussian noise integrated over the half circle."""
    angle = (torch.arange(ANGLES, dtype=x.dtype, device=x.device) + 0.5) * math.pi / ANGLES
    squared = (x[:, None] - centres(angle.expand(len(x), -1), label[:, None].expand(-1, ANGLES))).square().sum(-1)
    return (squared / (-2 * NOISE**2)).logsumexp(1) - math.log(ANGLES * 2 * math.pi * NOISE**2)


def mixture(given_upper: Tensor, given_lower: Tensor) -> Tensor:
    """log p(x), where each moon is as likely as the other, from the log-densities of the two."""
    return torch.logaddexp(given_upper, given_lower) - math.log(2)
