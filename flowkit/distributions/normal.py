"""Normal base distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.distributions.base import Base, Parametrized, check_dim, predictor
from flowkit.errors import ConfigError
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
        like = next(itertools.chain(self.parameters(), self.buffers()))  # a net may have nothing to learn
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


@register("flowkit.low_rank_normal")
class LowRankNormal(Parametrized):
    """z ~ N(mu, diag(sigma^2) + W W^T) with W of R columns: the covariance of few common causes of many dimensions.

    With A = I + W^T diag(sigma^-2) W of R x R, u = (z - mu) / sigma and v = W^T (u / sigma):
    log p(z) = -(|u|^2 - v^T A^-1 v) / 2 - sum(log sigma) - log det(A) / 2 - D log(2 pi) / 2. mu, log sigma and W are
    learned, or predicted from the conditions. mu and log sigma start at 0, and W, whose gradient would be 0 at 0, is
    drawn from N(0, 0.01^2) by torch's generator. The cost is D R for each z, and D R^2 for each condition. Temperature
    scales z about mu.

    Args:
        dim: D.
        rank: R, at least 1.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts the D (R + 2) numbers, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: a rank below 1; a subnet without conditions.

    Source: factor analysis; normflows' `GaussianPCA` has one sigma for all.

    >>> LowRankNormal(50, rank=3).sample((5,)).shape
    torch.Size([5, 50])
    """

    def __init__(self, dim: int, rank: int = 4, given: int | Sequence = (), subnet: Callable | None = None):
        if not is_int(rank) or rank < 1:
            raise ConfigError(f"LowRankNormal: rank must be an int of at least 1, got {rank!r}")
        check_dim("LowRankNormal", dim)
        super().__init__(dim, torch.cat((torch.zeros(2 * dim), 0.01 * torch.randn(dim * rank))), given, subnet)
        self.rank = rank

    def _moments(self, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """mu and log sigma `(..., D)`, W `(..., D, R)`."""
        dim = self.dim
        loc, log_scale, factor = self.predicted(conditions).split([dim, dim, dim * self.rank], -1)
        return loc, log_scale, factor.unflatten(-1, (dim, self.rank))

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        loc, log_scale, factor = self._moments(conditions)
        scaled = factor * (-log_scale).exp().unsqueeze(-1)
        # A = (I; scaled)^T (I; scaled) is not formed: in float32 its small eigenvalues, 1 or so, would be rounded away
        # where sigma is small, and no Cholesky factor be found.
        ones = torch.eye(self.rank, dtype=scaled.dtype, device=scaled.device).expand(*scaled.shape[:-2], -1, -1)
        directions, triangle = torch.linalg.qr(torch.cat((ones, scaled), -2))
        u = (z - loc) * (-log_scale).exp()
        # |u|^2 - v^T A^-1 v is what the columns leave of (0; u). Sums: autocast would round matrix products to half.
        below = directions[..., self.rank :, :]
        explained = (below * u.unsqueeze(-1)).sum(-2).unsqueeze(-2)
        rest = u - (below * explained).sum(-1)
        above = (directions[..., : self.rank, :] * explained).sum(-1)
        log_det = log_scale.sum(-1) + triangle.diagonal(0, -2, -1).abs().log().sum(-1)
        return -0.5 * (rest.square().sum(-1) + above.square().sum(-1)) - log_det - self.dim * LOG_SQRT_2PI

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D + R)`."""
        return torch.randn(*shape, self.dim + self.rank, dtype=self.numbers.dtype, device=self.numbers.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """mu + (sigma times D standard normal numbers + W times R more) times the temperature."""
        loc, log_scale, factor = self._moments(conditions)
        own, common = noise.split([self.dim, self.rank], -1)
        return loc + (log_scale.exp() * own + (factor * common.unsqueeze(-2)).sum(-1)) * temperature

    def extra_repr(self) -> str:
        """D, the conditions, and R."""
        return f"{super().extra_repr()}, rank={self.rank}"
