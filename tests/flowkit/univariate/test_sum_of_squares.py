import pytest
import torch
from zuko.transforms import SOSPolynomialTransform

import flowkit as fk


@pytest.mark.parametrize(("polynomials", "degree"), [(1, 1), (3, 4)])
def test_equals_zuko(polynomials, degree):
    """Up to a factor: zuko's smallest slope is added to the mean of squares, where ours is a part of it."""
    torch.manual_seed(0)
    ours = fk.SumOfSquaresPolynomial((3,), polynomials=polynomials, degree=degree, bound=5.0, min_derivative=0.02)
    parameters = ours.split(torch.randn(32, 3 * ours.numbers_per_element))
    coefficients = ours.constrain(parameters)[0].movedim(3, 1)
    theirs = SOSPolynomialTransform(coefficients, slope=0.02 / 0.98, bound=5.0)
    x = 10 * torch.rand(32, 3) - 5
    y, log_derivative = theirs.call_and_ladj(x)
    wanted = 0.98 * y + parameters[1], log_derivative + torch.tensor(0.98).log()
    torch.testing.assert_close(ours(x, *parameters), wanted, atol=1e-10, rtol=1e-10)


def test_a_known_polynomial():
    """One polynomial p(u) = 1 + u on [-1, 1]: y = (1 - e) (x + x^2 + x^3 / 3) + e x, and its tangents beyond."""
    ours = fk.SumOfSquaresPolynomial((), polynomials=1, degree=1, bound=1.0, min_derivative=0.1)
    coefficients, shift = torch.tensor([[0.0, 1.0]]).expand(5, 2), torch.zeros(5)
    x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 3.0])

    def known(x):
        return 0.9 * (x + x**2 + x**3 / 3) + 0.1 * x

    wanted = torch.stack((known(x[1]) - 2 * 0.1, known(x[1]), known(x[2]), known(x[3]), known(x[3]) + 2 * 3.7))
    torch.testing.assert_close(ours(x, coefficients, shift)[0], wanted)
    torch.testing.assert_close(ours.inverse(wanted, coefficients, shift)[0], x)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"polynomials": 0}, "SumOfSquaresPolynomial: polynomials must be an int of at least 1, got 0"),
        ({"degree": 0}, "SumOfSquaresPolynomial: degree must be an int of at least 1, got 0"),
        ({"bound": float("inf")}, "SumOfSquaresPolynomial: bound must be positive and finite, got inf"),
        ({"min_derivative": 1}, "SumOfSquaresPolynomial: min_derivative must be above 0 and below 1, got 1"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(fk.ConfigError, match=message):
        fk.SumOfSquaresPolynomial((2,), **config)
