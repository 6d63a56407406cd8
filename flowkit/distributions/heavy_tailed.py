"""Base distributions of independent elements other than normal: Laplace, logistic, Student-t, uniform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from flowkit.distributions.base import Base, Parametrized, check_dim, predict, predictor
from flowkit.errors import ConfigError
from flowkit.registry import register

LEAST_DF = 0.1  # degrees of freedom
SERIES_FROM = 200.0  # from here on the series' first three terms are right to float64's rounding


class LocationScale(Parametrized):
    """z = loc + exp(log_scale) u with independent elements u of a standard law: abstract.

    A subclass has `standard_log_density(u)`, element by element, and `standard_noise(shape, like)`.
    """

    def __init__(self, dim: int, given: int | Sequence = (), subnet: Callable | None = None):
        check_dim(type(self).__name__, dim)
        super().__init__(dim, torch.zeros(2 * dim), given, subnet)

    def standard_log_density(self, u: Tensor) -> Tensor:
        """Of each element of u."""
        raise NotImplementedError(f"{type(self).__name__} has no standard_log_density")

    def standard_noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draws of this shape, in like's dtype, on its device."""
        raise NotImplementedError(f"{type(self).__name__} has no standard_noise")

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        loc, log_scale = self.predicted(conditions).chunk(2, -1)
        return (self.standard_log_density((z - loc) * (-log_scale).exp()) - log_scale).sum(-1)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Draws `(*shape, D)` of the standard law."""
        return self.standard_noise((*shape, self.dim), self.numbers)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """The location plus scale times noise times the temperature."""
        loc, log_scale = self.predicted(conditions).chunk(2, -1)
        return loc + log_scale.exp() * noise * temperature


@register("flowkit.laplace")
class Laplace(LocationScale):
    """Independent Laplace elements: log p(z) = -sum(abs(z - loc) / scale + log(2 scale)).

    loc and log scale are learned, or predicted from the conditions; they start at 0. Temperature scales z about loc.

    Args:
        dim: D.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: a subnet without conditions.

    >>> round(Laplace(1).log_prob(torch.zeros(1, 1)).item(), 4)
    -0.6931
    """

    def standard_log_density(self, u: Tensor) -> Tensor:
        """-abs(u) - log 2."""
        return -u.abs() - math.log(2)

    def standard_noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The difference of two exponential draws."""
        draws = torch.empty(2, *shape, dtype=like.dtype, device=like.device).exponential_()
        return draws[0] - draws[1]


@register("flowkit.logistic")
class Logistic(LocationScale):
    """Independent logistic elements, the prior of NICE: log p(z) = sum(log f((z - loc) / scale) - log scale).

    f(u) = sigmoid(u) sigmoid(-u), so that the tails are those of an exponential. loc and log scale are learned, or
    predicted from the conditions; they start at 0. Temperature scales z about loc.

    Args:
        dim: D.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: a subnet without conditions.

    Source: Dinh et al., NICE, 2015, section 3.4.

    >>> Logistic(1).log_prob(torch.zeros(1, 1)).exp().item()
    0.25
    """

    def standard_log_density(self, u: Tensor) -> Tensor:
        """log sigmoid(u) + log sigmoid(-u)."""
        return logsigmoid(u) + logsigmoid(-u)

    def standard_noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The difference of the logs of two exponential draws, which has no value that must be left out."""
        draws = torch.empty(2, *shape, dtype=like.dtype, device=like.device).exponential_()
        return draws[0].log() - draws[1].log()


@register("flowkit.generalized_normal")
class GeneralizedNormal(LocationScale):
    """Independent elements of density proportional to exp(-|u|^beta): Laplace at 1, normal at 2, a box far above.

    log p(z) = sum(log beta - log(2 Gamma(1 / beta)) - |u|^beta - log scale), u = (z - loc) / scale. loc and log scale
    are learned, or predicted from the conditions; they start at 0, where beta = 2 has the variance 1/2. Temperature
    scales z about loc.

    Args:
        dim: D.
        beta: the exponent, above 0; below 1 the density has a peak without a derivative.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: beta is not positive and finite; a subnet without conditions.

    Source: Nadarajah, A generalized normal distribution, 2005.

    >>> GeneralizedNormal(3, beta=8.0).sample((5,)).shape
    torch.Size([5, 3])
    """

    def __init__(self, dim: int, beta: float = 4.0, given: int | Sequence = (), subnet: Callable | None = None):
        super().__init__(dim, given, subnet)
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
            raise ConfigError(f"GeneralizedNormal: beta must be positive and finite, got {beta!r}")
        self.beta = float(beta)
        self.log_normalizer = math.log(self.beta / 2) - math.lgamma(1 / self.beta)

    def standard_log_density(self, u: Tensor) -> Tensor:
        """log beta - log(2 Gamma(1 / beta)) - |u|^beta."""
        return self.log_normalizer - u.abs() ** self.beta

    def standard_noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The root of a draw of Gamma(1 + 1 / beta), times a uniform one between -1 and 1.

        The root of Gamma(1 / beta) has the same law, but for a large beta a part of its draws is rounded to 0.
        """
        size = torch._standard_gamma(torch.full(tuple(shape), 1 + 1 / self.beta, dtype=like.dtype, device=like.device))
        return torch.empty_like(size).uniform_(-1, 1) * size ** (1 / self.beta)

    def extra_repr(self) -> str:
        """D, the conditions, and the exponent."""
        return f"{super().extra_repr()}, beta={self.beta:g}"


