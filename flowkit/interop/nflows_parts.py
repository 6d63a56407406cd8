"""nflows' transforms as flowkit's own parts with the same parameters: what is written here can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkit.bijection import Bijection
from flowkit.bijections import (
    CDF,
    Coupling,
    Elementwise,
    ElementwiseAffine,
    Identity,
    Inverse,
    LeakyReLU,
    LULinear,
    OrthogonalLinear,
    Permute,
    QRLinear,
    Sigmoid,
    Squeeze,
    SVDLinear,
    Tanh,
)
from flowkit.errors import ConfigError
from flowkit.interop.converted import (
    VANISHING,
    FriendsAutoregressive,
    FriendsSubnet,
    OpenQuadraticSpline,
    SoftplusAffine,
)
from flowkit.interop.layers import describe_layers
from flowkit.interop.nets import native_net
from flowkit.shapes import Shape
from flowkit.univariate import (
    Additive,
    BoundedRationalQuadraticSpline,
    CubicSpline,
    LinearSpline,
    RationalQuadraticSpline,
    SigmoidAffine,
)


def native_parts(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    """The parts that do what a transform does on data of this event shape, one after the other.

    Raises:
        ConfigError: flowkit has no counterpart of it, or of a net in it; the message says which.
    """
    names = [cls.__name__ for cls in type(part).__mro__ if cls.__module__.startswith("nflows.")]
    if not names or type(part).__name__ != names[0]:
        raise ConfigError(f"{type(part).__name__} is no transform of nflows'")
    for name in names:
        if name in CONVERTERS:
            return CONVERTERS[name](part, shape, context)
    raise ConfigError(f"nflows' {names[0]} has no counterpart in flowkit")


# ---------------------------------------------------------------------- couplings and autoregressive maps


def univariate_of(part: Any, hidden: float | None) -> tuple[Any, dict[str, Any]]:
    """The univariate recipe of a coupling, an autoregressive map or an elementwise spline, and the layout's arguments.

    `hidden` is the width that splines divide their raw widths and heights by the root of; None where they do not.
    """
    name = type(part).__name__
    if name == "AdditiveCouplingTransform":
        return Additive.recipe(), {"order": (0,), "by_element": False}
    if name == "AffineCouplingTransform":
        return SigmoidAffine.recipe(min_scale=1e-3), {"order": (1, 0), "by_element": False}
    if name == "MaskedAffineAutoregressiveTransform":
        return SoftplusAffine.recipe(min_scale=part._epsilon), {"order": (0, 1)}
    tails, bound = getattr(part, "tails", None), getattr(part, "tail_bound", 1.0)
    root = 1.0 if hidden is None else 1 / math.sqrt(hidden)
    bins = bins_of(part)
    widths, heights = getattr(part, "min_bin_width", 1e-3), getattr(part, "min_bin_height", 1e-3)
    scale, offset = [root] * (2 * bins), [0.0] * (2 * bins)
    recipe: Any
    if "RationalQuadratic" in name:
        if widths != heights:
            raise ConfigError(f"nflows' {name} has smallest widths and heights that differ: {widths} and {heights}")
        settings = {"bins": bins, "min_bin": widths, "min_derivative": part.min_derivative}
        if tails == "linear":
            recipe, inner = RationalQuadraticSpline.recipe(bound=bound, **settings), bins - 1
        else:
            recipe, inner = BoundedRationalQuadraticSpline.recipe(**settings), bins + 1
        scale += [1.0] * inner
        offset += [-math.log(math.expm1(1 - part.min_derivative))] * inner
    elif tails != "linear":
        raise ConfigError(f"nflows' {name} without tails has no counterpart in flowkit")
    elif "Quadratic" in name:
        recipe = OpenQuadraticSpline.recipe(bins=bins, bound=bound, min_bin=widths, min_derivative=heights)
        # The masked map scales the widths alone.
        of_heights = 1.0 if "Autoregressive" in name else root
        scale, offset = [root] * bins + [of_heights] * (bins - 1), [0.0] * (2 * bins - 1)
    elif "Cubic" in name:
        if widths != heights:
            raise ConfigError(f"nflows' {name} has smallest widths and heights that differ: {widths} and {heights}")
        recipe = CubicSpline.recipe(bins=bins, bound=bound, min_bin=widths, min_end=0.0)
        scale, offset = [*scale, 1.0, 1.0], [*offset, math.log(2), math.log(2)]
    elif "Linear" in name:
        recipe = LinearSpline.recipe(bins=bins, bound=bound, min_bin=VANISHING)
        scale, offset = [1.0] * bins, [0.0] * bins
    else:
        raise ConfigError(f"nflows' {name} has no counterpart in flowkit")
    return recipe, {"order": tuple(range(len(scale))), "scale": tuple(scale), "offset": tuple(offset)}


def bins_of(part: Any) -> int:
    """The number of bins of a spline."""
    if hasattr(part, "num_bins"):
        return int(part.num_bins)
    return int((part.unnormalized_pdf if hasattr(part, "unnormalized_pdf") else part.unnormalized_widths).shape[-1])


def _coupling(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    if part.unconditional_transform is not None:
        raise ConfigError(f"nflows' {type(part).__name__} with an unconditional transform has no counterpart")
    net = native_net(part.transform_net)
    width = getattr(part.transform_net, "hidden_features", getattr(part.transform_net, "hidden_channels", None))
    if "RationalQuadratic" not in type(part).__name__:
        width = getattr(part.transform_net, "hidden_features", None)
    univariate, layout = univariate_of(part, width)
    subnet = FriendsSubnet(describe_layers(net), layout, joined=False)
    second = tuple(sorted(part.transform_features.tolist()))
    made = Coupling(shape, given=(context,) if context else (), subnet=subnet, univariate=univariate, split=second)
    made.subnets[0].net = net
    return [made]


def _autoregressive(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    net = native_net(part.autoregressive_net)
    univariate, layout = univariate_of(part, getattr(part.autoregressive_net, "hidden_features", None))
    takes = context is not None and getattr(net, "context", None) is not None
    made = FriendsAutoregressive(
        shape,
        net=describe_layers(net),
        levels=tuple(range(shape[0])),
        given=(context,) if takes else (),
        univariate=univariate,
        layout=layout,
        joined=False,
    )
    made.subnet.net = net
    return [made]


def _elementwise_spline(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    univariate, layout = univariate_of(part, None)
    names = ("pdf", "widths", "heights", "derivatives")
    raw = [getattr(part, f"unnormalized_{name}") for name in names if hasattr(part, f"unnormalized_{name}")]
    raw += [
        getattr(part, name) for name in ("unnorm_derivatives_left", "unnorm_derivatives_right") if hasattr(part, name)
    ]
    numbers = torch.cat([each.detach() for each in raw], -1)
    numbers = numbers + numbers.new_tensor(layout["offset"])
    made = Elementwise(shape, univariate=univariate)
    assert made.numbers is not None
    _put(made.numbers, numbers.movedim(-1, 0).reshape(made.numbers.shape))
    return [made]


# ---------------------------------------------------------------------- linear maps


def _put(parameter: Any, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def shifted(shape: Shape, shift: Tensor) -> Bijection:
    """x + shift, one for each channel."""
    if len(shape) == 1:
        made: Any = Elementwise(shape, univariate=Additive.recipe())
        _put(made.numbers, shift)
        return made
    made = ElementwiseAffine(shape)
    _put(made.shift, shift.view(made.shift.shape))
    return made


def affine(shape: Shape, log_scale: Tensor, shift: Tensor) -> Bijection:
    """x exp(log_scale) + shift, one pair for each channel."""
    made = ElementwiseAffine(shape)
    _put(made.log_scale, log_scale.reshape(-1, *[1] * len(shape[1:])).expand_as(made.log_scale))
    _put(made.shift, shift.reshape(-1, *[1] * len(shape[1:])).expand_as(made.shift))
    return made


def _lu(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    made = LULinear(shape, init="identity")
    lower, upper = part._create_lower_upper()
    _put(made.packed, lower.tril(-1) + upper.triu(1) + upper.diagonal().log().diag())
    return [made, shifted(shape, part.bias)]


def _one_by_one(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    return [*_permutation(part.permutation, shape, context), *_lu(part, shape, context)]


def _qr(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    made = QRLinear(shape, reflections=part.orthogonal.num_transforms)
    _put(made.vectors, part.orthogonal.q_vectors.flip(0))  # theirs are applied from the first, ours from the last
    _put(made.upper, part._create_upper().triu(1) + part.log_upper_diag.diag())
    return [made, shifted(shape, part.bias)]


def _svd(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    made = SVDLinear(shape, reflections=part.orthogonal_1.num_transforms)
    _put(made.left, part.orthogonal_1.q_vectors.flip(0))
    _put(made.right, part.orthogonal_2.q_vectors)
    _put(made.log_values, part.log_diagonal)
    return [made, shifted(shape, part.bias)]


def _householder(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    made = OrthogonalLinear(shape, reflections=part.num_transforms)
    _put(made.vectors, part.q_vectors.flip(0))
    return [made]


# ---------------------------------------------------------------------- the rest


def _permutation(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    if part._dim > len(shape):
        raise ConfigError(f"nflows' {type(part).__name__} permutes dimension {part._dim}, which {shape} has not")
    return [Permute(shape, order=part._permutation.tolist(), dim=part._dim - 1)]


def _batch_norm(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    """Its running statistics, in training too: those of a batch make no bijection of a row."""
    log_scale = part.weight.log() - 0.5 * (part.running_var + part.eps).log()
    return [affine(shape, log_scale, part.bias - part.running_mean * log_scale.exp())]


def _act_norm(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    return [affine(shape, part.log_scale, part.shift)]


def _pointwise_affine(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    scale, shift = part._scale, part._shift
    if any(each.numel() > 1 and (each.dim() != 1 or len(shape) != 1) for each in (scale, shift)):
        raise ConfigError("nflows' PointwiseAffineTransform with numbers for each position has no counterpart")
    return [affine(shape, scale.log(), shift)]


def _sigmoid(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    temperature = part.temperature.detach()
    if isinstance(part.temperature, torch.nn.Parameter):
        raise ConfigError("nflows' Sigmoid with a learned temperature, one for all elements, has no counterpart")
    scaled = [] if bool(temperature == 1) else [affine(shape, temperature.log(), torch.zeros_like(temperature))]
    return [*scaled, Sigmoid(shape)]


def _inverse(part: Any, shape: Shape, context: Shape | None) -> list[Bijection]:
    # The inner transform takes what this one gives, which is of the same shape but where it squeezes.
    inner = part._transform
    if type(inner).__name__ in ("SqueezeTransform", "MultiscaleCompositeTransform"):
        raise ConfigError(f"nflows' InverseTransform of {type(inner).__name__} has no counterpart")
    parts = (
        [each for one in inner._transforms for each in native_parts(one, shape, context)]
        if type(inner).__name__ in ("CompositeTransform", "CompositeCDFTransform")
        else native_parts(inner, shape, context)
    )
    return [Inverse(each) for each in reversed(parts)]


Converter = Callable[[Any, Shape, Shape | None], list[Bijection]]
CONVERTERS: dict[str, Converter] = {
    "CouplingTransform": _coupling,
    "AutoregressiveTransform": _autoregressive,
    "PiecewiseLinearCDF": _elementwise_spline,
    "PiecewiseQuadraticCDF": _elementwise_spline,
    "PiecewiseCubicCDF": _elementwise_spline,
    "PiecewiseRationalQuadraticCDF": _elementwise_spline,
    "OneByOneConvolution": _one_by_one,
    "LULinear": _lu,
    "QRLinear": _qr,
    "SVDLinear": _svd,
    "HouseholderSequence": _householder,
    "Permutation": _permutation,
    "BatchNorm": _batch_norm,
    "ActNorm": _act_norm,
    "PointwiseAffineTransform": _pointwise_affine,
    "IdentityTransform": lambda part, shape, context: [Identity(shape)],
    "LeakyReLU": lambda part, shape, context: [LeakyReLU(shape, slope=float(part.negative_slope))],
    "Tanh": lambda part, shape, context: [Tanh(shape)],
    "Sigmoid": _sigmoid,
    "CauchyCDF": lambda part, shape, context: [CDF(shape, "cauchy")],
    "SqueezeTransform": lambda part, shape, context: [Squeeze(shape, factor=part.factor)],
    "InverseTransform": _inverse,
}
