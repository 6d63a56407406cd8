"""Elementwise maps without parameters: exp, softplus, sigmoid, tanh, their inverses, leaky ReLU and signed power."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.bijection import Bijection, event_sum
from flowkit.bijections.domain import check_domain
from flowkit.errors import ConfigError
from flowkit.registry import Example, register

LOG_2 = math.log(2)
LINE = (-math.inf, math.inf)
POSITIVE = (0.0, math.inf)


def _exp(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.exp(), x


def _log(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.log()
    return y, -y


def _softplus(x: Tensor) -> tuple[Tensor, Tensor]:
    return -logsigmoid(-x), logsigmoid(x)  # torch's softplus is cut off at 20, which float64 sees


def _softplus_inverse(y: Tensor) -> tuple[Tensor, Tensor]:
    log_slope = (-torch.expm1(-y)).log()
    return y + log_slope, -log_slope


def _sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sigmoid(), logsigmoid(x) + logsigmoid(-x)


def _logit(x: Tensor) -> tuple[Tensor, Tensor]:
    log_x, log_rest = x.log(), torch.log1p(-x)
    return log_x - log_rest, -log_x - log_rest


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.tanh(), 2 * LOG_2 + logsigmoid(2 * x) + logsigmoid(-2 * x)


def _arctanh(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.atanh(), -torch.log1p(x) - torch.log1p(-x)


class Activation(Bijection):
    """An elementwise map between two open intervals; with `check`, what lies outside is refused in eager mode."""

    domain: tuple[float, float] = LINE
    image: tuple[float, float] = LINE

    def __init__(self, shape: int | Sequence[int], check: bool = True):
        super().__init__(shape)
        self.check = check

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log-derivative)`."""
        raise NotImplementedError

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log-derivative of the inverse)`."""
        raise NotImplementedError

    def _checked(self, x: Tensor, interval: tuple[float, float], owner: str) -> Tensor:
        if self.check and interval != LINE:
            check_domain(owner, x, *interval)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log_det)`."""
        y, log_derivative = self._map(self._checked(x, self.domain, type(self).__name__))
        return y, event_sum(log_derivative)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log_det)`."""
        x, log_derivative = self._map_back(self._checked(y, self.image, f"{type(self).__name__}'s inverse"))
        return x, event_sum(log_derivative)

    def example_inputs(self, rows: int) -> Tensor:
        """Draws within the domain, not so far out that the image is rounded to its bounds in float32."""
        x = torch.randn(rows, *self.in_shapes[0]).clamp(-3, 3)
        low, high = self.domain
        if self.domain == LINE:
            return x
        return x.exp() if high == math.inf else low + (high - low) * (0.02 + 0.96 * x.sigmoid())

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _examples() -> list[Example]:
    return [Example(()), Example((3,)), Example((1, 4)), Example((3, 2, 2))]


