"""The linear, the quadratic and the cubic spline."""

import math

import pytest
import torch
from nflows.transforms.splines.cubic import unconstrained_cubic_spline
from nflows.transforms.splines.linear import unconstrained_linear_spline
from nflows.transforms.splines.quadratic import quadratic_spline

import flowkit as fk
from flowkit.testing import check_bijection

KINDS = [fk.LinearSpline, fk.QuadraticSpline, fk.CubicSpline]


def drawn(kind, bins=5, shape=(3,), rows=64, scale=1.5, **config):
    spline = kind(shape, bins=bins, **config)
    return spline, spline.split(scale * torch.randn(rows, spline.numbers_per_element * math.prod(shape)))


@pytest.mark.parametrize("inverse", [False, True])
def test_the_linear_spline_equals_nflows(inverse):
    spline, (heights,) = drawn(fk.LinearSpline, min_bin=1e-12)  # nflows has no minimum
    x = 4 * torch.randn(64, 3)
    theirs = unconstrained_linear_spline(x, heights.movedim(1, -1), inverse=inverse, tail_bound=3.0)
    # In the search of its inverse, nflows adds 1e-6 to the last knot of the map itself, which moves the last bin.
    within = 1e-4 if inverse else 1e-9
    ours = (spline.inverse if inverse else spline)(x, heights)
    torch.testing.assert_close(ours, theirs, atol=within, rtol=within)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_quadratic_spline_equals_nflows(inverse):
    """Given the derivatives at the ends, which nflows' own tails compute with half of the outer bins' areas."""
    spline, (widths, inner) = drawn(fk.QuadraticSpline)
    sizes, derivatives, *_ = spline._parts(widths, inner)
    relative = (derivatives - 1e-3) / (1 - 1e-3)
    assert (derivatives[:, 0] - 1).abs().max() < 1e-12
    area = (sizes * (relative[:, :-1] + relative[:, 1:])).sum(1) / 2
    torch.testing.assert_close(area, torch.ones_like(area), atol=1e-10, rtol=1e-10)
    raw = (2 * relative - 1e-3).expm1().log()  # softplus of it, and 0.001, is twice the derivative: they are normalised
    x = 6 * torch.rand(64, 3) - 3
    ends = {"left": -3.0, "right": 3.0, "bottom": -3.0, "top": 3.0}
    theirs = quadratic_spline(x, widths.movedim(1, -1), raw.movedim(1, -1), inverse=inverse, **ends)
    ours = (spline.inverse if inverse else spline)(x, widths, inner)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def nflows_cubic(spline, x, widths, heights, first, last, inverse=False):
    ends = [(1e-3 + 0.998 * torch.sigmoid(raw + spline.offset)).logit().unsqueeze(-1) for raw in (first, last)]
    inner = [each.movedim(1, -1) for each in (widths, heights)]
    return unconstrained_cubic_spline(x, *inner, *ends, tail_bound=3.0, inverse=inverse)


def test_the_cubic_spline_equals_nflows():
    spline, parameters = drawn(fk.CubicSpline)
    x = 4 * torch.randn(64, 3)
    theirs = nflows_cubic(spline, x, *parameters)
    torch.testing.assert_close(spline(x, *parameters), theirs, atol=1e-10, rtol=1e-10)
    theirs = nflows_cubic(spline, x, *parameters, inverse=True)
    torch.testing.assert_close(spline.inverse(x, *parameters), theirs, atol=1e-8, rtol=1e-8)


