"""Distribution functions and quantile functions as elementwise maps, with a location and a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from flowkit.bijections.activations import Activation
from flowkit.bijections.student import StudentT
from flowkit.errors import ConfigError
from flowkit.registry import Example, register


def _normal(x: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * torch.erfc(-x / math.sqrt(2)), -0.5 * x * x - 0.5 * math.log(2 * math.pi)


def _logistic(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sigmoid(), logsigmoid(x) + logsigmoid(-x)


def _logistic_quantile(p: Tensor) -> Tensor:
    return p.log() - torch.log1p(-p)


def _laplace(x: Tensor) -> tuple[Tensor, Tensor]:
    tail = 0.5 * (-x.abs()).exp()
    return torch.where(x < 0, tail, 1 - tail), -x.abs() - math.log(2)


def _laplace_quantile(p: Tensor) -> Tensor:
    return torch.where(p < 0.5, (2 * p).log(), -(2 * (1 - p)).log())


def _cauchy(x: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones_like(x)
    return torch.atan2(one, -x) / math.pi, -math.log(math.pi) - 2 * torch.hypot(one, x).log()  # x * x would overflow


def _cauchy_quantile(p: Tensor) -> Tensor:
    # In float32 pi p is off by 1e-7, which is much beside what p lacks to 1/2 or to 1: these are exact.
    tail = torch.where(p < 0.5, p, 1 - p)
    central = tail > 0.25
    centre = torch.tan(math.pi * torch.where(central, p - 0.5, 0.0))
    size = 1 / torch.tan(math.pi * torch.where(central, 0.25, tail))
    return torch.where(central, centre, torch.where(p < 0.5, -size, size))


# By name: x to (cdf, log-density), and p to the quantile, of location 0 and scale 1.
Functions = tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]
DISTRIBUTIONS: dict[str, Functions] = {
    "normal": (_normal, torch.special.ndtri),
    "logistic": (_logistic, _logistic_quantile),
    "laplace": (_laplace, _laplace_quantile),
    "cauchy": (_cauchy, _cauchy_quantile),
}


def _examples() -> list[Example]:
    return [
        Example(()),
        Example((1,), distribution="logistic", learned=True),
        Example((3,), distribution="laplace", loc=0.5, scale=2.0),
        Example((1, 4), distribution="cauchy", learned=True),
        Example((2,), distribution="student_t", degrees=2.5, learned=True),
        # Not a learned normal: with weights drawn at random its tails are rounded to 1, which has no inverse.
        Example((3, 2, 2), distribution="logistic", learned=True),
    ]


class _Standardized(Activation):
    """What a distribution function and its inverse share: the location and the scale, fixed or learned per channel."""

    loc: Tensor
    log_scale: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        distribution: str = "normal",
        loc: float = 0.0,
        scale: float = 1.0,
        learned: bool = False,
        check: bool = True,
        degrees: float | None = None,
    ):
        super().__init__(shape, check)
        owner = type(self).__name__
        if distribution not in (*DISTRIBUTIONS, "student_t"):
            known = ", ".join((*DISTRIBUTIONS, "student_t"))
            raise ConfigError(f"{owner}: distribution must be one of {known}, got {distribution!r}")
        if degrees is not None and distribution != "student_t":
            raise ConfigError(f"{owner}: degrees of freedom go with 'student_t', got {degrees!r} with {distribution!r}")
        if not math.isfinite(loc) or not 0 < scale < math.inf:
            raise ConfigError(f"{owner}: loc must be finite and scale positive, got {loc!r} and {scale!r}")
        self.distribution = distribution
        self.student = StudentT(owner, degrees) if distribution == "student_t" else None
        shape = self.in_shapes[0]
        per_channel = shape[:1] + (1,) * len(shape[1:])
        for name, value in (("loc", float(loc)), ("log_scale", math.log(scale))):
            start = torch.full(per_channel, value, dtype=torch.get_default_dtype())
            if learned:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)

    def _functions(self) -> Functions:
        if self.student is not None:
            return self.student.cdf, self.student.quantile
        return DISTRIBUTIONS[self.distribution]

    def _cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_density = self._functions()[0]((x - self.loc) * (-self.log_scale).exp())
        return y, log_density - self.log_scale

    def _quantile(self, p: Tensor) -> tuple[Tensor, Tensor]:
        cdf, quantile = self._functions()
        x = quantile(p)
        return self.loc + x * self.log_scale.exp(), self.log_scale - cdf(x)[1]

    def extra_repr(self) -> str:
        """The event shape and the distribution."""
        return f"{self.in_shapes[0]}, {self.distribution}"


@register("flowkit.cdf", examples=_examples)
class CDF(_Standardized):
    """The distribution function F of a location-scale family, from the line to (0, 1).

    With f = F' and u = (x - loc) / scale:
    forward: y = F(u), log-det the sum of log f(u) - log scale.
    inverse: x = loc + scale F^-1(y), log-det the sum of log scale - log f(F^-1(y)).

    The log-det comes of the log-density, so that it is exact far out where y is rounded to 1; lower tails keep their
    relative precision. Shapes: x `(B, C, ...)` or `(B,)`, log_det `(B,)`.

    Args:
        shape: event shape.
        distribution: `"normal"`, `"logistic"`, `"laplace"`, `"cauchy"` or `"student_t"`.
        loc, scale: finite, and positive.
        learned: whether location and log-scale are parameters, one per channel, that start there.
        check: refuse values outside (0, 1) in `inverse`, in eager mode.
        degrees: of freedom, with `"student_t"` alone, from 0.1 to 100. Its functions are computed by quadrature of 16
            nodes and by Newton's method, to float64's precision; they cost as much as some hundred additions a number.

    Raises:
        ConfigError: an unknown distribution, a location, scale or degrees of freedom out of range.
        InputError: a value outside the domain, with its index.

    >>> CDF((1,), distribution="cauchy")(torch.zeros(1, 1))[0].item()
    0.5
    """

    image = (0.0, 1.0)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._cdf(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._quantile(y)

    def example_inputs(self, rows: int) -> Tensor:
        """Draws about the location, not so far out that the image is rounded to 1 in float32."""
        x = torch.randn(rows, *self.in_shapes[0]).clamp(-0.5, 0.5).to(self.loc)
        return (self.loc + x * self.log_scale.exp()).detach()


@register("flowkit.quantile", examples=_examples)
class Quantile(_Standardized):
    """The quantile function of a location-scale family, from (0, 1) to the line: `fk.CDF` the other way round.

    With F the distribution function, f = F' and u = (y - loc) / scale:
    forward: y = loc + scale F^-1(x), log-det the sum of log scale - log f(F^-1(x)).
    inverse: x = F(u), log-det the sum of log f(u) - log scale.

    Shapes, arguments and errors as for `fk.CDF`; the check is on `forward`.

    >>> Quantile((1,))(torch.full((1, 1), 0.5))[0].item()
    0.0
    """

    domain = (0.0, 1.0)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._quantile(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._cdf(y)
