"""The bijections, one family a file; each is registered under its name, `flowkit.<name>`."""

from flowkit.bijections.activations import Arctanh, Exp, LeakyReLU, Log, Logit, Power, Sigmoid, Softplus, Tanh
from flowkit.bijections.all_in_one import AllInOneBlock
from flowkit.bijections.augmentation import Augment, Slice
from flowkit.bijections.autoregressive import MaskedAutoregressive
from flowkit.bijections.bounded import Box, StickBreaking
from flowkit.bijections.cdfs import CDF, Quantile
from flowkit.bijections.continuous import ContinuousFlow
from flowkit.bijections.conv1x1 import InvertibleConv1x1
from flowkit.bijections.cosine import DCT
from flowkit.bijections.coupling import AffineCoupling, Coupling
from flowkit.bijections.decompositions import QRLinear, SVDLinear
from flowkit.bijections.dequantization import UniformDequantization, VariationalDequantization
from flowkit.bijections.elementwise import ConditionalAffine, ElementwiseAffine
from flowkit.bijections.emerging import EmergingConvolution
from flowkit.bijections.identity import Identity
from flowkit.bijections.inverse import Inverse
from flowkit.bijections.linear import FixedRotation, LULinear
from flowkit.bijections.low_rank import LowRankLinear
from flowkit.bijections.named_couplings import AdditiveCoupling, GINCoupling, GlowCoupling, SplineCoupling
from flowkit.bijections.normalization import ActNorm, BatchNorm, LearnedScale, Standardize
from flowkit.bijections.orthogonal import OrthogonalLinear
from flowkit.bijections.periodic import PeriodicConvolution
from flowkit.bijections.permutation import Permute, Reverse, Roll
from flowkit.bijections.planar import Planar, Radial
from flowkit.bijections.reshape import CheckerboardSqueeze, Flatten, Reshape, Squeeze, Transpose
from flowkit.bijections.residual import ResidualBlock
from flowkit.bijections.sphere import CircleShift, SphereMoebius, SphereToCylinder
from flowkit.bijections.split import Concat, Split
from flowkit.bijections.squashing import LeakyTanh, LogTanh, Softclip
from flowkit.bijections.sylvester import Sylvester
from flowkit.bijections.univariate_elementwise import Elementwise
from flowkit.bijections.whitening import Whiten

__all__ = [
    "CDF",
    "DCT",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "AllInOneBlock",
    "Arctanh",
    "Augment",
    "BatchNorm",
    "Box",
    "CheckerboardSqueeze",
    "CircleShift",
    "Concat",
    "ConditionalAffine",
    "ContinuousFlow",
    "Coupling",
    "Elementwise",
    "ElementwiseAffine",
    "EmergingConvolution",
    "Exp",
    "FixedRotation",
    "Flatten",
    "GINCoupling",
    "GlowCoupling",
    "Identity",
    "Inverse",
    "InvertibleConv1x1",
    "LULinear",
    "LeakyReLU",
    "LeakyTanh",
    "LearnedScale",
    "Log",
    "LogTanh",
    "Logit",
    "LowRankLinear",
    "MaskedAutoregressive",
    "OrthogonalLinear",
    "PeriodicConvolution",
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
    "Softclip",
    "Softplus",
    "SphereMoebius",
    "SphereToCylinder",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Standardize",
    "StickBreaking",
    "Sylvester",
    "Tanh",
    "Transpose",
    "UniformDequantization",
    "VariationalDequantization",
    "Whiten",
]
