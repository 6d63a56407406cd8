"""flowkit: normalizing flows as graphs of reversible ops, with exact densities and first-class conditions.

The public names are loaded at first use, so that `flowkit --help` answers without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowkit._version import __version__

_MODULES = {
    "flowkit": ("flows",),  # a module, not a name within one
    "flowkit.bijection": ("Bijection", "Prepared", "add_rows"),
    "flowkit.bijections": (
        "Elementwise",
        "SphereMoebius",
        "SphereToCylinder",
        "SplineCoupling",
        "GINCoupling",
        "AdditiveCoupling",
        "ActNorm",
        "MaskedAutoregressive",
        "AffineCoupling",
        "LearnedScale",
        "DCT",
        "CheckerboardSqueeze",
        "BatchNorm",
        "PeriodicConvolution",
        "EmergingConvolution",
        "GlowCoupling",
        "ConditionalAffine",
        "AllInOneBlock",
        "Arctanh",
        "Augment",
        "Box",
        "CDF",
        "CircleShift",
        "Concat",
        "ContinuousFlow",
        "Coupling",
        "ElementwiseAffine",
        "Exp",
        "FixedRotation",
        "Flatten",
        "Identity",
        "Inverse",
        "InvertibleConv1x1",
        "LULinear",
        "LeakyReLU",
        "Log",
        "Logit",
        "LowRankLinear",
        "OrthogonalLinear",
        "Permute",
        "Planar",
        "Power",
        "QRLinear",
        "Quantile",
        "Radial",
        "Reshape",
        "ResidualBlock",
        "Reverse",
        "Roll",
        "SVDLinear",
        "Sigmoid",
        "Slice",
        "Softplus",
        "Split",
        "Squeeze",
        "StickBreaking",
        "Sylvester",
        "Tanh",
        "Transpose",
        "UniformDequantization",
        "VariationalDequantization",
    ),
    "flowkit.compilation": ("compile",),
    "flowkit.distributions": (
        "Base",
        "ClassConditional",
        "DiagonalNormal",
        "FullNormal",
        "GaussianMixture",
        "JointBase",
        "Laplace",
        "Resampled",
        "StandardNormal",
        "StudentT",
        "TorchDistribution",
        "Uniform",
        "UniformSphere",
    ),
    "flowkit.errors": (
        "BackpropError",
        "BudgetWarning",
        "ConditionError",
        "ConfigError",
        "ConformanceError",
        "ConvergenceError",
        "DriftWarning",
        "ExportError",
        "FlowkitError",
        "GraphError",
        "InputError",
        "MissingDependencyError",
        "NonFiniteError",
        "PluginWarning",
        "RegistryError",
        "ShapeError",
        "StorageError",
    ),
    "flowkit.features": ("OneHot", "Resize", "ToMap", "ToVector"),
    "flowkit.flow": ("Flow",),
    "flowkit.graph": ("Graph", "InvertibleNetwork", "Wire"),
    "flowkit.periodic": ("PeriodicNet",),
    "flowkit.registry": ("Example", "examples_of", "lookup", "plugins", "register", "registered"),
    "flowkit.storage": ("load", "save"),
    "flowkit.subnets": ("ConvNet", "MLP", "ResidualNet"),
    "flowkit.univariate": (
        "UnconstrainedMonotonic",
        "SumOfSquaresPolynomial",
        "BernsteinPolynomial",
        "Sigmoidal",
        "LogisticMixture",
        "Additive",
        "Affine",
        "AngleShift",
        "Moebius",
        "BoundedRationalQuadraticSpline",
        "CircularRationalQuadraticSpline",
        "LinearSpline",
        "QuadraticSpline",
        "RationalQuadraticSpline",
        "SigmoidAffine",
        "Univariate",
        "UnivariateRecipe",
        "VolumePreservingAffine",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowkit' has no attribute '{name}'")
    home = _HOME[name]
    module = importlib.import_module(f"flowkit.{name}" if home == "flowkit" else home)
    value = module if home == "flowkit" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


if TYPE_CHECKING:
    from flowkit import flows
    from flowkit.bijection import Bijection, Prepared, add_rows
    from flowkit.bijections import (
        CDF,
        DCT,
        ActNorm,
        AdditiveCoupling,
        AffineCoupling,
        AllInOneBlock,
        Arctanh,
        Augment,
        BatchNorm,
        Box,
        CheckerboardSqueeze,
        CircleShift,
        Concat,
        ConditionalAffine,
        ContinuousFlow,
        Coupling,
        Elementwise,
        ElementwiseAffine,
        EmergingConvolution,
        Exp,
        FixedRotation,
        Flatten,
        GINCoupling,
        GlowCoupling,
        Identity,
        Inverse,
        InvertibleConv1x1,
        LeakyReLU,
        LearnedScale,
        Log,
        Logit,
        LowRankLinear,
        LULinear,
        MaskedAutoregressive,
        OrthogonalLinear,
        PeriodicConvolution,
        Permute,
        Planar,
        Power,
        QRLinear,
        Quantile,
        Radial,
        Reshape,
        ResidualBlock,
        Reverse,
        Roll,
        Sigmoid,
        Slice,
        Softplus,
        SphereMoebius,
        SphereToCylinder,
        SplineCoupling,
        Split,
        Squeeze,
        StickBreaking,
        SVDLinear,
        Sylvester,
        Tanh,
        Transpose,
        UniformDequantization,
        VariationalDequantization,
    )
    from flowkit.compilation import compile
    from flowkit.distributions import (
        Base,
        ClassConditional,
        DiagonalNormal,
        FullNormal,
        GaussianMixture,
        JointBase,
        Laplace,
        Resampled,
        StandardNormal,
        StudentT,
        TorchDistribution,
        Uniform,
        UniformSphere,
    )
    from flowkit.errors import (
        BackpropError,
        BudgetWarning,
        ConditionError,
        ConfigError,
        ConformanceError,
        ConvergenceError,
        DriftWarning,
        ExportError,
        FlowkitError,
        GraphError,
        InputError,
        MissingDependencyError,
        NonFiniteError,
        PluginWarning,
        RegistryError,
        ShapeError,
        StorageError,
    )
    from flowkit.features import OneHot, Resize, ToMap, ToVector
    from flowkit.flow import Flow
    from flowkit.graph import Graph, InvertibleNetwork, Wire
    from flowkit.periodic import PeriodicNet
    from flowkit.registry import Example, examples_of, lookup, plugins, register, registered
    from flowkit.storage import load, save
    from flowkit.subnets import MLP, ConvNet, ResidualNet
    from flowkit.univariate import (
        Additive,
        Affine,
        AngleShift,
        BernsteinPolynomial,
        BoundedRationalQuadraticSpline,
        CircularRationalQuadraticSpline,
        LinearSpline,
        LogisticMixture,
        Moebius,
        QuadraticSpline,
        RationalQuadraticSpline,
        SigmoidAffine,
        Sigmoidal,
        SumOfSquaresPolynomial,
        UnconstrainedMonotonic,
        Univariate,
        UnivariateRecipe,
        VolumePreservingAffine,
    )
