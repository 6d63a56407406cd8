"""Every univariate map, by fk.Elementwise on a base, is a density: it integrates to one, by adaptive quadrature."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.integrate import cubature

import flowkit as fk
from flowkit import univariate

LINE = {
    "Additive": fk.Additive,
    "Affine": fk.Affine.recipe(clamp="softsign"),
    "SigmoidAffine": fk.SigmoidAffine,
    "LogisticMixture": fk.LogisticMixture.recipe(components=3),
    "Sigmoidal": fk.Sigmoidal.recipe(components=3),
    "BernsteinPolynomial": fk.BernsteinPolynomial.recipe(degree=6),
    "SumOfSquaresPolynomial": fk.SumOfSquaresPolynomial.recipe(polynomials=2, degree=3),
    "UnconstrainedMonotonic": fk.UnconstrainedMonotonic.recipe(hidden=4),
    "RationalQuadraticSpline": fk.RationalQuadraticSpline.recipe(bins=5),
    "QuadraticSpline": fk.QuadraticSpline.recipe(bins=5),
    "CubicSpline": fk.CubicSpline.recipe(bins=5),
    "LinearSpline": fk.LinearSpline.recipe(bins=5),
}
CIRCLE = {
    "CircularRationalQuadraticSpline": fk.CircularRationalQuadraticSpline.recipe(bins=5),
    "Moebius": fk.Moebius.recipe(components=3),
    "AngleShift": fk.AngleShift,
}
INTERVAL = ("BoundedRationalQuadraticSpline",)
TOGETHER = ("VolumePreservingAffine",)  # it ties the elements of a vector to each other
seeds = pytest.mark.parametrize("seed", [0, 1, 2])


def drawn(recipe, shape, seed, given=(), **base):
    """A flow whose parameters are random, far from the identity."""
    subnet = {"given": given, "subnet": fk.MLP(hidden=4)} if given else {}
    flow = fk.Flow(fk.Elementwise(shape, univariate=recipe, **subnet), **base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.network.parameters():
            parameter.normal_()
    return flow


@torch.no_grad()
def integral(log_prob, low, high):
    """Of a density between two corners, by a rule that halves where it is inexact: at kinks and jumps."""

    def density(points):
        return log_prob(torch.from_numpy(points)).exp().numpy()

    found = cubature(density, low, high, rtol=0, atol=1e-10, max_subdivisions=2000)
    assert found.status == "converged"
    return found.estimate


def test_every_map_is_here():
    classes = {name for name in univariate.__all__ if inspect.isclass(getattr(univariate, name))}
    assert classes - {"Univariate", "UnivariateRecipe"} == {*LINE, *CIRCLE, *INTERVAL, *TOGETHER}


@seeds
@pytest.mark.parametrize("name", LINE)
def test_on_the_line(name, seed):
    """Between the x of which z is -9 and 9: beyond, a normal has 2e-19."""
    flow = drawn(LINE[name], (1,), seed)
    low, high = flow.inverse(torch.tensor([[-9.0], [9.0]]))[0].detach().numpy()
    assert integral(flow.log_prob, low, high) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", LINE)
def test_on_the_line_given_a_condition(name):
    flow = drawn(LINE[name], (1,), 0, given=(2,))
    y = torch.tensor([0.7, -0.4])
    low, high = flow.inverse(torch.tensor([[-9.0], [9.0]]), given=y)[0].detach().numpy()
    assert integral(flow.given(y).log_prob, low, high) == pytest.approx(1, abs=1e-9)


@seeds
@pytest.mark.parametrize("name", CIRCLE)
def test_on_the_circle(name, seed):
    """With a base that is not uniform, which a rotation would leave as it is; torch's is known to 2e-9."""
    base = fk.TorchDistribution(1, "VonMises", loc=0.5, concentration=2.0)
    flow = drawn(CIRCLE[name], (1,), seed, base=base)
    assert integral(flow.log_prob, np.array([-math.pi]), np.array([math.pi])) == pytest.approx(1, abs=1e-8)


@seeds
def test_on_an_interval(seed):
    spline = fk.BoundedRationalQuadraticSpline.recipe(bins=5, low=-1.0, high=3.0)
    flow = drawn(spline, (1,), seed, base=fk.Uniform(1, low=-1.0, high=3.0))
    assert integral(flow.log_prob, np.array([-1.0]), np.array([3.0])) == pytest.approx(1, abs=1e-9)


@seeds
def test_elements_that_are_tied_together(seed):
    flow = drawn(fk.VolumePreservingAffine, (2,), seed)
    corners = torch.cartesian_prod(*[torch.tensor([-9.0, 9.0])] * 2)
    x = flow.inverse(corners)[0].detach().numpy()  # each element is scaled by itself
    assert integral(flow.log_prob, x.min(0), x.max(0)) == pytest.approx(1, abs=1e-9)
