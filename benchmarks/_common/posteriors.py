"""Problems whose posterior p(x | y) is known: densities, samples, and how much y says about x."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LinearGaussian:
    """x ~ N(0, I) in `size` dimensions; y = A x + noise in `observed` dimensions, with a random matrix A.

    p(x | y) = N(S A^T y / noise^2, S), S = (I + A^T A / noise^2)^-1; I(x, y) = log det(I + A^T A / noise^2) / 2.
    """

    name = "linear-Gaussian"

    def __init__(self, size: int = 2, observed: int = 20, noise: float = 2.0, seed: int = 0):
        self.size, self.observed, self.noise = size, observed, noise
        self.matrix = torch.randn(observed, size, generator=torch.Generator().manual_seed(seed))
        precision = torch.eye(size) + self.matrix.T @ self.matrix / noise**2
        self.covariance = torch.linalg.inv(precision)
        self.information = 0.5 * torch.linalg.slogdet(precision)[1].item()

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Pairs x `(B, size)` and y `(B, observed)`."""
        x = torch.randn(count, self.size)
        return x, x @ self.matrix.T + self.noise * torch.randn(count, self.observed)

    def log_posterior(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y), `(B,)`."""
        mean = y @ self.matrix @ self.covariance / self.noise**2
        return torch.distributions.MultivariateNormal(mean, self.covariance).log_prob(x)

    def log_prior(self, x: Tensor) -> Tensor:
        """log p(x), `(B,)`."""
        return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


class GaussianMixture:
    """x from four Gaussians on a square, of width `width`; y = x + noise, so p(x | y) is a mixture of Gaussians too.

    With weights w_k(y) of N(y; m_k, (width^2 + noise^2) I), p(x | y) has the means m_k + r (y - m_k) and the covariance
    r noise^2 I, r = width^2 / (width^2 + noise^2).
    """

    name = "mixture of Gaussians"
    size = observed = 2

    def __init__(self, width: float = 0.35, noise: float = 1.0):
        self.width, self.noise = width, noise
        self.means = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Pairs x `(B, 2)` and y `(B, 2)`."""
        x = self.means[torch.randint(4, (count,))] + self.width * torch.randn(count, 2)
        return x, x + self.noise * torch.randn(count, 2)

    def log_posterior(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y), `(B,)`."""
        total = self.width**2 + self.noise**2
        ratio = self.width**2 / total
        weights = torch.log_softmax(_log_normal(y[:, None], self.means, total), 1)
        means = self.means + ratio * (y[:, None] - self.means)
        return torch.logsumexp(weights + _log_normal(x[:, None], means, ratio * self.noise**2), 1)

    def log_prior(self, x: Tensor) -> Tensor:
        """log p(x), `(B,)`."""
        return torch.logsumexp(_log_normal(x[:, None], self.means, self.width**2), 1) - math.log(4)


def _log_normal(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + math.log(2 * math.pi * variance)).sum(-1)


def ranks(x: Tensor, samples: Tensor) -> Tensor:
    """How many samples `(S, B, D)` are below x `(B, D)`: uniform on 0..S where the samples are of the posterior."""
    return (samples < x).sum(0)


def rank_deviation(rank: Tensor, samples: int) -> float:
    """The largest distance of the ranks' distribution function `(B,)` from the uniform one on 0..samples."""
    steps = torch.arange(samples + 1)
    observed = (rank[:, None] <= steps).double().mean(0)
    return (observed - (steps + 1) / (samples + 1)).abs().max().item()


def deviation_bound(count: int, level: float = 0.01) -> float:
    """What `rank_deviation` of exact samples stays below with probability 1 - level (Dvoretzky, Kiefer, Wolfowitz).

    >>> round(deviation_bound(1000), 4)
    0.0515
    """
    return math.sqrt(math.log(2 / level) / (2 * count))
