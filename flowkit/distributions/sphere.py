"""The uniform distribution on a sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.distributions.base import Base
from flowkit.errors import ConfigError
from flowkit.registry import register


@register("flowkit.uniform_sphere")
class UniformSphere(Base):
    """Uniform on the unit sphere S^D in R^(D+1): log p(z) = -log of its area, with respect to its area.

    The area is 2 pi^((D+1)/2) / Gamma((D+1)/2): 2 pi for the circle, 4 pi for S^2. It has no parameters. z is
    taken to be on the sphere, and is not looked at. The uniform distribution has no location, so temperature changes
    nothing.

    Args:
        dim: D + 1, the number of coordinates, at least 2.

    Raises:
        ConfigError: fewer than two coordinates.

    >>> round(UniformSphere(3).log_prob(torch.tensor([[0.0, 0.0, 1.0]])).exp().item() * 4 * math.pi, 4)
    1.0
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        if dim < 2:
            raise ConfigError(f"UniformSphere needs two or more coordinates, got {dim}")
        self.log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
        self.register_buffer("origin", torch.zeros(()), persistent=False)  # follows dtype and device
        self.origin: Tensor

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """Minus the log of the area; NaN where z is."""
        return 0 * z.sum(-1) - self.log_area

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D + 1)`."""
        return torch.randn(*shape, self.dim, dtype=self.origin.dtype, device=self.origin.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """Their directions."""
        return noise / noise.norm(dim=-1, keepdim=True)
