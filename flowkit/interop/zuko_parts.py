"""zuko's lazy transforms and bases as flowkit's own parts with the same parameters, which can be saved."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from flowkit.bijection import Bijection
from flowkit.bijections import (
    Coupling,
    Elementwise,
    ElementwiseAffine,
    Identity,
    LULinear,
    OrthogonalLinear,
    Permute,
)
from flowkit.distributions import Base, DiagonalNormal, StandardNormal, Uniform
from flowkit.errors import ConfigError
from flowkit.interop.converted import FriendsAutoregressive, FriendsSubnet, SoftclipSpline
from flowkit.interop.layers import describe_layers
from flowkit.interop.nets import native_net
from flowkit.interop.zuko_maps import BoundedBernstein, NormalMixture, PlainSumOfSquares, SoftClip
from flowkit.shapes import Shape
from flowkit.univariate import Additive, Affine

CIRCLE = math.pi
ZUKOS_BOUND = 10.0  # of what it inverts by bisection


def native_parts(part: Any, shape: Shape, given: tuple[Shape, ...]) -> list[Bijection]:
    """The parts that do what a lazy transform does on data of this event shape, one after the other.

    Raises:
        ConfigError: flowkit has no counterpart of it, or of a net in it; the message says which.
    """
    import zuko

    name = type(part).__name__
    if type(part) is zuko.flows.MaskedAutoregressiveTransform:
        return _autoregressive(part, shape, given)
    if type(part) is zuko.flows.GeneralCouplingTransform:
        return _coupling(part, shape, given)
    if type(part) is zuko.flows.gaussianization.ElementWiseTransform:
        return _elementwise(part, shape, given)
    if type(part) is zuko.lazy.UnconditionalTransform and len(shape) == 1:
        return _unconditional(part, shape)
    raise ConfigError(f"zuko's {name} has no counterpart in flowkit")


def univariate_of(part: Any) -> tuple[Any, dict[str, Any]]:
    """The univariate recipe of a lazy transform, and the layout's arguments.

    Raises:
        ConfigError: it has no counterpart.
    """
    import zuko
    from zuko.flows.polynomial import ShiftedSOSPTransform
    from zuko.flows.spline import CircularRQSTransform

    made: Any = part.univariate
    settings: dict[str, Any] = {}
    while isinstance(made, functools.partial):
        made, settings = made.func, {**made.keywords, **settings}
    shapes = [tuple(int(n) for n in each) for each in part.shapes]
    name = getattr(made, "__name__", type(made).__name__)
    recipe: Any = None
    if made is zuko.transforms.MonotonicAffineTransform and shapes == [(), ()] and set(settings) <= {"slope"}:
        recipe = Affine.recipe(clamp="softsign", limit=-math.log(settings.get("slope", 1e-3)))
        return recipe, {"order": (1, 0)}
    if made is zuko.transforms.AdditiveTransform and shapes == [()] and not settings:
        return Additive.recipe(), {"order": (0,)}
    splines = (zuko.transforms.MonotonicRQSTransform, CircularRQSTransform)
    if made in splines and set(settings) <= {"slope", "bound"}:
        circular = made is CircularRQSTransform
        bins, bound = shapes[0][0], CIRCLE if circular else settings.get("bound", 5.0)
        if shapes == [(bins,), (bins,), (bins - 1,)]:
            slope = settings.get("slope", 1e-3)
            recipe = SoftclipSpline.recipe(bins=bins, bound=bound, slope=slope, circular=circular)
            return recipe, {"order": tuple(range(3 * bins - 1))}
    if made is zuko.transforms.BoundedBernsteinTransform and len(shapes) == 1 and set(settings) <= {"bound"}:
        numbers = shapes[0][0]
        recipe = BoundedBernstein.recipe(numbers=numbers, bound=settings.get("bound", 5.0))
        return recipe, {"order": tuple(range(numbers))}
    if made is zuko.transforms.GaussianizationTransform and not settings:
        components = shapes[0][0]
        return NormalMixture.recipe(components=components), {"order": tuple(range(2 * components))}
    if made is ShiftedSOSPTransform and set(settings) <= {"slope"}:
        polynomials, powers = shapes[0]
        slope = settings.get("slope", 1e-3)
        recipe = PlainSumOfSquares.recipe(
            polynomials=polynomials, degree=powers - 1, bound=ZUKOS_BOUND, min_derivative=slope
        )
        return recipe, {"order": tuple(range(polynomials * powers + 1))}
    raise ConfigError(f"zuko's {name} has no counterpart in flowkit")


def _autoregressive(part: Any, shape: Shape, given: tuple[Shape, ...]) -> list[Bijection]:
    if part.order is None:
        raise ConfigError("zuko's MaskedAutoregressiveTransform with an adjacency has no counterpart in flowkit")
    univariate, layout = univariate_of(part)
    net = native_net(part.hyper)
    found = sorted(set(part.order.tolist()))
    made = FriendsAutoregressive(
        shape,
        net=describe_layers(net),
        levels=tuple(found.index(level) for level in part.order.tolist()),
        given=given,
        univariate=univariate,
        layout=layout,
    )
    made.subnet.net = net
    return [made]


def _coupling(part: Any, shape: Shape, given: tuple[Shape, ...]) -> list[Bijection]:
    univariate, layout = univariate_of(part)
    net = native_net(part.hyper)
    second = tuple((~part.mask).nonzero().squeeze(-1).tolist())
    subnet = FriendsSubnet(describe_layers(net), layout)
    made = Coupling(shape, given=given, subnet=subnet, univariate=univariate, split=second)
    made.subnets[0].net = net
    return [made]


def _elementwise(part: Any, shape: Shape, given: tuple[Shape, ...]) -> list[Bijection]:
    univariate, layout = univariate_of(part)
    if hasattr(part, "hyper"):
        net = native_net(part.hyper)
        made: Any = Elementwise(shape, given, univariate, FriendsSubnet(describe_layers(net), layout))
        made.subnet.net = net
        return [made]
    made = Elementwise(shape, univariate=univariate)
    numbers = torch.cat([each.detach().reshape(shape[0], -1) for each in part.phi], 1)  # all of one element
    _put(made.numbers, numbers.T[list(layout["order"])].reshape(-1))
    return [made]


def _unconditional(part: Any, shape: Shape) -> list[Bijection]:
    import zuko

    made: Any
    transform, size = part(), shape[0]
    kind = part.f
    tensors = [each.detach() for each in (*part.parameters(), *part.buffers())]
    if kind is zuko.transforms.PermutationTransform:
        return [Permute(shape, order=transform.order.tolist())]
    if kind is zuko.transforms.IdentityTransform:
        return [Identity(shape)]
    if kind is zuko.transforms.SoftclipTransform:
        return [SoftClip(shape, bound=transform.bound)]
    if kind is zuko.transforms.RotationTransform and tensors[0].shape == (size, size):
        made = OrthogonalLinear(shape, form="matrix_exp")
        _put(made.generator, (tensors[0] - tensors[0].T).triu(1))
        return [made]
    if kind is zuko.transforms.LULinearTransform and tensors[0].shape == (size, size):
        # Theirs has ones on the diagonal of U: L D^-1 has them, D U is ours.
        lower, diagonal = transform.L.detach(), transform.L.detach().diagonal()
        upper = diagonal.unsqueeze(1) * transform.U.detach()
        made = LULinear(shape, init="identity")
        _put(made.packed, (lower / diagonal).tril(-1) + upper.triu(1) + diagonal.abs().log().diag())
        made.sign.copy_(diagonal.sign())
        return [made]
    if kind is zuko.transforms.MonotonicAffineTransform and transform.log_scale.shape in ((), shape):
        made = ElementwiseAffine(shape)
        _put(made.log_scale, transform.log_scale)
        _put(made.shift, transform.shift)
        return [made]
    raise ConfigError(f"zuko's {getattr(kind, '__name__', kind)} has no counterpart in flowkit")


def native_base(lazy: Any, dim: int) -> Base | None:
    """flowkit's own base, for a lazy distribution without a context that is a normal or a box; else None."""
    import zuko

    if not isinstance(lazy, zuko.lazy.UnconditionalDistribution):
        return None
    made = lazy()
    learned = any(True for _ in lazy.parameters())
    if isinstance(made, zuko.distributions.DiagNormal):
        loc, scale = made.base_dist.loc.detach(), made.base_dist.scale.detach()
        if not learned and not loc.any() and bool((scale == 1).all()):
            return StandardNormal(dim)
        normal = DiagonalNormal(dim)
        _put(normal.loc, loc)
        _put(normal.log_scale, scale.log())
        return normal
    if isinstance(made, zuko.distributions.BoxUniform) and not learned:
        return Uniform(dim, made.base_dist.low.tolist(), made.base_dist.high.tolist())
    return None


def _put(parameter: Any, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
