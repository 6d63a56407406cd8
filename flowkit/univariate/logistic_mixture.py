"""The logistic mixture of Flow++ and the sigmoidal map of NAF: a mixture's CDF, then a logit."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.bisection import TOLERANCE, solve_monotone
from flowkit.constants import WithConstants
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.monotone import (
    STEPS_OF_MIXTURE,
    STEPS_OF_SIGMOIDAL,
    check_count,
    check_limit,
    check_part,
    rates,
    soft_clamp,
    wide,
)
from flowkit.univariate.univariate import Univariate

WITHOUT_THE_IDENTITY = {"min_derivative": 0.0}  # what files of before the identity's part mean


class Mixture(NamedTuple):
    """The components' log-weights, slopes and offsets `(B, K, ...)`, and the identity's part in the result."""

    log_weights: Tensor
    slopes: Tensor
    offsets: Tensor
    least: float


def logit_of_mixture(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """`(y, log y')` with y = (1 - e) logit(sum_k w_k sigmoid(a_k x + b_k)) + e x.

    Nowhere is a probability taken out of its logarithm, so that neither tails nor the plateaus between components that
    lie far apart overflow or round to 0 or 1.
    """
    log_weights, slopes, offsets, least = mixture
    z = slopes * x.unsqueeze(1) + offsets
    below, above = F.logsigmoid(z), F.logsigmoid(-z)
    left, right = log_weights + below, log_weights + above
    y = left.logsumexp(1) - right.logsumexp(1)
    # y' = F' / F + F' / (1 - F), each a mean of the components' slopes under their shares in the tail.
    shares = torch.cat((left.log_softmax(1) + above, right.log_softmax(1) + below), 1)
    log_slopes = slopes.log()
    log_derivative = (shares + torch.cat((log_slopes, log_slopes), 1)).logsumexp(1)
    if not least:
        return y, log_derivative
    floor = torch.full_like(log_derivative, math.log(least))
    return (1 - least) * y + least * x, torch.logaddexp(log_derivative + math.log1p(-least), floor)


def invert_logit_of_mixture(y: Tensor, mixture: Mixture, steps: int) -> Tensor:
    """x of the above: it lies between the smallest and the largest of those that single components would give."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        z = slopes * x.unsqueeze(1) + offsets
        left, right = log_weights + F.logsigmoid(z), log_weights + F.logsigmoid(-z)
        # A step needs the derivative alone, not its logarithm.
        shares = left.softmax(1) * (-z).sigmoid() + right.softmax(1) * z.sigmoid()
        value, derivative = left.logsumexp(1) - right.logsumexp(1), (slopes * shares).sum(1)
        return part * value + least * x, part * derivative + least

    log_weights, slopes, offsets, least = mixture
    part = 1 - least
    with torch.no_grad():
        roots = (y.unsqueeze(1) - part * offsets) / (part * slopes + least)
        low, high = roots.amin(1), roots.amax(1)
        margin = (high - low) * 0.01 + (low.abs() + high.abs()) * torch.finfo(y.dtype).eps * 4
    return solve_monotone(function, y, low - margin, high + margin, steps)


def _check_least(owner: str, min_derivative: float) -> None:
    if not 0 <= min_derivative < 1:
        raise ConfigError(f"{owner}: min_derivative must be at least 0 and below 1, got {min_derivative!r}")


