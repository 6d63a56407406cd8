"""Base distributions: what the latent is distributed as. Modules, so trained, moved and saved with the flow."""

from flowkit.distributions.base import Base
from flowkit.distributions.heavy_tailed import GeneralizedNormal, Laplace, Logistic, StudentT, Uniform
from flowkit.distributions.joint import JointBase
from flowkit.distributions.mixture import ClassConditional, GaussianMixture
from flowkit.distributions.normal import DiagonalNormal, FullNormal, LowRankNormal, StandardNormal
from flowkit.distributions.resampled import Resampled
from flowkit.distributions.sphere import UniformSphere
from flowkit.distributions.wrapped import TorchDistribution

__all__ = [
    "Base",
    "ClassConditional",
    "DiagonalNormal",
    "FullNormal",
    "GaussianMixture",
    "GeneralizedNormal",
    "JointBase",
    "Laplace",
    "Logistic",
    "LowRankNormal",
    "Resampled",
    "StandardNormal",
    "StudentT",
    "TorchDistribution",
    "Uniform",
    "UniformSphere",
]
