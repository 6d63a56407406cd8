import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BPoly
from zuko.transforms import BernsteinTransform

import flowkit as fk


def test_is_the_polynomial_of_scipy_within_the_bound():
    torch.manual_seed(0)
    bernstein = fk.BernsteinPolynomial((), degree=5, bound=2.0)
    parameters = bernstein.split(torch.randn(1, bernstein.numbers_per_element))
    x = torch.linspace(-2, 2, 41)
    y, log_derivative = bernstein(x, *[p.expand(41, *p.shape[1:]) for p in parameters])
    coefficients = bernstein.constrain(parameters)[0]
    theirs = BPoly(coefficients.T.numpy(), np.array([-2.0, 2.0]))
    torch.testing.assert_close(y, torch.from_numpy(theirs(x.numpy())), atol=1e-10, rtol=1e-10)
    wanted = torch.from_numpy(theirs.derivative()(x.numpy())).log()
    torch.testing.assert_close(log_derivative, wanted, atol=1e-10, rtol=1e-10)


def test_equals_zuko():
    torch.manual_seed(0)
    theirs = BernsteinTransform(torch.randn(32, 3, 4), bound=5.0)
    coefficients = theirs.theta.movedim(-1, 1)
    degree = theirs.order
    bernstein = fk.BernsteinPolynomial((3,), degree=degree, bound=5.0)
    slopes = coefficients.diff(dim=1) * degree / 10 - bernstein.min_derivative
    raw = slopes.expm1().log() - bernstein.offset
    shift = coefficients[:, 0] + 5
    x = 6 * torch.rand(32, 3) - 3
    y, log_derivative = theirs.call_and_ladj(x)
    torch.testing.assert_close(bernstein(x, raw, shift), (y, log_derivative), atol=1e-10, rtol=1e-10)
    far = x.sign() * 20  # zuko's tails start a millionth inside
    torch.testing.assert_close(bernstein(far, raw, shift)[0], theirs(far), atol=1e-4, rtol=1e-4)


def test_the_derivative_has_a_floor():
    bernstein = fk.BernsteinPolynomial((2,), degree=3, min_derivative=0.01)
    raw = torch.full((7, 3, 2), -1e3)
    log_derivative = bernstein(torch.randn(7, 2), raw, torch.zeros(7, 2))[1]
    torch.testing.assert_close(log_derivative, torch.full((7, 2), math.log(0.01)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"degree": 1}, "BernsteinPolynomial: degree must be an int of at least 2, got 1"),
        ({"bound": 0.0}, "BernsteinPolynomial: bound must be positive and finite, got 0.0"),
        ({"min_derivative": 0}, "BernsteinPolynomial: min_derivative must be above 0 and below 1, got 0"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(fk.ConfigError, match=message):
        fk.BernsteinPolynomial((2,), **config)
