"""What converted flows are made of beside flowkit's own parts: a friend's subnets, masked nets and scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkit.bijection import HALF, Bijection
from flowkit.bijections.autoregressive import MaskedAutoregressive
from flowkit.bijections.conditioning import check_conditions
from flowkit.distributions import Base
from flowkit.errors import ConfigError, ShapeError
from flowkit.interop.layers import build_layers, describe_layers
from flowkit.registry import Arguments, Example, Unwritable, register
from flowkit.shapes import Shape
from flowkit.strict_json import shown
from flowkit.univariate import Affine, QuadraticSpline, RationalQuadraticSpline, Univariate, build_univariate
from flowkit.univariate.knots import knots, sizes, wide
from flowkit.univariate.univariate import offer_examples

VANISHING = 1e-30  # a smallest bin or slope that no number holds beside a softmax's or softplus'


def written(net: nn.Module) -> Any:
    """A net's description for a file; where it has none, the reason."""
    try:
        return describe_layers(net)
    except ConfigError as error:
        return Unwritable(f"{type(net).__name__} ({error})")


@register("flowkit.friends_net")
class FriendsNet(nn.Module):
    """A net of layers that plain data describes, as a feature net: an embedding of the context.

    Args:
        net: the net, or its description, see `flowkit.interop.layers`.
    """

    def __init__(self, net: Any):
        super().__init__()
        self.net = net if isinstance(net, nn.Module) else build_layers(net)

    def written_arguments(self) -> Arguments:
        """The description, for files; where it has none, the reason."""
        return Arguments(written(self.net))

    def forward(self, x: Tensor) -> Tensor:
        """What the net gives."""
        return self.net(x)


class Layout(nn.Module):
    """A friend's predicted numbers in flowkit's order and units: each one times a scale plus an offset.

    Args:
        order: for each number of flowkit's, the place of the friend's.
        scale, offset: as many numbers; None for 1, and for 0.
        by_element: whether the friend puts all numbers of one element first; else all elements of one number.
    """

    order: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, order: Sequence[int], scale: Any = None, offset: Any = None, by_element: bool = True):
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ConfigError(f"a layout's order must be a permutation, got {order!r}")
        self.by_element = bool(by_element)
        count = len(order)
        for name, values, default in (("scale", scale, 1.0), ("offset", offset, 0.0)):
            values = [default] * count if values is None else [float(value) for value in values]
            if len(values) != count:
                raise ConfigError(f"a layout's {name} must be {count} numbers, got {len(values)}")
            self.register_buffer(name, torch.tensor(values, dtype=torch.get_default_dtype()), persistent=False)
        self.register_buffer("order", torch.tensor(list(order)), persistent=False)

    def forward(self, predicted: Tensor) -> Tensor:
        """`(B, numbers * C, ...)`, in both."""
        count = len(self.order)
        if self.by_element:
            apart = predicted.unflatten(1, (-1, count)).transpose(1, 2)
        else:
            apart = predicted.unflatten(1, (count, -1))
        along = (count, *[1] * (apart.dim() - 2))
        chosen = apart.index_select(1, self.order)
        return (chosen * self.scale.view(along) + self.offset.view(along)).flatten(1, 2)


def build_layout(described: Any) -> Layout | None:
    """The layout of these arguments by name; None for none.

    Raises:
        ConfigError: they are no such arguments.
    """
    if described is None:
        return None
    if not isinstance(described, Mapping):
        raise ConfigError(f"a layout must be described by its arguments' names, got {shown(described)}")
    try:
        return Layout(**described)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a layout cannot be built from {shown(described)}: {error}") from error


class FriendsModule(nn.Module):
    """A friend's net and its layout, called as flowkit calls subnets.

    Args:
        net: the net.
        layout: None where the numbers are flowkit's.
        joined: whether the net takes data and conditions concatenated, rather than one after the other.
    """

    def __init__(self, net: nn.Module, layout: Layout | None, joined: bool):
        super().__init__()
        self.net, self.layout, self.joined = net, layout, joined

    def prepare(self, c: Tensor) -> Any:
        """Nothing can be prepared: the net wants data and conditions together."""
        return None

    def forward(self, x: Tensor, c: Tensor | None = None, prepared: None = None) -> Tensor:
        """`(B, numbers * C, ...)`."""
        if c is None:
            predicted = self.net(x)
        else:
            predicted = self.net(torch.cat((x, c), 1)) if self.joined else self.net(x, c)
        return predicted if self.layout is None else self.layout(predicted)


