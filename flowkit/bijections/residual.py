"""Residual blocks: the identity plus a contraction, inverted by iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import Bijection
from flowkit.bijections.conditioning import check_conditions
from flowkit.bijections.linear import full_precision
from flowkit.contraction import fixed_point, newton_or_picard
from flowkit.errors import ConfigError, ShapeError
from flowkit.first_order import first_order
from flowkit.jacobian_net import CONTRACTIONS, JacobianNet, Linearized
from flowkit.registry import Example, register
from flowkit.shapes import numel

LOG_DETS = ("auto", "exact", "estimate")
EXACT_UP_TO = 32  # elements: the exact log-det costs as much as so many runs of the net
NEWTON = 8  # steps where the Jacobian is known: 7 were enough for nets trained to bend, each squares the error at last
SECOND = "a ResidualBlock's estimated log-det in training mode: call eval() or use log_det='exact'"
PICARD_MARGIN = 1e-3  # of the tolerance, which the most steps of the fixed point are counted for


def _examples() -> list[Example]:
    return [
        Example((1,), hidden=4),
        Example((3,), given=((2,), (1,)), hidden=(6, 5)),
        Example((2, 3), given=((1, 3),), hidden=3, activation="softplus"),
        Example((1, 2, 3), hidden=4, activation="elu", coeff=0.97),
        Example((3,), given=(2,), hidden=5, log_det="estimate", eval_terms=6),
        Example((3, 2, 2), hidden=3, activation="tanh", log_det="estimate", terms=1, probes=2),
    ]


@register("flowkit.residual_block", examples=_examples)
class ResidualBlock(Bijection):
    """y = x + g(x, c) with a net g that contracts x: |g(x, c) - g(x', c)| <= coeff |x - x'|, coeff < 1.

    forward: y = x + g(x, c), log-det log det(I + J) with J = dg/dx.
    inverse: x is the only root of x + g(x, c) = y, log-det minus the above.

    g is layers W a(h) + b, on maps convolutions with zero padding, and the activations' slopes are at most 1. Each W is
    multiplied by limit / max(|W|, limit) with limit = coeff**(1 / layers), where |W| is an upper bound of the norm of
    the linear map itself, for a convolution with its padding on this height and width, see `flowkit.spectral`: at most
    min(C, C')**(1/256) too large for matrices, a few per cent for convolutions on maps of some size. Conditions are
    added to the first layer by a weight that nothing bounds. The last layer starts at zero, the block as the identity;
    the others start orthogonal, with biases as far apart as data of variance 1, and LipSwish with a slope b of 20,
    nearly a ReLU: of weights that are bounded, Chen et al.'s b of 1 makes units that are straight within the data.

    With `log_det="exact"` the log-det is the determinant of the D x D Jacobian, which one pass of the net with D
    tangents gives. The inverse takes Newton's steps, parts of them, or steps of the fixed point x <- y - g(x), whatever
    comes nearest, in a fixed number, so that it compiles and exports; its gradients are exact up to the third.

    With `log_det="estimate"` the block is `stochastic` and `adaptive`. The log-det is an unbiased estimate, drawn anew
    at every call: the power series of the logarithm, cut at random (Russian roulette), its traces by random signs
    (Hutchinson). In training its gradient is the unbiased estimate of the Neumann series, which records one product
    whatever the number of terms, and a second derivative is refused. In eval mode the estimate is unbiased too, with
    more terms before the roulette, and the gradient is that of the value itself. One number of terms is drawn for all
    rows of a call; its chance to go on, `survival`, is above coeff**2, so that the variance is finite. The inverse
    takes steps of the fixed point until the residual is small enough, with exact gradients by the implicit function
    theorem, the second refused.

    In both, the residual |x + g(x, c) - y| <= tolerance (1 + |y|) is checked in eager mode, and x is within that
    divided by 1 - coeff of the root. The tolerance is 1e-12 in float64; in float32, 3e-5.

    Shapes: x `(B, C)` or `(B, C, ...)` with up to three spatial dimensions, conditions `(B, C', ...)` of the same
    spatial size, log_det `(B,)`. Autocast is off within the block. On CUDA, convolutions need
    `torch.backends.cudnn.allow_tf32 = False` to reach the tolerance.

    Args:
        shape: event shape.
        given: shapes of the conditions.
        hidden: widths of the hidden layers.
        activation: lipswish (with a learned slope), elu, tanh or softplus.
        kernel: an odd kernel size, for maps.
        coeff: the bound on the Lipschitz constant of g, above 0 and below 1.
        log_det: `"exact"`, `"estimate"`, or `"auto"`, exact up to `exact_up_to` elements.
        exact_up_to: see `log_det`.
        terms, eval_terms: of the series that are always computed, in training and in eval mode.
        survival: the chance that the series goes on after that, at each term; by default coeff.
        probes: random sign vectors, whose estimates are averaged.
        iterations: of the inverse; by default 8 Newton steps, or as many steps of the fixed point as coeff may need.

    Raises:
        ShapeError: a scalar or more than three spatial dimensions; a condition that does not fit.
        ConfigError: a number out of its range; an unknown activation or `log_det`.
        ConvergenceError: the inverse did not reach the tolerance, in eager mode.
        BackpropError: a second derivative of what has none, see above.

    Source: Behrmann et al., Invertible residual networks, 2019; Chen et al., Residual flows for invertible generative
        modeling, 2019, theorems 1 and 2 (the log-det and its gradient), section 3.3 (LipSwish).

    >>> y, log_det = ResidualBlock((3,), given=(2,), hidden=(16,))(torch.ones(5, 3), torch.zeros(5, 2))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    iterative = True
    tolerance = 1e-12

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "lipswish",
        kernel: int = 3,
        coeff: float = 0.9,
        log_det: str = "auto",
        exact_up_to: int = EXACT_UP_TO,
        terms: int = 4,
        eval_terms: int = 20,
        survival: float | None = None,
        probes: int = 1,
        iterations: int | None = None,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        if not 1 <= len(shape) <= 4 or not numel(shape):
            raise ShapeError(f"ResidualBlock needs vectors (D,) or maps, (C, ...) to (C, D, H, W), got shape {shape}")
        if not 0 < coeff < 1:
            raise ConfigError(f"ResidualBlock: coeff must be above 0 and below 1, got {coeff!r}")
        if log_det not in LOG_DETS:
            raise ConfigError(f"ResidualBlock: log_det must be one of {', '.join(LOG_DETS)}, got {log_det!r}")
        survival = coeff if survival is None else survival
        if not coeff**2 < survival < 1:
            raise ConfigError(
                f"ResidualBlock: survival must be above coeff**2 = {coeff**2:g}, so that the variance is finite, and "
                f"below 1, got {survival!r}"
            )
        counts = {"exact_up_to": exact_up_to, "terms": terms, "eval_terms": eval_terms, "probes": probes}
        for name, count in {**counts, "iterations": 1 if iterations is None else iterations}.items():
            least = 0 if name == "exact_up_to" else 1
            if not is_int(count) or count < least:
                raise ConfigError(f"ResidualBlock: {name} must be an int of at least {least}, got {count!r}")
        c_condition = check_conditions("ResidualBlock", shape, self.condition_shapes)
        self.net = JacobianNet(
            "ResidualBlock", shape, c_condition, hidden, activation, kernel, CONTRACTIONS, bound=coeff
        )
        self.coeff, self.terms, self.eval_terms = coeff, terms, eval_terms
        self.survival, self.probes = survival, probes
        self.exact = log_det == "exact" or (log_det == "auto" and numel(shape) <= exact_up_to)
        self.stochastic = self.adaptive = not self.exact
        most = NEWTON if self.exact else math.ceil(math.log(PICARD_MARGIN * self.tolerance) / math.log(coeff))
        self.iterations = most if iterations is None else iterations

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """What the conditions add to the first layer; None without conditions."""
        if not conditions:
            return None
        with full_precision(conditions[0]):
            return (self.net.prepare(*conditions),)

    def _function(self, given: Sequence) -> Callable[[Tensor], Linearized]:
        """g and its Jacobian as a function of x alone, the weights bounded once."""
        weights, prepared = self.net.weights(), self.net.given(given)
        return lambda x: self.net.at(x, weights, prepared)

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x + g(x, c), log_det)`; `given` is the conditions or one `fk.Prepared`."""
        with full_precision(x):
            g = self._function(given)(x)
            return x + g.value, self._log_det(g)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x, log_det)` with x + g(x, c) = y."""
        with full_precision(y):
            function = self._function(given)
            x = self._solve(y, function)
            return x, -self._log_det(function(x))

    def inverse_only(self, y: Tensor, *given: Any) -> Tensor:
        """The inverse without a log-det."""
        with full_precision(y):
            return self._solve(y, self._function(given))

    def _solve(self, y: Tensor, function: Callable[[Tensor], Linearized]) -> Tensor:
        solve = newton_or_picard if self.exact else fixed_point
        return solve("ResidualBlock", function, y, self.iterations, self.tolerance)

    def _log_det(self, g: Linearized) -> Tensor:
        if self.exact:
            return torch.linalg.slogdet(_plus_identity(g.jacobian())).logabsdet
        terms, recorded = self.terms if self.training else self.eval_terms, not self.training
        weights = roulette(terms, self.survival)
        return series_log_det(g, weights, self.probes, recorded)

    def extra_repr(self) -> str:
        """The event shape, the bound, and how the log-det is found."""
        return f"{self.in_shapes[0]}, coeff={self.coeff}, log_det={'exact' if self.exact else 'estimate'}"


def _plus_identity(jacobian: Tensor) -> Tensor:
    return jacobian + torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)


def roulette(terms: int, survival: float) -> list[float]:
    """Weights of the terms 1 to n of a series, n drawn: 1 for the first `terms`, then 1 / P(n >= k).

    The sum with these weights has the whole series' sum as its expectation.
    """
    extra = int(torch.empty((), device="cpu").geometric_(1 - survival).item())  # 1, 2, ...
    return [1.0] * terms + [survival**-k for k in range(extra)]


def series_log_det(g: Linearized, weights: Sequence[float], probes: int, recorded: bool) -> Tensor:
    """An estimate of log det(I + J), `(B,)`: the sum of weight (-1)^(k+1) / k v^T J^k v, averaged over sign vectors v.

    Recorded, its gradient is autograd's. Else the value is not recorded, and the gradient is that of
    (sum of weight (-1)^k (J^T)^k v, k from 0)^T J v with the sum held fixed: the Neumann series.
    """
    like = g.value.detach()
    half = torch.full((probes, *like.shape), 0.5, dtype=like.dtype, device=like.device)
    signs = 2 * torch.bernoulli(half) - 1
    with torch.set_grad_enabled(recorded and torch.is_grad_enabled()):
        power, value, neumann = signs, like.new_zeros(probes, like.shape[0]), signs
        for k, weight in enumerate(weights, 1):
            power = g.pull(power)
            sign = 1 if k % 2 else -1
            value = value + sign * weight / k * _dot(power, signs)
            neumann = neumann - sign * weight * power
    if not recorded and torch.is_grad_enabled():
        (product,) = first_order(SECOND, _dot(neumann, g.push(signs)))
        value = value + product - product.detach()
    return value.mean(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(2).sum(2)
