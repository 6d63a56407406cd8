"""Elementwise maps that squash: tanh with tails that go on, linearly or as a logarithm, and a rational soft clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowkit.bijections.activations import LOG_2, Activation
from flowkit.errors import ConfigError
from flowkit.registry import Example, register

LARGEST_CUT = 8.0  # beyond it tanh is 1 in float32, so that nothing could be told from the tail


def _log_slope(x: Tensor) -> Tensor:
    """The log of tanh's derivative."""
    return 2 * LOG_2 + logsigmoid(2 * x) + logsigmoid(-2 * x)


class _CutTanh(Activation):
    """Tanh between -cut and cut, and another map beyond: abstract."""

    def __init__(self, shape: int | Sequence[int], cut: float):
        super().__init__(shape)
        if isinstance(cut, bool) or not isinstance(cut, int | float) or not 0 < cut <= LARGEST_CUT:
            raise ConfigError(
                f"{type(self).__name__}: cut must be above 0 and at most {LARGEST_CUT:g}, where tanh is 1 in "
                f"float32, got {cut!r}"
            )
        self.cut = float(cut)
        self.edge = math.tanh(self.cut)  # tanh at the cut
        self.slope = 1 / math.cosh(self.cut) ** 2  # its derivative
        self.log_slope = math.log(self.slope)

    def _tail(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log-derivative)` at the distance `size` from 0, beyond the cut."""
        raise NotImplementedError

    def _tail_back(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log-derivative of the inverse)` at the distance `size` from 0, beyond tanh of the cut."""
        raise NotImplementedError

    # Chosen by `where`, not by clamping: torch's clamp has a gradient of 0 or 1 at its ends, by its version, and in
    # float32 the numbers of the tails come more exactly of the cut than of its rounded image.

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size, outside = x.abs(), x.abs() > self.cut
        inside = torch.where(outside, 0.0, x)
        y, log_derivative = self._tail(torch.where(outside, size, self.cut))
        return torch.where(outside, x.sign() * y, inside.tanh()), torch.where(
            outside, log_derivative, _log_slope(inside)
        )

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        size, outside = y.abs(), y.abs() > self.edge
        inside = torch.where(outside, 0.0, y)
        x, log_derivative = self._tail_back(torch.where(outside, size, self.edge))
        log_inside = -torch.log1p(inside) - torch.log1p(-inside)
        return torch.where(outside, y.sign() * x, inside.atanh()), torch.where(outside, log_derivative, log_inside)

    def example_inputs(self, rows: int) -> Tensor:
        """Draws on both sides of the cut."""
        return self.cut * (torch.rand(rows, *self.in_shapes[0]) * 4 - 2)

    def extra_repr(self) -> str:
        """The event shape and the cut."""
        return f"{self.in_shapes[0]}, cut={self.cut:g}"


def _cut_examples() -> list[Example]:
    return [Example(()), Example((3,), cut=0.5), Example((1, 4), cut=2), Example((3, 2, 2), cut=1.5)]


@register("flowkit.leaky_tanh", examples=_cut_examples)
class LeakyTanh(_CutTanh):
    """y = tanh(x) between -m and m, and the tangent at m (or -m) beyond: from the line to the line.

    With c = x clipped to [-m, m], k = clip(y, -tanh m, tanh m) and s = 1 - tanh(m)^2, the slope of the tails:
    forward: y = tanh(c) + s (x - c), log-det the sum of log(1 - tanh(c)^2), found without cancellation.
    inverse: x = artanh(k) + (y - k) / s, log-det minus the sum of log(1 - k^2).

    The derivative is continuous. Works over the whole range of the dtype; rounding errors of the inverse grow by up to
    1 / s, which is 14 for m = 2, 101 for m = 3.

    Shapes: x `(B, ...)`, log_det `(B,)`.

    Args:
        shape: event shape.
        cut: m, above 0 and at most 8.

    Raises:
        ConfigError: a cut out of range.

    Source: flowjax's `LeakyTanh`.

    >>> y, log_det = LeakyTanh((1,), cut=1.0)(torch.tensor([[1e6]]))
    >>> round(log_det.exp().item(), 3)
    0.42
    """

    def __init__(self, shape: int | Sequence[int], cut: float = 3.0):
        super().__init__(shape, cut)

    def _tail(self, size: Tensor) -> tuple[Tensor, Tensor]:
        return self.edge + self.slope * (size - self.cut), torch.full_like(size, self.log_slope)

    def _tail_back(self, size: Tensor) -> tuple[Tensor, Tensor]:
        return self.cut + (size - self.edge) / self.slope, torch.full_like(size, -self.log_slope)


@register("flowkit.log_tanh", examples=_cut_examples)
class LogTanh(_CutTanh):
    """y = tanh(x) between -m and m, and a logarithm beyond: from the line to the line, heavy tails made light.

    With c = x clipped to [-m, m], r = max(|x| / m, 1), k = clip(y, -tanh m, tanh m) and a = m (1 - tanh(m)^2):
    forward: y = tanh(c) + a sign(x) log r, log-det the sum of log(1 - tanh(c)^2) - log r.
    inverse: x = artanh(k) exp(e) with e = max(|y| - tanh m, 0) / a, log-det the sum of e - log(1 - k^2).

    Value and derivative are continuous at the cut. Forward works over the whole range of the dtype; the inverse
    overflows float32 where e exceeds 88, at |y| = 37 for m = 1.

    Shapes: x `(B, ...)`, log_det `(B,)`.

    Args:
        shape: event shape.
        cut: m, above 0 and at most 8.

    Raises:
        ConfigError: a cut out of range.

    Source: nflows' `LogTanh`, whose derivative jumps at the cut in version 0.14; here it does not.

    >>> y, log_det = LogTanh((1,))(torch.tensor([[1e6]]))
    >>> round(y.item(), 3)
    6.564
    """

    def __init__(self, shape: int | Sequence[int], cut: float = 1.0):
        super().__init__(shape, cut)
        self.weight = self.cut * self.slope  # a, of the logarithm

    def _tail(self, size: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio = (size / self.cut).log()
        return self.edge + self.weight * log_ratio, self.log_slope - log_ratio

    def _tail_back(self, size: Tensor) -> tuple[Tensor, Tensor]:
        excess = (size - self.edge) / self.weight
        return self.cut * excess.exp(), excess - self.log_slope


def _bound_examples() -> list[Example]:
    return [Example(()), Example((3,), bound=5), Example((1, 4), bound=0.5), Example((3, 2, 2), bound=3.0)]


@register("flowkit.softclip", examples=_bound_examples)
class Softclip(Activation):
    """y = x / (1 + |x| / b), from the line to (-b, b): about the identity near 0, and nearer to b the farther x.

    forward: y as above, log-det minus twice the sum of log(1 + |x| / b).
    inverse: x = y / (1 - |y| / b), log-det minus twice the sum of log(1 - |y| / b).

    Its tails come near to the bound as 1 / |x| does, far more slowly than those of `fk.Tanh`: in float32 y is rounded
    to b beyond 1e7 b, where tanh is beyond 9.

    Shapes: x `(B, ...)`, log_det `(B,)`.

    Args:
        shape: event shape.
        bound: b, positive.
        check: refuse values outside (-b, b) in `inverse`, in eager mode.

    Raises:
        ConfigError: a bound that is not positive and finite.
        InputError: a value outside the domain, with its index.

    Source: zuko's `SoftclipTransform`.

    >>> Softclip((2,), bound=2.0)(torch.tensor([[2.0, -6.0]]))[0].tolist()
    [[1.0, -1.5]]
    """

    def __init__(self, shape: int | Sequence[int], bound: float = 1.0, check: bool = True):
        super().__init__(shape, check)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
            raise ConfigError(f"Softclip: bound must be a positive finite number, got {bound!r}")
        self.bound = float(bound)
        self.image = (-self.bound, self.bound)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.abs() / self.bound
        return x / (1 + size), -2 * size.log1p()

    def _map_back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        size = y.abs() / self.bound
        return y / (1 - size), -2 * (-size).log1p()

    def extra_repr(self) -> str:
        """The event shape and the bound."""
        return f"{self.in_shapes[0]}, bound={self.bound:g}"