@register("flowkit.friends_subnet")
class FriendsSubnet:
    """A recipe of a friend's subnet: a net that plain data describes, and the layout of what it predicts.

    Args:
        net: the description, see `flowkit.interop.layers`.
        layout: the arguments of `Layout` by name; None where the numbers are flowkit's.
        joined: see `FriendsModule`.

    Raises:
        ConfigError: no such description, or a layout that is none.
    """

    def __init__(self, net: Any, layout: Any = None, joined: bool = True):
        if not (isinstance(net, nn.Module | Unwritable) or (isinstance(net, Mapping) and "layer" in net)):
            raise ConfigError(f"FriendsSubnet: net must be described as {{'layer': name, ...}}, got {shown(net)}")
        build_layout(layout)
        self.net, self.layout, self.joined = net, layout, joined

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        """The net; it has the channels that it has."""
        return self.build((c_in,), (), c_out)

    def build(self, in_shape: Shape, condition_shapes: Sequence[Shape], c_out: int) -> FriendsModule:
        """The net with new weights."""
        return FriendsModule(build_layers(self.net), build_layout(self.layout), self.joined)


class FriendsMasked(FriendsModule):
    """A friend's masked net, called as `MaskedAutoregressive` calls its own."""

    def prepare(self, c: Tensor) -> Tensor:
        """The conditions: masked layers take them in all of the net."""
        return c

    def masked_weights(self) -> list[Tensor]:
        """None: the layers mask their own."""
        return []

    def run(self, x: Tensor, weights: Sequence[Tensor], prepared: Tensor | None) -> Tensor:
        """The net on x of S x R rows, samples outermost, and conditions of R rows."""
        c = prepared
        if c is not None and c.shape[0] != x.shape[0]:
            samples = x.shape[0] // c.shape[0] if c.shape[0] else 0
            c = c.expand(samples, *c.shape).flatten(0, 1)
        return self(x, c)


def _examples() -> list[Example]:
    def net(inputs: tuple, outputs: tuple) -> dict:
        hidden = (1, 2, 1, 2)
        first = {"layer": "Masked", "in_features": len(inputs), "out_features": 4, "degrees": (inputs, hidden)}
        last = {"layer": "Masked", "in_features": 4, "out_features": len(outputs), "degrees": (hidden, outputs)}
        return {"layer": "Sequential", "layers": [first, {"layer": "SiLU"}, {**last, "strict": True}]}

    by_element = {"order": (1, 0), "scale": (0.5, 1.0), "offset": (0.1, 0.0)}
    return [
        Example((3,), net=net((1, 2, 3), (1, 1, 2, 2, 3, 3)), levels=(0, 1, 2), layout=by_element),
        Example((2,), given=(2,), net=net((2, 1, 0, 0), (2, 1, 2, 1)), levels=(1, 0)),
    ]


