"""A base whose density is learned by accepting and rejecting proposals (LARS)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.arguments import is_int
from flowkit.distributions.base import Base
from flowkit.distributions.normal import LOG_SQRT_2PI
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import register
from flowkit.subnets import MLP, build_subnet

DEFAULT_NET = MLP(hidden=(64, 64), activation="silu")


@register("flowkit.resampled")
class Resampled(Base):
    """A standard normal resampled by a learned acceptance probability a(z), at most T times: LARS.

    log p(z) = log N(z; 0, 1) + log((1 - r) a(z) / Z + r), with Z the mean of a under the normal and r = (1 - Z)^(T-1),
    the probability that T - 1 proposals were rejected, after which the T-th is taken whatever it is. a(z) is a net's
    sigmoid, 1/2 everywhere at the start, so that p starts as the normal. With holes, rings and clusters in the base a
    flow need not tear space. With conditions c, a(z, c).

    Z is the mean of a over `points` fixed points: a scrambled Sobol sequence through the normal's quantiles, a buffer
    that is saved. It is recomputed, with its gradient, at every call, so it never lags behind the net. Its bias: log Z
    is off by the integration error, so densities integrate to Z over its estimate and not to one exactly: about 1 /
    `points` in two dimensions, 1 / sqrt(`points`) in many. Training could exploit the fixed points where they are few
    for the net: `redraw()` between epochs prevents it, and a comparison of the log-likelihood before and after shows
    it. A call costs the net on `points` more rows, with conditions on `points` rows for every row of theirs.

    A sample runs T rounds at most, each on all rows, and stops when all are accepted; it has no gradient. Temperature
    scales accepted draws about the origin.

    Args:
        dim: D.
        truncation: T, at least 1; 1 is the normal.
        points: how many points Z is computed from.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net, by default an `fk.MLP` of two layers of 64.

    Raises:
        ConfigError: truncation or points below 1.
        ShapeError: a condition that is not a vector.

    Source: Bauer and Mnih, Resampled priors for variational autoencoders, 2019; Stimper et al., Resampling base
        distributions of normalizing flows, 2022.

    >>> Resampled(2, points=64).sample((3,)).shape
    torch.Size([3, 2])
    """

    points: Tensor

    def __init__(
        self,
        dim: int,
        truncation: int = 100,
        points: int = 2048,
        given: int | Sequence = (),
        subnet: Callable | None = None,
    ):
        super().__init__(dim, given)
        for name, value in (("truncation", truncation), ("points", points)):
            if not is_int(value) or value < 1:
                raise ConfigError(f"Resampled: {name} must be an int of at least 1, got {value!r}")
        if any(len(shape) != 1 for shape in self.condition_shapes):
            raise ShapeError(f"Resampled takes vectors as conditions, got {self.condition_shapes}: use fk.ToVector()")
        self.truncation = truncation
        width = dim + sum(shape[0] for shape in self.condition_shapes)
        self.net: Any = build_subnet(DEFAULT_NET if subnet is None else subnet, (width,), (), 1)
        self.register_buffer("points", _normal_points(points, dim))

    def redraw(self) -> None:
        """New points for Z, from torch's generator."""
        self.points.copy_(_normal_points(*self.points.shape))

    def _log_accept(self, z: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        """log a(z, c), float32 or wider; the conditions broadcast against z."""
        lead = torch.broadcast_shapes(z.shape[:-1], *[c.shape[:-1] for c in conditions])
        joined = torch.cat([each.expand(*lead, each.shape[-1]) for each in (z, *conditions)], -1)
        logit = self.net(joined.reshape(-1, joined.shape[-1])).reshape(lead)
        return logsigmoid(logit.to(torch.float64 if logit.dtype == torch.float64 else torch.float32))

    def _log_normalizer(self, conditions: Sequence[Tensor]) -> Tensor:
        log_accept = self._log_accept(self.points, [c.unsqueeze(-2) for c in conditions])
        return log_accept.logsumexp(-1) - math.log(len(self.points))

    def normalizer(self, *conditions: Tensor) -> Tensor:
        """Z, `()`, or one for each row of the conditions."""
        return self._log_normalizer(conditions).exp()

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        log_normal = (-0.5 * z.square()).sum(-1) - self.dim * LOG_SQRT_2PI
        if self.truncation == 1:
            return log_normal + 0 * self._log_accept(z, conditions)  # of the net's batch, with a gradient of 0
        log_z = self._log_normalizer(conditions)
        info = torch.finfo(log_z.dtype)
        # Of r = (1 - Z)^(T-1), whose logarithm is finite: Z is below 1 but for rounding. Everything stays a logarithm,
        # for in float32 a hole of the base is soon below what a number can hold, and r with it.
        log_taken = (self.truncation - 1) * torch.log1p(-log_z.exp().clamp(max=1 - info.eps))
        log_rest = (-torch.expm1(log_taken)).clamp_min(info.tiny).log()
        return log_normal + torch.logaddexp(log_rest + self._log_accept(z, conditions) - log_z, log_taken)

    @torch.no_grad()
    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """The first accepted of at most T proposals, times the temperature."""
        like = self.points
        z = torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device)
        if self.truncation == 1:
            return z * temperature
        accepted = torch.zeros(tuple(shape), dtype=torch.bool, device=like.device)
        for _ in range(self.truncation - 1):
            log_uniform = -torch.empty(tuple(shape), dtype=like.dtype, device=like.device).exponential_()
            accepted = accepted | (log_uniform < self._log_accept(z, conditions))
            if accepted.all():
                break
            proposal = torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device)
            z = torch.where(accepted.unsqueeze(-1), z, proposal)
        return z * temperature

    def extra_repr(self) -> str:
        """D, the conditions, T, and the number of points."""
        return f"{super().extra_repr()}, truncation={self.truncation}, points={len(self.points)}"


def _normal_points(count: int, dim: int) -> Tensor:
    """Scrambled quasi-random standard normal numbers; beyond Sobol's dimensions, random ones."""
    dtype = torch.get_default_dtype()
    if dim > torch.quasirandom.SobolEngine.MAXDIM or torch.get_default_device().type == "meta":
        return torch.randn(count, dim)
    seed = int(torch.randint(2**31, (), device="cpu"))
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-9, 1 - 1e-9) - 1)
    return normal.to(device=torch.get_default_device(), dtype=dtype)