def _log_gamma_step(a: float) -> float:
    """log gamma(a + 1/2) - log gamma(a), by Stirling's series where the difference would lose the digits."""
    if a < SERIES_FROM:
        return math.lgamma(a + 0.5) - math.lgamma(a)
    return 0.5 * math.log(a) - 1 / (8 * a) + 1 / (192 * a**3)


@register("flowkit.student_t")
class StudentT(LocationScale):
    """Independent Student-t elements of fixed degrees of freedom, for data with heavy tails.

    log p(z) = sum(log t_df((z - loc) / scale) - log scale). loc and log scale are learned, or predicted from the
    conditions; they start at 0. Temperature scales z about loc.

    Args:
        dim: D.
        df: degrees of freedom, at least 0.1, below which draws leave float32's range; the variance is infinite up to 2.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: df is below 0.1 or not finite; a subnet without conditions.

    Source: Jaini et al., Tails of Lipschitz triangular flows, 2020.

    >>> StudentT(3, df=4.0).sample((5,)).shape
    torch.Size([5, 3])
    """

    def __init__(self, dim: int, df: float = 5.0, given: int | Sequence = (), subnet: Callable | None = None):
        super().__init__(dim, given, subnet)
        if not LEAST_DF <= df < math.inf:
            raise ConfigError(
                f"StudentT: df, the degrees of freedom, must be at least {LEAST_DF} and finite, got {df!r}"
            )
        self.df = float(df)
        self.log_normalizer = _log_gamma_step(self.df / 2) - 0.5 * math.log(math.pi * self.df)

    def standard_log_density(self, u: Tensor) -> Tensor:
        """log of the density of Student's t."""
        # log(1 + v^2) / 2, whose square would overflow float32 beyond 1e19; by log1p near 0, where 1 + v^2 is rounded
        # to 1 and df times the error would be felt.
        v = u / math.sqrt(self.df)
        near = v.abs() < 1
        close = 0.5 * torch.where(near, v, 0.0).square().log1p()
        half_log = torch.where(near, close, torch.hypot(torch.ones_like(v), v).log())
        return self.log_normalizer - (self.df + 1) * half_log

    def standard_noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A normal draw over the root of a chi-square draw by its degrees."""
        normal = torch.randn(*shape, dtype=like.dtype, device=like.device)
        chi_square = 2 * torch._standard_gamma(torch.full_like(normal, self.df / 2))
        return normal * (self.df / chi_square).sqrt()

    def extra_repr(self) -> str:
        """D, the conditions, and the degrees of freedom."""
        return f"{super().extra_repr()}, df={self.df:g}"


@register("flowkit.uniform")
class Uniform(Base):
    """Uniform on the box [low, high]: log p(z) = -sum(log(high - low)) within it, minus infinity outside.

    It has no parameters. With conditions a net moves and stretches the box, which starts as the given one: its middle
    is moved by s (high - low), its sides are multiplied by exp(t), s and t predicted; the likelihood of data outside is
    0, and has no gradient that would widen the box to hold it. Temperature scales z about the middle of the box.

    Args:
        dim: D.
        low, high: a number, or D of them, low below high.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts s and t, `fk.MLP` by default.

    Raises:
        ConfigError: bounds that are not finite, of another number, or reversed; a subnet without conditions.
        ShapeError: a condition that is not a vector.

    >>> Uniform(2, low=-1.0, high=1.0).log_prob(torch.zeros(1, 2)).exp().item()
    0.25
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        dim: int,
        low: float | Sequence[float] = 0.0,
        high: float | Sequence[float] = 1.0,
        given: int | Sequence = (),
        subnet: Callable | None = None,
    ):
        super().__init__(dim, given)
        bounds = [torch.as_tensor(each, dtype=torch.get_default_dtype()) for each in (low, high)]
        if any(bound.dim() > 1 or bound.numel() not in (1, dim) for bound in bounds):
            raise ConfigError(f"Uniform: low and high must be a number or {dim} of them, got {low!r} and {high!r}")
        low_, high_ = (each.expand(dim).clone() for each in broadcast_all(*bounds))
        if not (low_.isfinite().all() and high_.isfinite().all() and (low_ < high_).all()):
            raise ConfigError(f"Uniform: low must be below high, both finite, got {low!r} and {high!r}")
        self.register_buffer("low", low_)
        self.register_buffer("high", high_)
        self.net = predictor("Uniform", self.condition_shapes, 2 * dim, subnet)

    def _bounds(self, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Low and high, `(D,)`, or for the rows of the conditions `(..., D)`."""
        if self.net is None:
            return self.low, self.high
        shift, log_stretch = predict(self.net, conditions).chunk(2, -1)
        width = self.high - self.low
        middle, half = (self.low + self.high) / 2 + shift * width, width / 2 * log_stretch.exp()
        return middle - half, middle + half

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class; NaN where z is."""
        low, high = self._bounds(conditions)
        inside = ((z >= low) & (z <= high)).all(-1)
        log_density = -(high - low).log().sum(-1) + 0 * z.sum(-1)
        return torch.where(inside | z.isnan().any(-1), log_density, -math.inf)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Uniform draws `(*shape, D)` from 0 to 1."""
        return torch.rand(*shape, self.dim, dtype=self.low.dtype, device=self.low.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """Uniform draws, scaled by the temperature about the middle."""
        low, high = self._bounds(conditions)
        z = (low + high) / 2 + (noise - 0.5) * (high - low) * temperature
        # Rounding must not put a draw outside the box, where its density is 0.
        within = torch.minimum(torch.maximum(z, low), high)
        if isinstance(temperature, Tensor):  # no branch on its value, so that an exported sample takes any
            return torch.where(temperature > 1, z, within)
        return z if temperature > 1 else within