@register("flowkit.friends_autoregressive", examples=_examples)
class FriendsAutoregressive(MaskedAutoregressive):
    """`fk.MaskedAutoregressive` with a masked net of nflows' or zuko's, as plain data describes it.

    forward: y_i = f(x_i; p_i(x_<i, c)), log-det the sum of log f' at x. inverse: x_i = f^-1(y_i; p_i(x_<i, c)), element
    by element, log-det minus that sum.

    Shapes: x `(B, D)`, conditions `(B, C)`, log_det `(B,)`. State: the net with its masks, and the buffer `level`.

    Args:
        shape: event shape `(D,)`.
        net: the description, see `flowkit.interop.layers`; its layers mask themselves.
        levels: for each element the pass in which it is found: it sees those of lower levels alone.
        given: shapes of the conditions, vectors.
        univariate: see `fk.MaskedAutoregressive`.
        layout, joined: see `FriendsSubnet`.

    Raises:
        ShapeError: data or conditions that are not vectors.
        ConfigError: levels that are not D ints from 0, all of them up to the largest.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        net: Any,
        levels: Sequence[int],
        given: int | Sequence = (),
        univariate: Any = Affine,
        layout: Any = None,
        joined: bool = True,
    ):
        Bijection.__init__(self, shape, given=given)
        shape = self.in_shapes[0]
        name = type(self).__name__
        if len(shape) != 1:
            raise ShapeError(f"{name} needs vectors (D,), got shape {shape}")
        check_conditions(name, shape, self.condition_shapes)
        levels = list(levels)
        if len(levels) != shape[0] or set(levels) != set(range(len(set(levels)))):
            raise ConfigError(f"{name}: levels must be {shape[0]} ints, from 0 without gaps, got {levels}")
        self.inverted, self.passes = False, max(levels) + 1
        self.register_buffer("level", torch.tensor(levels))
        self.univariate: Any = build_univariate(name, univariate, shape)
        self.subnet: Any = FriendsMasked(build_layers(net), build_layout(layout), joined)
        self.iterative, self.tolerance = self.univariate.iterative, self.univariate.tolerance
        offer_examples(self, (self.univariate,), shape)
        self.slow_inverse = self.passes > 1


@register("flowkit.softplus_affine")
class SoftplusAffine(Affine):
    """y = x exp(s) + t with the scale exp(s) = softplus(r) + m: nflows' masked affine map.

    forward: y = x exp(s) + t, log-derivative s. inverse: x = (y - t) exp(-s), log-derivative -s. Zero parameters scale
    by log(2) + m.

    Args:
        shape: event shape of x.
        min_scale: m.
    """

    def __init__(self, shape: Shape, min_scale: float = 1e-3):
        super().__init__(shape, clamp=None)
        if not 0 < min_scale < math.inf:
            raise ConfigError(f"min_scale must be positive and finite, got {min_scale!r}")
        self.min_scale = float(min_scale)

    def log_scale(self, raw: Tensor) -> Tensor:
        """s, in float32 or wider."""
        return (F.softplus(raw.float() if raw.dtype in HALF else raw) + self.min_scale).log()

    def undo(self, *args: Any) -> Any:
        """By autograd."""
        return Univariate.undo(self, *args)


@register("flowkit.softclip_spline")
class SoftclipSpline(RationalQuadraticSpline):
    """zuko's rational-quadratic spline: `fk.RationalQuadraticSpline` whose raw numbers are softly clipped.

    forward, its log-derivative, inverse, its log-derivative: those of `fk.RationalQuadraticSpline`. Raw widths and
    heights are w / (1 + 2 abs(w) / L) before the softmax, derivatives exp(d / (1 + abs(d) / L)), with L = -log(slope).
    Circular, x is wrap(x) before, and wrap(y) after the inverse, with wrap(x) = x mod 2 bound - bound.

    Args:
        shape: event shape of x.
        bins, bound: see `fk.RationalQuadraticSpline`.
        slope: the smallest derivative at a knot, above 0 and below 1.
        circular: see above.
    """

    def __init__(self, shape: Shape, bins: int = 8, bound: float = 5.0, slope: float = 1e-3, circular: bool = False):
        if not 0 < slope < 1:
            raise ConfigError(f"SoftclipSpline: slope must be above 0 and below 1, got {slope!r}")
        super().__init__(shape, bins, bound, min_bin=VANISHING, min_derivative=VANISHING)
        self.limit, self.circular = -math.log(slope), bool(circular)

    def _raw(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """What the parent takes: its softplus of the last is the derivative."""
        widths, heights, derivatives = parameters
        widths, heights = (each / (1 + 2 * each.abs() / self.limit) for each in (widths, heights))
        wanted = (derivatives / (1 + derivatives.abs() / self.limit)).exp()
        return [widths, heights, wanted + (-torch.expm1(-wanted)).log() - self.offset]

    def _wrap(self, x: Tensor) -> Tensor:
        return torch.remainder(x, 2 * self.bound) - self.bound if self.circular else x

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(y, log-derivative)`."""
        x, values = wide(x, parameters)
        return super().forward(self._wrap(x), *self._raw(values))

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """See the class: `(x, log-derivative of the inverse)`."""
        y, values = wide(y, parameters)
        x, log_derivative = super().inverse(y, *self._raw(values))
        return self._wrap(x), log_derivative

    def undo(self, *args: Any) -> Any:
        """By autograd."""
        return Univariate.undo(self, *args)