@register("flowkit.exp", examples=_examples)
class Exp(Activation):
    """y = exp(x), from the line to the positive numbers.

    forward: y = exp(x), log-det the sum of x. inverse: x = log(y), log-det minus the sum of log(y).

    Shapes: x `(B, ...)`, log_det `(B,)`. In float32 exp overflows beyond 88; the log-det stays exact.

    Args:
        shape: event shape.
        check: refuse values that are not positive in `inverse`, in eager mode.

    Raises:
        InputError: a value outside the domain, with its index.

    >>> Exp((2,))(torch.tensor([[1.0, 2.0]]))[1].tolist()
    [3.0]
    """

    image = POSITIVE

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _exp(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _log(y)


@register("flowkit.log", examples=_examples)
class Log(Activation):
    """y = log(x), from the positive numbers to the line: `fk.Exp` the other way round.

    forward: y = log(x), log-det minus the sum of log(x). inverse: x = exp(y), log-det the sum of y.

    Shapes, arguments and errors as for `fk.Exp`; the check is on `forward`.

    >>> Log((2,))(torch.ones(1, 2))[0].tolist()
    [[0.0, 0.0]]
    """

    domain = POSITIVE

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _log(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _exp(y)


@register("flowkit.softplus", examples=_examples)
class Softplus(Activation):
    """y = log(1 + exp(x)), from the line to the positive numbers, linear for large x.

    forward: y = log(1 + exp(x)), log-det the sum of log sigmoid(x).
    inverse: x = y + log(1 - exp(-y)), log-det minus the sum of log(1 - exp(-y)).

    Shapes, arguments and errors as for `fk.Exp`. Finite at ±1e6 in float32; below -103 y underflows to 0.

    >>> Softplus((1,))(torch.full((1, 1), 1e6))[0].item()
    1000000.0
    """

    image = POSITIVE

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _softplus(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _softplus_inverse(y)


@register("flowkit.sigmoid", examples=_examples)
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x)), from the line to (0, 1).

    forward: y = sigmoid(x), log-det the sum of log sigmoid(x) + log sigmoid(-x).
    inverse: x = log y - log(1 - y), log-det minus the sum of log y + log(1 - y).

    Shapes, arguments and errors as for `fk.Exp`. The log-det is finite at ±1e6 in float32; beyond 16 y is rounded to 1.

    >>> Sigmoid((1,))(torch.zeros(1, 1))[0].item()
    0.5
    """

    image = (0.0, 1.0)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _sigmoid(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _logit(y)


@register("flowkit.logit", examples=_examples)
class Logit(Activation):
    """y = log x - log(1 - x), from (0, 1) to the line: `fk.Sigmoid` the other way round.

    forward: y = log x - log(1 - x), log-det minus the sum of log x + log(1 - x).
    inverse: x = sigmoid(y), log-det the sum of log sigmoid(y) + log sigmoid(-y).

    Shapes, arguments and errors as for `fk.Exp`; the check is on `forward`.

    >>> Logit((1,))(torch.full((1, 1), 0.5))[0].item()
    0.0
    """

    domain = (0.0, 1.0)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _logit(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _sigmoid(y)


@register("flowkit.tanh", examples=_examples)
class Tanh(Activation):
    """y = tanh(x), from the line to (-1, 1).

    forward: y = tanh(x), log-det the sum of log(1 - tanh(x)^2), found without cancellation.
    inverse: x = artanh(y), log-det minus the sum of log(1 - y^2).

    Shapes, arguments and errors as for `fk.Exp`. The log-det is finite at ±1e6 in float32; beyond 9 y is rounded to 1.

    >>> Tanh((1,))(torch.zeros(1, 1))[0].item()
    0.0
    """

    image = (-1.0, 1.0)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _tanh(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _arctanh(y)


@register("flowkit.arctanh", examples=_examples)
class Arctanh(Activation):
    """y = artanh(x), from (-1, 1) to the line: `fk.Tanh` the other way round.

    forward: y = artanh(x), log-det minus the sum of log(1 - x^2).
    inverse: x = tanh(y), log-det the sum of log(1 - tanh(y)^2).

    Shapes, arguments and errors as for `fk.Exp`; the check is on `forward`.

    >>> Arctanh((1,))(torch.zeros(1, 1))[0].item()
    0.0
    """

    domain = (-1.0, 1.0)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _arctanh(x)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _tanh(y)


def _positive(owner: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{owner}: {name} must be a positive finite number, got {value!r}")
    return float(value)


def _slope_examples() -> list[Example]:
    return [Example(()), Example((3,), slope=0.2), Example((1, 4), slope=2), Example((3, 2, 2), slope=0.5)]


@register("flowkit.leaky_relu", examples=_slope_examples)
class LeakyReLU(Activation):
    """y = x for x >= 0, and slope times x below: a kink at 0, where the derivative is taken from the right.

    forward: y as above, log-det log(slope) times the number of negative elements.
    inverse: x = y, or y / slope below 0, log-det minus that.

    Shapes: x `(B, ...)`, log_det `(B,)`. Works over the whole range of the dtype.

    Args:
        shape: event shape.
        slope: positive.

    Raises:
        ConfigError: a slope that is not positive and finite.

    >>> LeakyReLU((2,), slope=0.5)(torch.tensor([[-2.0, 2.0]]))[0].tolist()
    [[-1.0, 2.0]]
    """

    def __init__(self, shape: int | Sequence[int], slope: float = 0.01):
        super().__init__(shape)
        self.slope = _positive("LeakyReLU", "slope", slope)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x < 0, x * self.slope, x), (x < 0).to(x.dtype) * math.log(self.slope)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(y < 0, y / self.slope, y), (y < 0).to(y.dtype) * -math.log(self.slope)


def _power_examples() -> list[Example]:
    return [Example((), exponent=3), Example((3,)), Example((1, 4), exponent=1.5), Example((3, 2, 2), exponent=0.5)]


@register("flowkit.power", examples=_power_examples)
class Power(Activation):
    """The signed power y = sign(x) |x|^p, from the line to the line.

    forward: y as above, log-det the sum of log p + (p - 1) log |x|.
    inverse: x = sign(y) |y|^(1/p), log-det the sum of -log p + (1/p - 1) log |y|.

    Shapes: x `(B, ...)`, log_det `(B,)`. At 0 the derivative is 0 or infinite, and so the log-det is not finite there.

    Args:
        shape: event shape.
        exponent: p, positive.

    Raises:
        ConfigError: an exponent that is not positive and finite.

    >>> Power((2,), exponent=2)(torch.tensor([[-3.0, 2.0]]))[0].tolist()
    [[-9.0, 4.0]]
    """

    def __init__(self, shape: int | Sequence[int], exponent: float = 2.0):
        super().__init__(shape)
        self.exponent = _positive("Power", "exponent", exponent)

    def _signed_power(self, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
        size = x.abs()
        return x.sign() * size**p, math.log(p) + (p - 1) * size.log()

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._signed_power(x, self.exponent)

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._signed_power(y, 1 / self.exponent)

    def example_inputs(self, rows: int) -> Tensor:
        """Draws of both signs that keep away from 0, where the derivative is 0 or infinite."""
        x = torch.randn(rows, *self.in_shapes[0])
        return torch.where(x < 0, x - 0.1, x + 0.1)
