"""Student's t: its distribution function and quantiles, which torch has no incomplete beta function for."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flowkit.constants import WithConstants
from flowkit.errors import ConfigError

LOWEST, HIGHEST = 0.1, 100.0  # degrees of freedom that so many nodes serve to float64's precision
NODES = 16
NEWTON = 8  # steps that are not recorded: the function is concave or convex, and they come from the right side
POLISH = 2  # recorded ones, which make the gradients exact, and those of the gradients


class StudentT(WithConstants):
    """The tail of Student's t with nu degrees of freedom, by quadrature.

    With phi = atan2(sqrt(nu), t) the upper tail at t >= 0 is c times the integral of sin(u)^(nu - 1) from 0 to phi, and
    u = phi v makes it c phi^nu times the integral of v^(nu - 1) (sin(phi v) / (phi v))^(nu - 1) from 0 to 1. What
    multiplies v^(nu - 1) is smooth, so Gauss-Jacobi quadrature gives it to rounding, and all terms are positive, so
    that tails keep their relative precision.

    Args:
        degrees: nu, from 0.1 to 100.

    Raises:
        ConfigError: degrees that are not given, or out of range.
    """

    nodes: Tensor
    weights: Tensor

    def __init__(self, owner: str, degrees: float | None):
        super().__init__()
        if degrees is None or isinstance(degrees, bool) or not LOWEST <= degrees <= HIGHEST:
            raise ConfigError(
                f"{owner}: 'student_t' needs degrees of freedom from {LOWEST:g} to {HIGHEST:g}, got {degrees!r} "
                "(beyond, it is nearly 'normal')"
            )
        self.degrees = nu = float(degrees)
        self.log_constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(math.pi)
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The rule of quadrature."""
        return dict(zip(("nodes", "weights"), _gauss_jacobi(self.degrees), strict=True))

    def _log_integral(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the integral over v, and of its integrand at 1 without weight."""
        ratios = torch.sinc((phi.unsqueeze(-1) * self.nodes) / math.pi).log() * (self.degrees - 1)
        return (ratios.exp() * self.weights).sum(-1).log(), torch.sinc(phi / math.pi).log() * (self.degrees - 1)

    def cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution function and the log-density."""
        nu, below = self.degrees, x < 0
        phi = torch.atan2(torch.full_like(x, math.sqrt(nu)), torch.where(below, -x, x))
        tail = (self.log_constant + nu * phi.log() + self._log_integral(phi)[0]).exp()
        half_log = torch.hypot(torch.ones_like(x), x / math.sqrt(nu)).log()  # a square would overflow in the tails
        log_density = self.log_constant - 0.5 * math.log(nu) - (nu + 1) * half_log
        return torch.where(below, tail, 1 - tail), log_density

    def quantile(self, p: Tensor) -> Tensor:
        """x with cdf(x) = p, by Newton's method on the log of the tail as a function of log phi."""
        nu, below = self.degrees, p < 0.5
        target = torch.where(below, p, 1 - p).log() - self.log_constant
        with torch.no_grad():
            log_phi = (target + math.log(nu)) / nu
            for _ in range(NEWTON):
                log_phi = self._step(log_phi, target)
        for _ in range(POLISH):
            log_phi = self._step(log_phi, target)
        phi = log_phi.exp()
        # The cotangent of phi, whose derivative by the logarithm does not overflow in the tails.
        x = math.sqrt(nu) * (-log_phi).exp() * phi.cos() / torch.sinc(phi / math.pi)
        return torch.where(below, -x, x)

    def _step(self, log_phi: Tensor, target: Tensor) -> Tensor:
        log_integral, at_one = self._log_integral(log_phi.exp())
        return log_phi - (self.degrees * log_phi + log_integral - target) * (log_integral - at_one).exp()


def _gauss_jacobi(nu: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1) for the weight v^(nu - 1), from the recurrence of its polynomials (Golub, Welsch)."""
    b, k = nu - 1, np.arange(NODES, dtype=np.float64)
    two = 2 * k[1:] + b
    diagonal = np.concatenate(([b / (b + 2)], b * b / (two * (two + 2))))
    beside = 4 * (k[1:] * (k[1:] + b)) ** 2 / (two**2 * (two**2 - 1))
    beside[0] = 4 * (1 + b) / ((b + 2) ** 2 * (b + 3))  # the same, without 0 / 0
    matrix = np.diag(diagonal) + np.diag(np.sqrt(beside), 1) + np.diag(np.sqrt(beside), -1)
    roots, vectors = np.linalg.eigh(matrix)
    return torch.from_numpy((roots + 1) / 2), torch.from_numpy(vectors[0] ** 2 / nu)
