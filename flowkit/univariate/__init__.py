"""Univariate maps: elementwise monotone maps and their parameters, shared by couplings and autoregressive maps."""

from flowkit.univariate.additive import Additive
from flowkit.univariate.affine import Affine, VolumePreservingAffine
from flowkit.univariate.bernstein import BernsteinPolynomial
from flowkit.univariate.circular import AngleShift, Moebius
from flowkit.univariate.cubic_spline import CubicSpline
from flowkit.univariate.linear_spline import LinearSpline
from flowkit.univariate.logistic_mixture import LogisticMixture, Sigmoidal
from flowkit.univariate.quadratic_spline import QuadraticSpline
from flowkit.univariate.rational_quadratic import RationalQuadraticSpline
from flowkit.univariate.rational_quadratic_bounded import (
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
)
from flowkit.univariate.sigmoid_affine import SigmoidAffine
from flowkit.univariate.sum_of_squares import SumOfSquaresPolynomial
from flowkit.univariate.unconstrained import UnconstrainedMonotonic
from flowkit.univariate.univariate import Univariate, UnivariateRecipe, build_univariate

__all__ = [
    "Additive",
    "Affine",
    "AngleShift",
    "BernsteinPolynomial",
    "BoundedRationalQuadraticSpline",
    "CircularRationalQuadraticSpline",
    "CubicSpline",
    "LinearSpline",
    "LogisticMixture",
    "Moebius",
    "QuadraticSpline",
    "RationalQuadraticSpline",
    "SigmoidAffine",
    "Sigmoidal",
    "SumOfSquaresPolynomial",
    "UnconstrainedMonotonic",
    "Univariate",
    "UnivariateRecipe",
    "VolumePreservingAffine",
    "build_univariate",
]
