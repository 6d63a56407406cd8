"""Nets whose products with their own Jacobian are written out, from the left and from the right.

A residual block and a vector field need traces and determinants of dg/dx. Written out, layer by layer, these products
are ordinary operations: they are recorded, differentiated, compiled, exported and vectorised like all others, and the
whole Jacobian is one pass with D tangents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.arguments import is_int
from flowkit.bijection import HALF, Prepared, add_rows, join
from flowkit.constants import WithConstants
from flowkit.errors import ConfigError
from flowkit.shapes import Shape, numel
from flowkit.spectral import convolution_bound, matrix_bound, waves
from flowkit.subnet_parts import CONVOLUTIONS

START_BETA = 20.0  # of LipSwish: nearly a ReLU, for bounded weights make small arguments, where a swish is straight
SPREAD = 2.0  # of a bounded layer's biases at the start, in standard deviations of what they are added to
SWISH_SLOPE = 1.1  # the slope of x sigmoid(b x) is below 1.0999 for every b


class LipSwish(nn.Module):
    """x sigmoid(b x) / 1.1 with a learned b > 0, and its slope."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(START_BETA))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        scaled = x * F.softplus(self.beta.to(x.dtype))
        gate = scaled.sigmoid()
        return x * gate / SWISH_SLOPE, gate * (1 + scaled * (1 - gate)) / SWISH_SLOPE


class SiLU(nn.Module):
    """x sigmoid(x), and its slope, which reaches 1.0999."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        gate = x.sigmoid()
        return x * gate, gate * (1 + x * (1 - gate))


class ELU(nn.Module):
    """x above zero, exp(x) - 1 below, and its slope."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        below = torch.where(x > 0, 0.0, x)  # not by a clamp, whose gradient at 0 is 0 in some versions of torch
        return torch.where(x > 0, x, below.expm1()), below.exp()


class Tanh(nn.Module):
    """tanh(x), and its slope."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        y = x.tanh()
        return y, 1 - y * y


class Softplus(nn.Module):
    """log(1 + exp(x)), and its slope."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope."""
        return F.softplus(x), x.sigmoid()


CONTRACTIONS: dict[str, Callable[[], nn.Module]] = {
    "lipswish": LipSwish,
    "elu": ELU,
    "tanh": Tanh,
    "softplus": Softplus,
}
ACTIVATIONS = {**CONTRACTIONS, "silu": SiLU}


