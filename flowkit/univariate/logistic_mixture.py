"""The logistic mixture of Flow++ and the sigmoidal map of NAF: a mixture's CDF, then a logit."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.bisection import TOLERANCE, solve_monotone
from flowkit.constants import WithConstants
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.monotone import (
    BISECTIONS_OF_MIXTURE,
    check_count,
    check_limit,
    check_part,
    rates,
    soft_clamp,
    wide,
)
from flowkit.univariate.univariate import Univariate


def logit_of_mixture(x: Tensor, log_weights: Tensor, slopes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """`(y, log y')` with y = logit(sum_k w_k sigmoid(a_k x + b_k)); parameters `(B, K, ...)`.

    Nowhere is a probability taken out of its logarithm, so that neither tails nor the plateaus between components that
    lie far apart overflow or round to 0 or 1.
    """
    z = slopes * x.unsqueeze(1) + offsets
    below, above = F.logsigmoid(z), F.logsigmoid(-z)
    left, right = log_weights + below, log_weights + above
    y = left.logsumexp(1) - right.logsumexp(1)
    # y' = F' / F + F' / (1 - F), each a mean of the components' slopes under their shares in the tail.
    shares = torch.cat((left.log_softmax(1) + above, right.log_softmax(1) + below), 1)
    log_slopes = slopes.log()
    return y, (shares + torch.cat((log_slopes, log_slopes), 1)).logsumexp(1)


def invert_logit_of_mixture(y: Tensor, log_weights: Tensor, slopes: Tensor, offsets: Tensor) -> Tensor:
    """x of the above: it lies between the smallest and the largest of the components' own (y - b_k) / a_k."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        value, log_derivative = logit_of_mixture(x, log_weights, slopes, offsets)
        return value, log_derivative.exp()

    with torch.no_grad():
        roots = (y.unsqueeze(1) - offsets) / slopes
        low, high = roots.amin(1), roots.amax(1)
        margin = (high - low) * 0.01 + (low.abs() + high.abs()) * torch.finfo(y.dtype).eps * 4
    return solve_monotone(function, y, low - margin, high + margin, BISECTIONS_OF_MIXTURE)


@register("flowkit.sigmoidal")
class Sigmoidal(WithConstants, Univariate):
    """The deep sigmoidal map of neural autoregressive flows: y = logit(sum_k w_k sigmoid(a_k x + b_k)).

    forward: as above; its log-derivative log(F'(x) / (F(x) (1 - F(x)))) with F the sum, computed from logarithms alone.
    inverse: by bisection and Newton's method between the smallest and largest of (y - b_k) / a_k, where the root must
    lie; gradients are those of the implicit function. its log-derivative: minus the above at x.

    Slopes a are softplus + `min_slope`, weights w a softmax. Zero parameters are the identity; the components part by
    fixed rates, 1/2 to 3/2, that multiply each one's numbers. Beyond the outermost components the map is linear in the
    limit, so 1e6 passes in float32. The inverse is right to `tolerance` in y; in x its error is that over the slope,
    and where components lie so far apart that the slope between them rounds to 0, it finds no more than that plateau.

    Parameters: raw slopes, offsets b, raw weights, each `(B, K, C, ...)`; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        components: K, at least 1.
        min_slope: the smallest slope of a component, above 0 and below 1.

    Raises:
        ConfigError: components below 1, a smallest slope out of range.

    Source: Huang et al., Neural autoregressive flows, 2018, section 3.1, equation 8.

    >>> sigmoidal = Sigmoidal((3,), components=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = sigmoidal(x, *sigmoidal.split(torch.zeros(1, 3 * sigmoidal.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    iterative: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE
    rates: Tensor

    def __init__(self, shape: Shape, components: int = 8, min_slope: float = 1e-3):
        check_count("Sigmoidal", "components", components, 1)
        check_part("Sigmoidal", "min_slope", min_slope)
        self.parameter_shapes = ((components,),) * (3 if components > 1 else 2)
        super().__init__(shape)
        self.components, self.min_slope = components, float(min_slope)
        self.offset = math.log(math.expm1(1 - min_slope))  # softplus of it is 1 - min_slope
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The components' rates."""
        return {"rates": rates(self.components, self.shape)}

    def _mixture(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        slopes = F.softplus(self.rates * parameters[0] + self.offset) + self.min_slope
        offsets = self.rates * parameters[1]
        weights = parameters[2].log_softmax(1) if self.components > 1 else torch.zeros_like(offsets)
        return weights, slopes, offsets

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, parameters = wide(x, parameters)
        return logit_of_mixture(x, *self._mixture(parameters))

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, parameters = wide(y, parameters)
        mixture = self._mixture(parameters)
        x = invert_logit_of_mixture(y, *mixture)
        return x, -logit_of_mixture(x, *mixture)[1]


@register("flowkit.logistic_mixture")
class LogisticMixture(WithConstants, Univariate):
    """Flow++'s map: the CDF of a mixture of logistics, a logit, then an affine map.

    forward: y = exp(s) logit(sum_k w_k sigmoid((x - m_k) exp(-s_k))) + t; its log-derivative s + log(F'(x) / (F(x) (1 -
    F(x)))) with F the sum, computed from logarithms alone.
    inverse: the affine map undone, then bisection and Newton's method between the components' own quantiles, where the
    root must lie; gradients are those of the implicit function. its log-derivative: minus the above at x.

    Log-scales are r / (1 + |r| / limit) of what is predicted, weights a softmax. Zero parameters are the identity;
    the components part by fixed rates, 1/2 to 3/2, that multiply each one's numbers. Tails and plateaus are as
    `fk.Sigmoidal`'s.

    Parameters: raw weights, locations m, raw log-scales, each `(B, K, C, ...)`; raw log-scale s and shift t, of x's
    shape; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        components: K, at least 2: one component is an affine map.
        limit: the bound on all log-scales.

    Raises:
        ConfigError: components below 2, a limit out of range.

    Source: Ho et al., Flow++: Improving flow-based generative models with variational dequantization and architecture
        design, 2019, section 3.2, equations 11 to 14.

    >>> mixture = LogisticMixture((3,), components=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = mixture(x, *mixture.split(torch.zeros(1, 3 * mixture.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    iterative: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE
    rates: Tensor

    def __init__(self, shape: Shape, components: int = 8, limit: float = 5.0):
        check_count("LogisticMixture", "components", components, 2)
        check_limit("LogisticMixture", limit)
        self.parameter_shapes = ((components,), (components,), (components,), (), ())
        super().__init__(shape)
        self.components, self.limit = components, float(limit)
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The components' rates."""
        return {"rates": rates(self.components, self.shape)}

    def _mixture(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        slopes = (-soft_clamp(self.rates * parameters[2], self.limit)).exp()
        return parameters[0].log_softmax(1), slopes, -slopes * self.rates * parameters[1]

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, parameters = wide(x, parameters)
        y, log_derivative = logit_of_mixture(x, *self._mixture(parameters))
        s = soft_clamp(parameters[3], self.limit)
        return y * s.exp() + parameters[4], log_derivative + s

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, parameters = wide(y, parameters)
        mixture, s = self._mixture(parameters), soft_clamp(parameters[3], self.limit)
        x = invert_logit_of_mixture((y - parameters[4]) * (-s).exp(), *mixture)
        return x, -logit_of_mixture(x, *mixture)[1] - s
