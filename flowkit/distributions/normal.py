"""Normal base distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.distributions.base import Base, Parametrized, check_dim, predictor
from flowkit.registry import register

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@register("flowkit.standard_normal")
class StandardNormal(Base):
    """z ~ N(0, 1) in D dimensions: log p(z) = -|z|^2 / 2 - D log(2 pi) / 2.

    >>> StandardNormal(2).log_prob(torch.zeros(3, 2, dtype=torch.float64)).tolist()
    [-1.8378770664093453, -1.8378770664093453, -1.8378770664093453]
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("origin", torch.zeros(()), persistent=False)  # follows dtype and device
        self.origin: Tensor

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """`-|z|^2 / 2 - D log(2 pi) / 2`."""
        return self.log_prob_of_parts([z])

    def log_prob_of_parts(self, parts: Sequence[Tensor], *conditions: Tensor) -> Tensor:
        """The same, of z in several tensors, without a flat copy."""
        squares = sum(part.square().sum(-1) for part in parts)
        return -0.5 * squares - self.dim * LOG_SQRT_2PI  # type: ignore[return-value]

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D)`."""
        return torch.randn(*shape, self.dim, dtype=self.origin.dtype, device=self.origin.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """Standard normal numbers times the temperature."""
        return noise * temperature


@register("flowkit.diagonal_normal")
class DiagonalNormal(Base):
    """z ~ N(mu, diag(sigma^2)), with mu and log sigma learned, or predicted from the conditions.

    log p(z) = -sum(((z - mu) / sigma)^2 / 2 + log sigma) - D log(2 pi) / 2. It starts as the standard normal.

    Args:
        dim: D.
        given: event shapes of the conditions, vectors; without any, mu and log sigma are parameters.
        subnet: the recipe of the net that predicts them, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: a subnet without conditions.
    """

    def __init__(self, dim: int, given: int | Sequence = (), subnet: Callable | None = None):
        super().__init__(dim, given)
        net = predictor("DiagonalNormal", self.condition_shapes, 2 * dim, subnet)
        if net is not None:
            self.net = net
        else:
            self.loc = nn.Parameter(torch.zeros(dim))
            self.log_scale = nn.Parameter(torch.zeros(dim))

    def _moments(self, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if not self.condition_shapes:
            return self.loc, self.log_scale
        lead = torch.broadcast_shapes(*[c.shape[:-1] for c in conditions])
        flat = torch.cat([c.expand(*lead, c.shape[-1]) for c in conditions], -1)
        predicted: Any = self.net(flat.reshape(-1, flat.shape[-1]))
        # Wide before anything is drawn or summed: under autocast the net may give half precision.
        wide = predicted.to(torch.float64 if predicted.dtype == torch.float64 else torch.float32)
        loc, log_scale = wide.reshape(*lead, 2 * self.dim).chunk(2, -1)
        return loc, log_scale

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        loc, log_scale = self._moments(conditions)
        whitened = (z - loc) * (-log_scale).exp()
        return (-0.5 * whitened.square() - log_scale).sum(-1) - self.dim * LOG_SQRT_2PI

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D)`."""
        like = next(self.parameters())
        return torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """mu + sigma times standard normal numbers times the temperature."""
        loc, log_scale = self._moments(conditions)
        return loc + log_scale.exp() * noise * temperature


@register("flowkit.full_normal")
class FullNormal(Parametrized):
    """z ~ N(mu, L L^T), with mu and the lower triangle L learned, or predicted from the conditions.

    log p(z) = -|L^-1 (z - mu)|^2 / 2 - sum(log diagonal of L) - D log(2 pi) / 2. The diagonal of L is an exponential,
    so the covariance cannot become singular. It starts as the standard normal. The cost is D^2 for each z. Temperature
    scales z about mu.

    Args:
        dim: D.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts the D + D (D + 1) / 2 numbers, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: a subnet without conditions.

    >>> FullNormal(2, given=3).log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    places: Tensor

    def __init__(self, dim: int, given: int | Sequence = (), subnet: Callable | None = None):
        check_dim("FullNormal", dim)
        super().__init__(dim, torch.zeros(2 * dim + dim * (dim - 1) // 2), given, subnet)
        rows, columns = torch.tril_indices(dim, dim, -1)
        self.register_buffer("places", rows * dim + columns, persistent=False)  # of the triangle, in the flat matrix

    def _moments(self, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """mu, the log of L's diagonal, and L."""
        dim = self.dim
        loc, log_diagonal, below = self.predicted(conditions).split([dim, dim, dim * (dim - 1) // 2], -1)
        flat = log_diagonal.exp().diag_embed().flatten(-2)
        factor = flat.scatter(-1, self.places.expand(below.shape), below)
        return loc, log_diagonal, factor.unflatten(-1, (dim, dim))

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        loc, log_diagonal, factor = self._moments(conditions)
        whitened = torch.linalg.solve_triangular(factor, (z - loc).unsqueeze(-1), upper=False).squeeze(-1)
        return -0.5 * whitened.square().sum(-1) - log_diagonal.sum(-1) - self.dim * LOG_SQRT_2PI

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D)`."""
        return torch.randn(*shape, self.dim, dtype=self.numbers.dtype, device=self.numbers.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """mu + L times standard normal numbers times the temperature."""
        loc, _, factor = self._moments(conditions)
        # No matrix product: autocast would round it to half precision.
        return loc + (factor * noise.unsqueeze(-2)).sum(-1) * temperature
