import pytest
import torch
from zuko.transforms import UnconstrainedMonotonicTransform

import flowkit as fk
from flowkit.univariate.unconstrained import LIMIT, clenshaw_curtis


def drawn(hidden=8, rows=32, scale=1.0, **config):
    torch.manual_seed(0)
    umnn = fk.UnconstrainedMonotonic((3,), hidden=hidden, **config)
    return umnn, umnn.split(scale * torch.randn(rows, 3 * umnn.numbers_per_element))


def network(umnn, parameters):
    """g, written anew from the docstring."""
    values, slopes, shifts, constant, _ = parameters
    a = (slopes / (1 + slopes.abs() / 0.7)).exp()
    b = -a * (umnn.centres + shifts / (1 + shifts.abs()))
    v = values / (1 + values.abs())

    def g(t):
        unit = (t * (umnn.hidden + 1) / (2 * umnn.bound)).unsqueeze(-2)
        net = constant + (v * torch.tanh(a * unit + b)).sum(-2)
        return (LIMIT * torch.tanh(net / LIMIT)).exp()

    return g


def test_equals_zuko_within_the_bound():
    umnn, parameters = drawn(bound=3.0)
    theirs = UnconstrainedMonotonicTransform(network(umnn, parameters), n=100)
    x = 6 * torch.rand(32, 3) - 3
    y, log_derivative = theirs.call_and_ladj(x)
    torch.testing.assert_close(umnn(x, *parameters), (y + parameters[-1], log_derivative), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("hidden", [1, 3, 8, 12])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_quadrature_keeps_its_tolerance_whatever_is_predicted(hidden, scale):
    """The value against a rule of four times as many nodes, the log-derivative against the value's own derivative."""
    umnn, parameters = drawn(hidden, rows=300, scale=scale)
    x = (5 * (2 * torch.rand(300, 3) - 1)).requires_grad_()
    y, log_derivative = umnn(x, *parameters)
    (derivative,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_derivative, derivative.log(), atol=umnn.tolerance, rtol=umnn.tolerance)
    nodes, weights = clenshaw_curtis(32 * hidden)
    at = nodes.reshape(-1, 1, 1) * x.detach()
    g = network(umnn, parameters)
    finer = parameters[-1] + x.detach() * (weights.reshape(-1, 1, 1) * g(at)).sum(0)
    torch.testing.assert_close(y.detach(), finer, atol=umnn.tolerance, rtol=umnn.tolerance)


@pytest.mark.parametrize("intervals", [2, 8, 24])
def test_the_rule_integrates_polynomials(intervals):
    nodes, weights = clenshaw_curtis(intervals)
    for power in range(intervals + 1):
        assert (weights * nodes**power).sum().item() == pytest.approx(1 / (power + 1), abs=1e-13)
    assert (weights > 0).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden": 0}, "UnconstrainedMonotonic: hidden must be an int of at least 1, got 0"),
        ({"bound": -1.0}, "UnconstrainedMonotonic: bound must be positive and finite, got -1.0"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(fk.ConfigError, match=message):
        fk.UnconstrainedMonotonic((2,), **config)
