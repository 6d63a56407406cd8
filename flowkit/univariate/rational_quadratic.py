"""The monotone rational-quadratic spline with linear tails."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.domain import is_transformed
from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate import rational_quadratic_eager, rational_quadratic_formula
from flowkit.univariate.knots import check_bins, wide
from flowkit.univariate.rational_quadratic_eager import Setting, Spline, transform
from flowkit.univariate.rational_quadratic_formula import CompiledSpline, formula
from flowkit.univariate.univariate import Univariate


class RationalQuadratic(Univariate):
    """What rational-quadratic splines share: the bins of an interval and their check, and the way through the formula.

    Args:
        shape: event shape of x.
        interval: where the spline is.
        bins, min_bin, min_derivative: see `fk.RationalQuadraticSpline`.
        derivatives: how many derivatives are predicted, from which `_with_ends` makes K + 1.
    """

    def __init__(
        self,
        shape: Shape,
        interval: tuple[float, float],
        bins: int,
        min_bin: float,
        min_derivative: float,
        derivatives: int,
    ):
        name = type(self).__name__
        check_bins(name, bins, min_bin)
        if not 0 < min_derivative < 1:
            raise ConfigError(f"{name}: min_derivative must be above 0 and below 1, got {min_derivative!r}")
        self.parameter_shapes = ((bins,), (bins,), (derivatives,))
        super().__init__(shape)
        self.bins, self.interval = bins, interval
        self.min_bin, self.min_derivative = float(min_bin), float(min_derivative)
        self.offset = math.log(math.expm1(1 - min_derivative))  # softplus of it is 1 - min_derivative

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        return self._spline(x, parameters, inverse=False)

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        return self._spline(y, parameters, inverse=True)

    @property
    def _setting(self) -> Setting:
        return Setting(*self.interval, self.min_bin, self.min_derivative, self.offset)

    def _with_ends(self, raw: Tensor) -> Tensor:
        """The K + 1 raw derivatives, with those at both ends."""
        raise NotImplementedError(f"{type(self).__name__} has no ends")

    def _spline(self, x: Tensor, parameters: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        x, (widths, heights, inner) = wide(x, parameters)
        arguments = (x, widths, heights, self._with_ends(inner))
        needs_gradients = torch.is_grad_enabled() and any(each.requires_grad for each in arguments)
        if compiling() and needs_gradients:
            return CompiledSpline.apply(*arguments, self._setting, inverse)
        recorded = functools.partial(formula, setting=self._setting, inverse=inverse)
        if not eager():
            return recorded(*arguments)
        if needs_gradients:
            return Spline.apply(*arguments, self._setting, inverse, recorded)
        with torch.no_grad():
            return transform(*arguments, self._setting, inverse)[:2]


@register("flowkit.rational_quadratic_spline")
class RationalQuadraticSpline(RationalQuadratic):
    """A monotone spline of rational quadratics on [-bound, bound], the identity outside; its bins are predicted.

    With a bin of width w, height h, slope s = h / w, derivatives d0 and d1 at its ends, corner (a, b), and
    t = (x - a) / w:

    forward: y = b + h (s t^2 + d0 t (1 - t)) / q(t), q(t) = s + (d0 + d1 - 2 s) t (1 - t).
    its log-derivative: log(s^2 (d1 t^2 + 2 s t (1 - t) + d0 (1 - t)^2)) - 2 log q(t), and 0 in the tails.
    inverse: t / (1 - t) is the root of a quadratic equation in the form in which nothing cancels; x = a + w t.
    its log-derivative: minus the above at t.

    Widths and heights are softmaxes of what is predicted, no bin smaller than `min_bin` of the whole; inner derivatives
    are softplus + `min_derivative`, and 1 at the ends, so value and derivative are continuous everywhere. Zero
    parameters are the identity. Values at +-1e6 pass unchanged; where they are not finite, so is the result.

    Parameters: widths and heights `(B, K, C, ...)`, inner derivatives `(B, K - 1, C, ...)`; computed in float32 or
    wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        bins: K, at least 2: one bin between derivatives of 1 is the identity, whatever is predicted.
        bound: the spline is on [-bound, bound].
        min_bin: the smallest width and height of a bin, as a part of 2 bound; K times this must be below 1.
        min_derivative: the smallest derivative at an inner knot, above 0 and below 1.

    Raises:
        ConfigError: bins below 2, a bound or minimum out of range.

    Source: Durkan et al., Neural spline flows, 2019, section 3.1 and appendix A.

    >>> spline = RationalQuadraticSpline((3,), bins=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = spline(x, *spline.split(torch.zeros(1, 3 * spline.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    def __init__(
        self, shape: Shape, bins: int = 8, bound: float = 3.0, min_bin: float = 1e-3, min_derivative: float = 1e-3
    ):
        if not 0 < bound < math.inf:
            raise ConfigError(f"{type(self).__name__}: bound must be positive and finite, got {bound!r}")
        self.bound = float(bound)
        super().__init__(shape, (-self.bound, self.bound), bins, min_bin, min_derivative, bins - 1)

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """In closed form, from the bins that the inverse finds."""
        if not (eager() or compiling()):
            return super().undo(y, parameters, grad_y, grad_log)
        y, values = wide(y, parameters)
        predicted = (values[0], values[1], self._with_ends(values[2]))
        upstream = (grad_y.to(y.dtype), grad_log.expand_as(y).to(y.dtype))
        grad_x: Tensor | None
        if compiling():
            x, _ = formula(y, *predicted, self._setting, inverse=True)
            at = rational_quadratic_formula.as_far(x, y, self._setting)
            grad_x, *grads = rational_quadratic_formula.pull_back(at, *predicted, *upstream, self._setting, False)
        else:
            x, _, found = transform(y, *predicted, self._setting, inverse=True)
            grad_x, *grads = rational_quadratic_eager.pull_back(found, *upstream, self._setting, False)
        assert grad_x is not None
        grads[2] = grads[2][:, 1:-1]
        given = [grad.to(parameter.dtype) for grad, parameter in zip(grads, parameters, strict=True)]
        return x, grad_x, given, {}

    def _with_ends(self, raw: Tensor) -> Tensor:
        """The K + 1 raw derivatives: zeros at the ends make derivatives of 1."""
        return F.pad(raw, (0, 0) * (raw.dim() - 2) + (1, 1))


def eager() -> bool:
    """Whether nothing looks on but autograd's reverse mode: no compiler, function transform or forward mode."""
    return not torch.compiler.is_compiling() and not is_transformed()


def compiling() -> bool:
    """Whether `torch.compile` looks on, and nothing beside it that needs each operation recorded."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and not is_transformed()