@register("flowkit.sigmoidal")
class Sigmoidal(WithConstants, Univariate):
    """The deep sigmoidal map of neural autoregressive flows, and a small part of the identity.

    With F(x) = sum_k w_k sigmoid(a_k x + b_k), and e = `min_derivative`:

    forward: y = (1 - e) logit(F(x)) + e x. its log-derivative: log((1 - e) F'(x) / (F(x) (1 - F(x))) + e), computed
    from logarithms alone.
    inverse: by safeguarded Newton steps between the smallest and largest x that single components would give,
    where the root must lie; gradients are those of the implicit function. its log-derivative: minus the above at x.

    Slopes a are softplus + `min_slope`, weights w a softmax. Zero parameters are the identity; the components part by
    fixed rates, 1/2 to 3/2, that multiply each one's numbers. Beyond the outermost components the map is linear in the
    limit, so 1e6 passes in float32. Between components that lie far apart the paper's formula, which is e = 0, has
    plateaus: where its slope falls below rounding, y no longer says what x was. The identity's part keeps the slope
    above e. The inverse is right to `tolerance` in y, or to y's rounding; in x its error is that over the slope.

    Parameters: raw slopes, offsets b, raw weights, each `(B, K, C, ...)`; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        components: K, at least 1.
        min_slope: the smallest slope of a component, above 0 and below 1.
        min_derivative: e, from 0 to below 1; 0 is the paper's formula, whose plateaus cannot be inverted.

    Raises:
        ConfigError: components below 1, a smallest slope or derivative out of range.

    Source: Huang et al., Neural autoregressive flows, 2018, section 3.1, equation 8.

    >>> sigmoidal = Sigmoidal((3,), components=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = sigmoidal(x, *sigmoidal.split(torch.zeros(1, 3 * sigmoidal.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    iterative: ClassVar[bool] = True
    tolerance: ClassVar[float] = TOLERANCE
    later_settings: ClassVar[dict[str, Any]] = WITHOUT_THE_IDENTITY
    rates: Tensor

    def __init__(self, shape: Shape, components: int = 8, min_slope: float = 1e-3, min_derivative: float = 1e-3):
        check_count("Sigmoidal", "components", components, 1)
        check_part("Sigmoidal", "min_slope", min_slope)
        _check_least("Sigmoidal", min_derivative)
        self.parameter_shapes = ((components,),) * (3 if components > 1 else 2)
        super().__init__(shape)
        self.components, self.min_slope, self.min_derivative = components, float(min_slope), float(min_derivative)
        self.offset = math.log(math.expm1(1 - min_slope))  # softplus of it is 1 - min_slope
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The components' rates."""
        return {"rates": rates(self.components, self.shape)}

    def _mixture(self, parameters: tuple[Tensor, ...]) -> Mixture:
        slopes = F.softplus(self.rates * parameters[0] + self.offset) + self.min_slope
        offsets = self.rates * parameters[1]
        weights = parameters[2].log_softmax(1) if self.components > 1 else torch.zeros_like(offsets)
        return Mixture(weights, slopes, offsets, self.min_derivative)

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, parameters = wide(x, parameters)
        return logit_of_mixture(x, self._mixture(parameters))

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, parameters = wide(y, parameters)
        mixture = self._mixture(parameters)
        x = invert_logit_of_mixture(y, mixture, STEPS_OF_SIGMOIDAL)
        return x, -logit_of_mixture(x, mixture)[1]


@register("flowkit.logistic_mixture")
class LogisticMixture(WithConstants, Univariate):
    """Flow++'s map: the CDF of a mixture of logistics, a logit and a small part of the identity, then an affine map.

    With F(x) = sum_k w_k sigmoid((x - m_k) exp(-s_k)), and e = `min_derivative`:

    forward: y = exp(s) ((1 - e) logit(F(x)) + e x) + t. its log-derivative: s + log((1 - e) F'(x) / (F(x) (1 - F(x))) +
    e), computed from logarithms alone.
    inverse: the affine map undone, then safeguarded Newton steps between what single components would give, where
    the root must lie; gradients are those of the implicit function. its log-derivative: minus the above at x.

    Log-scales are r / (1 + |r| / limit) of what is predicted, weights a softmax. Zero parameters are the identity;
    the components part by fixed rates, 1/2 to 3/2, that multiply each one's numbers. Tails and plateaus are as
    `fk.Sigmoidal`'s.

    Parameters: raw weights, locations m, raw log-scales, each `(B, K, C, ...)`; raw log-scale s and shift t, of x's
    shape; computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        components: K, at least 2: one component is an affine map.
        limit: the bound on all log-scales.
        min_derivative: e, from 0 to below 1; 0 is the paper's formula, whose plateaus cannot be inverted.

    Raises:
        ConfigError: components below 2, a limit or smallest derivative out of range.

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
    later_settings: ClassVar[dict[str, Any]] = WITHOUT_THE_IDENTITY
    rates: Tensor

    def __init__(self, shape: Shape, components: int = 8, limit: float = 5.0, min_derivative: float = 1e-3):
        check_count("LogisticMixture", "components", components, 2)
        check_limit("LogisticMixture", limit)
        _check_least("LogisticMixture", min_derivative)
        self.parameter_shapes = ((components,), (components,), (components,), (), ())
        super().__init__(shape)
        self.components, self.limit, self.min_derivative = components, float(limit), float(min_derivative)
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The components' rates."""
        return {"rates": rates(self.components, self.shape)}

    def _mixture(self, parameters: tuple[Tensor, ...]) -> Mixture:
        slopes = (-soft_clamp(self.rates * parameters[2], self.limit)).exp()
        offsets = -slopes * self.rates * parameters[1]
        return Mixture(parameters[0].log_softmax(1), slopes, offsets, self.min_derivative)

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, parameters = wide(x, parameters)
        y, log_derivative = logit_of_mixture(x, self._mixture(parameters))
        s = soft_clamp(parameters[3], self.limit)
        return y * s.exp() + parameters[4], log_derivative + s

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, parameters = wide(y, parameters)
        mixture, s = self._mixture(parameters), soft_clamp(parameters[3], self.limit)
        x = invert_logit_of_mixture((y - parameters[4]) * (-s).exp(), mixture, STEPS_OF_MIXTURE)
        return x, -logit_of_mixture(x, mixture)[1] - s
