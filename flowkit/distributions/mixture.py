"""Mixtures: of diagonal normals with learned weights, and one normal for each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.distributions.base import Base, Parametrized, check_dim
from flowkit.domain import has_values
from flowkit.errors import ConfigError, InputError, ShapeError
from flowkit.registry import register

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@register("flowkit.gaussian_mixture")
class GaussianMixture(Parametrized):
    """z ~ sum_k w_k N(mu_k, diag(sigma_k^2)), with weights, means and scales learned, or predicted from the conditions.

    log p(z) = logsumexp_k(log w_k + log N(z; mu_k, sigma_k)). The weights start equal, the scales at 1, the means are
    drawn from N(0, spread^2) by torch's generator. A sample is differentiable in the mean and scale of its component,
    not in the weights. Temperature scales z about the mean of its component.

    Args:
        dim: D.
        components: K, at least 1.
        spread: the standard deviation of the means at the start.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net that predicts the K (2 D + 1) numbers, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: components below 1, a spread that is negative or not finite; a subnet without conditions.

    >>> GaussianMixture(2, components=5).sample((3,)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        dim: int,
        components: int = 8,
        spread: float = 1.0,
        given: int | Sequence = (),
        subnet: Callable | None = None,
    ):
        if not is_int(components) or components < 1:
            raise ConfigError(f"GaussianMixture: components must be an int of at least 1, got {components!r}")
        if not 0 <= spread < math.inf:
            raise ConfigError(f"GaussianMixture: spread must be at least 0 and finite, got {spread!r}")
        check_dim("GaussianMixture", dim)
        means = float(spread) * torch.randn(components * dim)
        super().__init__(dim, torch.cat((torch.zeros(components), means, torch.zeros_like(means))), given, subnet)
        self.components = components

    def _parts(self, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """log weights `(..., K)`, means and log scales `(..., K, D)`."""
        k, dim = self.components, self.dim
        raw, means, log_scales = self.predicted(conditions).split([k, k * dim, k * dim], -1)
        return raw.log_softmax(-1), means.unflatten(-1, (k, dim)), log_scales.unflatten(-1, (k, dim))

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        log_weights, means, log_scales = self._parts(conditions)
        whitened = (z.unsqueeze(-2) - means) * (-log_scales).exp()
        each = (-0.5 * whitened.square() - log_scales).sum(-1) - self.dim * LOG_SQRT_2PI
        return (log_weights + each).logsumexp(-1)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """D standard normal and K Gumbel draws, `(*shape, D + K)`."""
        dtype, device = self.numbers.dtype, self.numbers.device
        normal = torch.randn(*shape, self.dim, dtype=dtype, device=device)
        exponential = torch.empty(*shape, self.components, dtype=dtype, device=device).exponential_()
        return torch.cat((normal, -exponential.log()), -1)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """A component by its weight, then its normal."""
        log_weights, means, log_scales = self._parts(conditions)
        normal, gumbel = noise.split([self.dim, self.components], -1)
        lead = noise.shape[:-1]
        # The largest of weight plus Gumbel noise falls on a component with its probability, at any leading shape.
        chosen = (log_weights.detach() + gumbel).argmax(-1)[..., None, None].expand(*lead, 1, self.dim)
        full = (*lead, self.components, self.dim)
        mean, log_scale = (each.expand(full).gather(-2, chosen).squeeze(-2) for each in (means, log_scales))
        return mean + log_scale.exp() * normal * temperature

    def extra_repr(self) -> str:
        """D, the conditions, and K."""
        return f"{super().extra_repr()}, components={self.components}"


@register("flowkit.class_conditional")
class ClassConditional(Base):
    """One diagonal normal for each class, chosen by a label or a one-hot vector: z ~ N(mu_c, diag(sigma_c^2)).

    log p(z | c) = -sum(((z - mu_c) / sigma_c)^2 / 2 + log sigma_c) - D log(2 pi) / 2. Means are drawn from
    N(0, spread^2) at the start, scales are 1; a flow with this base classifies by p(z | c). Temperature scales z about
    mu_c. For a condition that is a mixture of classes, means and log scales are mixed.

    Args:
        dim: D.
        given: the shape of the condition, `(classes,)`: a one-hot vector, see `fk.OneHot`; or `((),)`: an integer
            label.
        spread: the standard deviation of the means at the start.
        classes: how many there are, where the condition is a label.

    Raises:
        ShapeError: not one condition that is a vector or a label.
        ConfigError: a spread that is negative or not finite; a label without `classes`, or `classes` that differ from
            the vector's.
        InputError: labels that are no integers, or in eager mode outside of 0 to classes - 1.

    Source: Izmailov et al., Semi-supervised learning with normalizing flows, 2020; Ardizzone et al., Training
        normalizing flows with the information bottleneck, 2020.

    >>> ClassConditional(2, given=10).log_prob(torch.zeros(5, 2), torch.eye(10)[:5]).shape
    torch.Size([5])
    """

    def __init__(self, dim: int, given: int | Sequence = (), spread: float = 1.0, classes: int | None = None):
        super().__init__(dim, given)
        if len(self.condition_shapes) != 1 or len(self.condition_shapes[0]) > 1:
            raise ShapeError(
                f"ClassConditional takes one condition (classes,), a one-hot vector as fk.OneHot(n) gives, or (), a "
                f"label, got {self.condition_shapes or 'none'}"
            )
        if isinstance(classes, bool) or not (classes is None or (isinstance(classes, int) and classes > 0)):
            raise ConfigError(f"ClassConditional: classes must be a positive int, got {classes!r}")
        self.labels = not self.condition_shapes[0]
        if self.labels and classes is None:
            raise ConfigError("ClassConditional on a label needs to know how many there are: pass classes=")
        if not self.labels and classes not in (None, *self.condition_shapes[0]):
            raise ConfigError(f"ClassConditional: classes is {classes}, the condition is of {self.condition_shapes[0]}")
        if not 0 <= spread < math.inf:
            raise ConfigError(f"ClassConditional: spread must be at least 0 and finite, got {spread!r}")
        classes = self.condition_shapes[0][0] if classes is None else classes
        self.means = nn.Parameter(float(spread) * torch.randn(classes, dim))
        self.log_scales = nn.Parameter(torch.zeros(classes, dim))

    def _of_labels(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(f"ClassConditional needs integer labels, got {labels.dtype}")
        count = len(self.means)
        if has_values(labels) and ((labels < 0) | (labels >= count)).any():
            found = labels.min().item() if labels.min() < 0 else labels.max().item()
            raise InputError(f"ClassConditional needs labels from 0 to {count - 1}, got {found}")
        labels = labels.long()  # bytes would be taken for a mask
        return self.means[labels], self.log_scales[labels]

    def _moments(self, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        if self.labels:
            return self._of_labels(one_hot)
        weight = one_hot.to(self.means.dtype).unsqueeze(-1)
        # No matrix product: autocast would round it to half precision.
        return (weight * self.means).sum(-2), (weight * self.log_scales).sum(-2)

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        loc, log_scale = self._moments(conditions[0])
        whitened = (z - loc) * (-log_scale).exp()
        return (-0.5 * whitened.square() - log_scale).sum(-1) - self.dim * LOG_SQRT_2PI

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D)`."""
        return torch.randn(*shape, self.dim, dtype=self.means.dtype, device=self.means.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """mu_c + sigma_c times standard normal numbers times the temperature."""
        loc, log_scale = self._moments(conditions[0])
        return loc + log_scale.exp() * noise * temperature