def test_the_inverse_of_a_nearly_straight_cubic_is_exact_where_nflows_is_off():
    """Near a straight line the closed root of a cubic loses its digits, so nflows solves a quadratic equation there."""
    spline, parameters = drawn(fk.CubicSpline, scale=1e-4)
    x = 4 * torch.randn(64, 3)
    y, _ = spline(x, *parameters)
    torch.testing.assert_close(spline.inverse(y, *parameters)[0], x, atol=1e-12, rtol=1e-12)
    assert (nflows_cubic(spline, y, *parameters, inverse=True)[0] - x).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_round_trip_and_derivative(kind, shape):
    spline = kind(shape, bins=4)
    parameters = spline.split(torch.randn(64, spline.numbers_per_element * (shape[0] if shape else 1), *shape[1:]))
    x = (2 * torch.randn(64, *shape)).requires_grad_()
    y, log_derivative = spline(x, *parameters)
    torch.testing.assert_close(log_derivative, torch.autograd.grad(y.sum(), x)[0].log(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(spline.inverse(y, *parameters), (x, -log_derivative), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    spline, parameters = drawn(kind, 3, (2,), rows=3, scale=1.0)
    leaves = [each.detach().clone().requires_grad_() for each in (torch.randn(3, 2), *parameters)]
    assert torch.autograd.gradcheck(spline, leaves)
    assert torch.autograd.gradcheck(spline.inverse, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_far_out_and_with_the_smallest_bins(kind):
    spline = kind((1,), bins=8)
    raw = torch.zeros(9, spline.numbers_per_element, dtype=torch.float32)
    raw[:, 0], raw[:, -1] = 50.0, 50.0
    x = torch.tensor([-1e6, -3.0000002, -3.0, -2.9, 0.0, 2.9, 3.0, 3.0000002, 1e6], dtype=torch.float32)[:, None]
    y, log_derivative = spline(x, *spline.split(raw))
    back, minus = spline.inverse(y, *spline.split(raw))
    for each in (y, log_derivative, back, minus):
        assert each.isfinite().all()
        assert each.dtype == torch.float32
    assert (y.diff(dim=0) >= 0).all()
    assert y[[0, 1, 7, 8]].equal(x[[0, 1, 7, 8]])
    assert (back - x).abs().max() < 1e-2  # slopes of a hundredth and less magnify rounding


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_the_identity_and_refusals(kind):
    spline = kind((1,), bins=6)
    x = torch.linspace(-4, 4, 33)[:, None]
    y, log_derivative = spline(x, *spline.split(torch.zeros(33, spline.numbers_per_element)))
    torch.testing.assert_close(y, x, atol=1e-12, rtol=0)
    assert log_derivative.abs().max() < 1e-12
    for config, message in [
        ({"bins": 1}, "bins must be an int of at least 2, got 1"),
        ({"bins": 2.5}, "bins must be an int"),
        ({"bound": 0.0}, "bound must be positive and finite, got 0.0"),
        ({"bins": 10, "min_bin": 0.1}, "min_bin must be above 0 and below 1 / bins = 0.1"),
    ]:
        with pytest.raises(fk.ConfigError, match=message):
            kind((2,), **config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_on_the_knots_and_at_the_bounds(kind, direction):
    """Zero is a knot of eight even bins: a clamp within the bin must not stop the gradient there."""
    spline = kind((1,), bins=8)
    x = torch.linspace(-3, 3, 17)[:, None].requires_grad_()
    image, log_derivative = getattr(spline, direction)(x, *spline.split(torch.zeros(17, spline.numbers_per_element)))
    (slope,) = torch.autograd.grad(image.sum(), x)
    torch.testing.assert_close(slope, log_derivative.exp())


SLOW = "processes", "compile_forward", "compile_inverse", "export_forward", "export_inverse"
MLP = fk.MLP(hidden=4, activation="silu")
MASKED = {"hidden": (4,), "activation": "silu"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("cls", "shape", "config"),
    [
        (fk.Elementwise, (), {"given": ((2,),), "subnet": MLP}),
        (fk.Coupling, (3,), {"given": (2,), "subnet": MLP, "two_sided": True}),
        (fk.Coupling, (1, 2, 2), {"subnet": fk.ConvNet(hidden=3, activation="silu"), "split": "checkerboard"}),
        (fk.MaskedAutoregressive, (3,), {"given": (1,), **MASKED}),
        (fk.MaskedAutoregressive, (1,), {"inverted": True, **MASKED}),
    ],
)
def test_the_kit_within_every_kind_of_map(kind, cls, shape, config):
    check_bijection(cls, example=fk.Example(shape, univariate=kind.recipe(bins=3), **config), skip=SLOW)


class Detached(fk.LinearSpline):
    """Its log-derivative has a part of its gradient only."""

    def _inner(self, u, *values):
        image, log_derivative = super()._inner(u, *values)
        return image, 0.999 * log_derivative + 0.001 * log_derivative.detach()


def test_the_kit_finds_a_wrong_gradient_of_a_linear_spline():
    bijection = fk.Elementwise((3,), univariate=Detached.recipe(bins=3))
    report = check_bijection(bijection, laws=("exactness", "gradients"), raises=False)
    assert report.failed == ["log_det_gradients"]
