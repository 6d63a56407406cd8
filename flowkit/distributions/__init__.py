"""Base distributions: what the latent is distributed as. Modules, so trained, moved and saved with the flow."""

from flowkit.distributions.base import Base
from flowkit.distributions.heavy_tailed import Laplace, StudentT, Uniform
from flowkit.distributions.mixture import ClassConditional, GaussianMixture
from flowkit.distributions.normal import DiagonalNormal, FullNormal, StandardNormal
from flowkit.distributions.sphere import UniformSphere

__all__ = [
    "Base",
    "ClassConditional",
    "DiagonalNormal",
    "FullNormal",
    "GaussianMixture",
    "Laplace",
    "StandardNormal",
    "StudentT",
    "Uniform",
    "UniformSphere",
]