@register("flowkit.open_quadratic_spline")
class OpenQuadraticSpline(QuadraticSpline):
    """nflows' quadratic spline: `fk.QuadraticSpline` but for the two ends, whose derivatives are not quite 1.

    forward, its log-derivative, inverse, its log-derivative: those of `fk.QuadraticSpline`. With raw inner derivatives
    h = softplus + 0.001 and widths w, those at the ends are (w_0 h_1 / 4 + S + w_-1 h_-2 / 4) / (1 - (w_0 + w_-1) / 4),
    S the area between; all are divided by the area. So the density jumps at the bounds.

    Args:
        shape: event shape of x.
        bins, bound, min_bin, min_derivative: see `fk.QuadraticSpline`.
    """

    def _parts(self, widths: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        widths = sizes(widths, self.min_bin)
        inner = F.softplus(inner) + 1e-3
        first, last = widths[:, :1] / 4, widths[:, -1:] / 4
        between = ((inner[:, :-1] + inner[:, 1:]) * widths[:, 1:-1]).sum(1, keepdim=True) / 2
        ends = (first * inner[:, :1] + between + last * inner[:, -1:]) / (1 - first - last)
        raw = torch.cat((ends, inner, ends), 1)
        area = ((raw[:, :-1] + raw[:, 1:]) / 2 * widths).sum(1, keepdim=True)
        derivatives = self.min_derivative + (1 - self.min_derivative) * raw / area
        return widths, derivatives, knots(widths), knots(widths * (derivatives[:, :-1] + derivatives[:, 1:]) / 2)


@register("flowkit.friends_made_mixture")
class FriendsMadeMixture(Base):
    """nflows' MADEMoG: z_i is a mixture of K normals, whose numbers a masked net predicts from z_<i and the context.

    log p(z) = sum_i logsumexp_k(log w_ik + log N(z_i; mu_ik, sigma_ik)), sigma = softplus + epsilon. Temperature scales
    each z_i about the mean of its component.

    Args:
        dim: D.
        given: the shape of the context, a vector.
        net: the net of z and the context, or its description, see `flowkit.interop.layers`.
        components: K.
        epsilon: the smallest scale.
    """

    def __init__(self, dim: int, given: Any, net: Any, components: int, epsilon: float = 1e-2):
        super().__init__(dim, given)
        self.net = net if isinstance(net, nn.Module) else build_layers(net)
        self.components, self.epsilon = int(components), float(epsilon)

    def written_arguments(self) -> Arguments:
        """The description of the net, for files; where it has none, the reason."""
        settings = {"components": self.components, "epsilon": self.epsilon}
        return Arguments(self.dim, self.condition_shapes, written(self.net), **settings)

    def _mixture(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log weights, means and scales, `(rows, D, K)`."""
        logits, means, raw = self.net(z, context).unflatten(-1, (self.dim, self.components, 3)).unbind(-1)
        return logits.log_softmax(-1), means, F.softplus(raw) + self.epsilon

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class."""
        (context,) = conditions
        lead = torch.broadcast_shapes(z.shape[:-1], context.shape[:-1])
        rows = z.expand(*lead, self.dim).reshape(-1, self.dim)
        with torch.autocast(z.device.type, enabled=False):
            told = context.to(rows.dtype).expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
            weights, means, scales = self._mixture(rows, told)
        whitened = (rows.unsqueeze(-1) - means) / scales
        each = weights - 0.5 * whitened.square() - scales.log() - 0.5 * math.log(2 * math.pi)
        return each.logsumexp(-1).sum(-1).reshape(lead)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """D standard normal and D K Gumbel draws, `(*shape, D (K + 1))`."""
        like = next(self.net.parameters())
        normal = torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device)
        exponential = torch.empty(*shape, self.dim * self.components, dtype=like.dtype, device=like.device)
        return torch.cat((normal, -exponential.exponential_().log()), -1)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """Element by element: a component by its weight, then its normal."""
        (context,) = conditions
        lead = noise.shape[:-1]
        told = context.to(noise.dtype).expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
        rows = noise.reshape(-1, noise.shape[-1])
        normal, gumbel = rows[:, : self.dim], rows[:, self.dim :].unflatten(-1, (self.dim, self.components))
        z = torch.zeros_like(normal)
        with torch.autocast(noise.device.type, enabled=False):
            for i in range(self.dim):
                weights, means, scales = (each[:, i] for each in self._mixture(z, told))
                chosen = (weights.detach() + gumbel[:, i]).argmax(-1, keepdim=True)
                drawn = means.gather(-1, chosen) + scales.gather(-1, chosen) * normal[:, i : i + 1] * temperature
                z = torch.cat((z[:, :i], drawn, z[:, i + 1 :]), -1)
        return z.reshape(*lead, self.dim)
