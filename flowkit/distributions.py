"""Base distributions: what the latent is distributed as. Modules, so trained, moved and saved with the flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import register
from flowkit.shapes import as_shapes
from flowkit.subnets import MLP, build_subnet

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Base(nn.Module):
    """A distribution of the flat latent z `(..., D)`, conditional or not.

    Implementing one: `log_prob` and `sample` below; `condition_shapes` where it is conditional, which the flow fills
    from the wires that `fk.Flow(graph, base=..., base_given=...)` names. Temperature scales z about the base's
    location; log-probabilities are always those of the untempered distribution.

    Args:
        dim: D.
        given: event shapes of its conditions.
    """

    def __init__(self, dim: int, given: int | Sequence = ()):
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ConfigError(f"{type(self).__name__} needs a positive number of dimensions, got {dim!r}")
        self.dim = dim
        self.condition_shapes = as_shapes(given)

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """Log-density of z `(..., D)`, `(...)`; the conditions' leading dimensions broadcast against z's."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """`(*shape, D)`, differentiable in the base's parameters; the conditions broadcast against `shape`."""
        raise NotImplementedError(f"{type(self).__name__} has no sample")

    def log_prob_of_parts(self, parts: Sequence[Tensor], *conditions: Tensor) -> Tensor:
        """Log-density of a latent that lies in several tensors `(..., D_i)`; override where no flat copy is needed."""
        return self.log_prob(parts[0] if len(parts) == 1 else torch.cat(list(parts), -1), *conditions)

    def extra_repr(self) -> str:
        """The number of dimensions, and the conditions."""
        return f"{self.dim}" + (f", given={self.condition_shapes}" if self.condition_shapes else "")


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

    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """Standard normal numbers times the temperature."""
        return torch.randn(*shape, self.dim, dtype=self.origin.dtype, device=self.origin.device) * temperature


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
    """

    def __init__(self, dim: int, given: int | Sequence = (), subnet: Callable | None = None):
        super().__init__(dim, given)
        if any(len(shape) != 1 for shape in self.condition_shapes):
            raise ShapeError(
                f"DiagonalNormal takes vectors as conditions, got {self.condition_shapes}: use fk.ToVector()"
            )
        if self.condition_shapes:
            width = sum(shape[0] for shape in self.condition_shapes)
            self.net = build_subnet(subnet if subnet is not None else MLP(), (width,), (), 2 * dim)
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

    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """mu + sigma times standard normal numbers times the temperature."""
        loc, log_scale = self._moments(conditions)
        noise = torch.randn(*shape, self.dim, dtype=loc.dtype, device=loc.device)
        return loc + log_scale.exp() * noise * temperature