class Layer(WithConstants):
    """A linear map, or a convolution that keeps the size, and its transpose; of the conditions and the time, too."""

    weight: Tensor
    bias: Tensor
    condition: Tensor | None
    time: Tensor | None

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: Sequence[int],
        kernel: int,
        c_condition: int = 0,
        timed: bool = False,
        bounded: bool = False,
    ):
        super().__init__()
        self.spatial, self.padding = len(size), kernel // 2

        def new(channels: int) -> Any:
            if not size:
                return nn.Linear(channels, c_out)
            return CONVOLUTIONS[len(size)](channels, c_out, kernel, padding=kernel // 2)

        layer: Any = new(c_in)
        self.weight, self.bias = layer.weight, layer.bias
        # A weight of its own, not a slice of one: only that of the data is bounded.
        self.condition = new(c_condition).weight if c_condition else None
        self.time = nn.Parameter(torch.empty(c_out).uniform_(-1, 1) / math.sqrt(c_in)) if timed else None
        # What the bound of a convolution is computed of; without a bound nothing is held.
        self.waves = ((kernel,) * len(size), tuple(size)) if bounded and size else None
        self.factor = 1.0 if self.waves is None else waves(*self.waves)[2]
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The cosines and sines of `flowkit.spectral.waves`."""
        if self.waves is None:
            return {}
        cosines, sines, _ = waves(*self.waves, dtype=torch.float64)
        return {"cosines": cosines, "sines": sines}

    def start_at_zero(self) -> None:
        """So that the net gives zeros."""
        for parameter in (self.weight, self.bias, self.time):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def start_bounded(self, c_data: int) -> None:
        """Singular values that are equal, so that the bound holds back none of them more; units that bend within data.

        Where data of C channels with variance 1 are spread over C' units, each gets a standard deviation of
        sqrt(C / C') at most.
        """
        nn.init.orthogonal_(self.weight)
        spread = SPREAD * math.sqrt(min(1.0, c_data / len(self.bias)))
        nn.init.uniform_(self.bias, -spread, spread)

    def bound(self) -> Tensor:
        """An upper bound of the norm of this map of the data, of `flowkit.spectral`."""
        weight = _widened(self.weight)
        if not self.spatial:
            return matrix_bound(weight)
        cosines, sines = (getattr(self, name).to(weight.dtype) for name in ("cosines", "sines"))
        return convolution_bound(weight, cosines, sines, self.factor)

    def map(self, x: Tensor, weight: Tensor) -> Tensor:
        """`W x`."""
        if not self.spatial:
            return F.linear(x, weight)
        return (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1](x, weight, padding=self.padding)

    def transpose(self, v: Tensor, weight: Tensor) -> Tensor:
        """`W^T v`."""
        if not self.spatial:
            return v @ weight
        return (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1](
            v, weight, padding=self.padding
        )

    def offset(self, dtype: torch.dtype, time: Tensor | float | None = None) -> Tensor:
        """The bias, and what the time adds to it, `(C', 1, ...)`."""
        added = self.bias if self.time is None or time is None else self.bias + time * self.time
        return added.to(dtype).reshape(-1, *[1] * self.spatial)

    def extra_repr(self) -> str:
        """Channels in and out, and those of the conditions."""
        given = "" if self.condition is None else f" + {self.condition.shape[1]} of conditions"
        return f"{self.weight.shape[1]}{given} -> {self.weight.shape[0]}"


@dataclass
class Linearized:
    """A `JacobianNet` at a point: its value, and the Jacobian J there as a linear map."""

    value: Tensor
    slopes: list[Tensor]
    weights: list[Tensor]
    net: JacobianNet

    def push(self, tangents: Tensor) -> Tensor:
        """`J t` for tangents `(T, B, ...)`, or `(T, 1, ...)` where they are the same for all rows."""
        layers = list(self.net.layers)
        tangents = _many(layers[0].map, tangents, self.weights[0])
        for slope, layer, weight in zip(self.slopes, layers[1:], self.weights[1:], strict=True):
            tangents = _many(layer.map, tangents * slope, weight)
        return tangents

    def pull(self, cotangents: Tensor) -> Tensor:
        """`J^T v` for cotangents `(T, B, ...)`."""
        layers = list(self.net.layers)
        for slope, layer, weight in zip(self.slopes[::-1], layers[:0:-1], self.weights[:0:-1], strict=True):
            cotangents = _many(layer.transpose, cotangents, weight) * slope
        return _many(layers[0].transpose, cotangents, self.weights[0])

    def jacobian(self) -> Tensor:
        """J as matrices `(B, D, D)`, in one pass with D tangents."""
        shape, rows = self.value.shape[1:], self.value.shape[0]
        dim = numel(tuple(shape))
        basis = torch.eye(dim, dtype=self.value.dtype, device=self.value.device).reshape(dim, 1, *shape)
        columns = self.push(basis)
        return columns.reshape(dim, columns.shape[1], dim).permute(1, 2, 0).expand(rows, dim, dim)


class JacobianNet(nn.Module):
    """Layers `h -> W a(h) + b` on vectors or maps, with conditions and, if wanted, the time; it starts at zero.

    Args:
        owner: the bijection, for messages.
        shape: event shape `(C, ...)` of what goes in and comes out.
        c_condition: the channels of the conditions, which are added to the first layer.
        hidden: widths of the hidden layers.
        activation: a name of `activations`.
        kernel: an odd kernel size, for maps.
        activations: those that the owner allows.
        timed: every layer's bias moves with the time.
        bound: each layer's weight is divided so that the product of their norms is at most this; None for no bound.
            With a bound weights start orthogonal and biases spread, see `Layer.start_bounded`.
    """

    def __init__(
        self,
        owner: str,
        shape: Shape,
        c_condition: int,
        hidden: int | Sequence[int],
        activation: str,
        kernel: int,
        activations: dict[str, Callable[[], nn.Module]] = ACTIVATIONS,
        timed: bool = False,
        bound: float | None = None,
    ):
        super().__init__()
        widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        if not widths or any(not is_int(w) or w < 1 for w in widths):
            raise ConfigError(f"{owner}: hidden must be a positive int or a tuple of them, got {hidden!r}")
        if activation not in activations:
            raise ConfigError(f"{owner}: activation must be one of {', '.join(activations)}, got {activation!r}")
        if not is_int(kernel) or kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"{owner}: kernel must be an odd int, got {kernel!r}")
        channels = (shape[0], *widths, shape[0])
        bounded = bound is not None
        self.layers: Any = nn.ModuleList()
        self.layers.extend(
            Layer(c_in, c_out, shape[1:], kernel, 0 if i else c_condition, timed, bounded)
            for i, (c_in, c_out) in enumerate(itertools.pairwise(channels))
        )
        layers: Any = list(self.layers)
        *before, last = layers
        if bounded:
            for layer in before:
                layer.start_bounded(shape[0])
        last.start_at_zero()
        self.activations = nn.ModuleList(activations[activation]() for _ in widths)
        self.bound = bound

    def prepare(self, *conditions: Tensor) -> Tensor | None:
        """What the conditions add to the first layer, `(R, C', ...)`; None for no conditions."""
        c = join(conditions)
        if c is None:
            return None
        first = self.layers[0]
        dtype = _widened(first.weight).dtype
        return first.map(c.to(dtype), first.condition.to(dtype))

    def weights(self) -> list[Tensor]:
        """Each layer's weight, bounded where the net is: computed once for many points."""
        layers: list[Layer] = list(self.layers)
        if self.bound is None:
            return [_widened(layer.weight) for layer in layers]
        limit = self.bound ** (1 / len(layers))
        found = []
        for layer in layers:
            norm = layer.bound()
            found.append(_widened(layer.weight) * (limit / norm.clamp_min(limit)))
        return found

    def given(self, given: Sequence) -> Tensor | None:
        """What the conditions, or one `fk.Prepared`, add to the first layer; None for no conditions."""
        if given and isinstance(given[0], Prepared):
            return given[0][0]
        return self.prepare(*given)

    def at(
        self, x: Tensor, weights: list[Tensor], prepared: Tensor | None = None, time: Tensor | float | None = None
    ) -> Linearized:
        """Value and slopes at x `(B, C, ...)`; `prepared` has B rows, or R where B is S x R, samples outermost."""
        layers: list[Layer] = list(self.layers)
        dtype = weights[0].dtype
        h = layers[0].map(x.to(dtype), weights[0]) + layers[0].offset(dtype, time)
        if prepared is not None:
            h = add_rows(h, prepared)
        slopes = []
        for activation, layer, weight in zip(self.activations, layers[1:], weights[1:], strict=True):
            h, slope = activation(h)
            slopes.append(slope)
            h = layer.map(h, weight) + layer.offset(dtype, time)
        return Linearized(h, slopes, weights, self)

    forward = at  # for `torch.func.functional_call`


def _widened(parameter: Tensor) -> Tensor:
    return parameter.float() if parameter.dtype in HALF else parameter


def _many(apply: Callable[[Tensor, Tensor], Tensor], tangents: Tensor, weight: Tensor) -> Tensor:
    """A layer on `(T, B, ...)`: convolutions take one batch dimension."""
    if tangents.dim() == 3:
        return apply(tangents, weight)
    return apply(tangents.flatten(0, 1), weight).unflatten(0, tangents.shape[:2])
