"""Splines of an interval onto itself, and of a circle."""

import math

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import rational_quadratic_spline

import flowkit as fk

BOUNDED, CIRCULAR = fk.BoundedRationalQuadraticSpline, fk.CircularRationalQuadraticSpline


def drawn(kind, bins=5, shape=(3,), rows=64, scale=1.5, **config):
    spline = kind(shape, bins=bins, **config)
    return spline, spline.split(scale * torch.randn(rows, spline.numbers_per_element * math.prod(shape)))


@pytest.mark.parametrize("inverse", [False, True])
def test_the_bounded_spline_equals_nflows(inverse):
    spline, (widths, heights, derivatives) = drawn(BOUNDED, low=-1.0, high=3.0)
    x = -1 + 4 * torch.rand(64, 3)
    last = [p.movedim(1, -1) for p in (widths, heights, derivatives + spline.offset)]
    theirs = rational_quadratic_spline(x, *last, inverse=inverse, left=-1.0, right=3.0, bottom=-1.0, top=3.0)
    ours = (spline.inverse if inverse else spline)(x, widths, heights, derivatives)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", [BOUNDED, CIRCULAR])
def test_round_trip_derivative_and_gradients(kind):
    spline, parameters = drawn(kind, 3, (2,), rows=4)
    low, high = spline.interval
    x = low + (high - low) * torch.rand(4, 2)
    leaves = [each.detach().clone().requires_grad_() for each in (x, *parameters)]
    y, log_derivative = spline(*leaves)
    torch.testing.assert_close(log_derivative, torch.autograd.grad(y.sum(), leaves[0])[0].log(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(spline.inverse(y, *parameters), (x, -log_derivative), atol=1e-8, rtol=1e-8)
    assert torch.autograd.gradcheck(spline, leaves)
    assert torch.autograd.gradcheck(spline.inverse, leaves)


@pytest.mark.parametrize("kind", [BOUNDED, CIRCULAR])
def test_maps_its_interval_onto_itself(kind):
    """With a uniform base, the density is the derivative: it integrates to one."""
    spline, parameters = drawn(kind, 4, (1,), rows=1)
    low, high = spline.interval
    x = torch.linspace(low, high, 100_001)[:, None]
    y, log_derivative = spline(x, *[p.expand(len(x), *p.shape[1:]) for p in parameters])
    assert torch.trapezoid(log_derivative.exp().flatten(), x.flatten()).item() / (high - low) == pytest.approx(
        1, abs=1e-5
    )
    assert low <= y.min()
    assert y.max() <= high


def test_ends_belong_to_the_interval_and_what_is_outside_is_refused_or_kept():
    spline, parameters = drawn(BOUNDED, rows=2)
    x = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.0, 1.0]])
    y, log_derivative = spline(x, *parameters)
    assert torch.equal(y[0, :2], x[0, :2])
    assert log_derivative[0, :2].abs().min() > 0
    x[1, 2] = 1.5
    for method in (spline.forward, spline.inverse):
        with pytest.raises(fk.InputError, match=r"needs values in \[0, 1\], got 1.5 at index \(1, 2\)"):
            method(x, *parameters)
    kept, same = BOUNDED((3,), bins=5, outside="keep")(x, *parameters)
    assert kept[1, 2] == 1.5
    assert same[1, 2] == 0


def test_the_circle_has_no_seam():
    spline, parameters = drawn(CIRCULAR)
    x = torch.full((64, 3), -math.pi)
    near = [spline(each, *parameters)[1] for each in (x, x + 2 * math.pi * (1 - 1e-12), x - 4 * math.pi)]
    torch.testing.assert_close(near[0], near[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(near[0], near[2], atol=1e-8, rtol=1e-8)
    assert near[0].abs().min() > 0
    far, _ = spline.inverse(torch.full((64, 3), 1e3), *parameters)
    assert far.abs().max() <= math.pi


@pytest.mark.parametrize("kind", [BOUNDED, CIRCULAR])
def test_zeros_are_the_identity_in_float32(kind):
    spline = kind((1,), bins=8)
    low, high = spline.interval
    x = torch.linspace(low, high, 65, dtype=torch.float32)[:-1, None]
    zeros = spline.split(torch.zeros(64, spline.numbers_per_element, dtype=torch.float32))
    for method in (spline.forward, spline.inverse):
        y, log_derivative = method(x, *zeros)
        assert (y - x).abs().max() < 2e-6
        assert log_derivative.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BOUNDED((2,), low=1.0, high=0.0), "finite bounds with low < high, got 1.0 and 0.0"),
        (lambda: BOUNDED((2,), outside="clip"), "outside must be 'refuse' or 'keep', got 'clip'"),
        (lambda: CIRCULAR((2,), bins=1), "bins must be an int of at least 2, got 1"),
        (lambda: CIRCULAR((2,), high=math.inf), "finite bounds"),
        (lambda: CIRCULAR((2,), min_derivative=0.0), "min_derivative must be above 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.ConfigError, match=message):
        make()
