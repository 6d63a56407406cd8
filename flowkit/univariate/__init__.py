"""Univariate maps: elementwise monotone maps and their parameters, shared by couplings and autoregressive maps."""

from flowkit.univariate.affine import Affine
from flowkit.univariate.univariate import Univariate

__all__ = ["Affine", "Univariate"]
