"""Rational-quadratic splines against normflows and zuko with the same parameters, and where these differ.

nflows is in the files of each spline.
"""

import math

import pytest
import torch
from normflows.utils.splines import unconstrained_rational_quadratic_spline
from zuko.flows.spline import CircularRQSTransform
from zuko.transforms import MonotonicRQSTransform

import flowkit as fk

ROWS, CHANNELS, BINS = 64, 3, 5
both_directions = pytest.mark.parametrize("inverse", [False, True])


def drawn(kind, **config):
    spline = kind((CHANNELS,), bins=BINS, **config)
    return spline, spline.split(1.5 * torch.randn(ROWS, spline.numbers_per_element * CHANNELS))


def last(parameters):
    """Parameters as the peers have them, the numbers of one element in the last dimension."""
    return [each.movedim(1, -1) for each in parameters]


def apply(spline, x, parameters, inverse):
    return (spline.inverse if inverse else spline)(x, *parameters)


def as_normflows(x, spline, parameters, inverse, **tails):
    widths, heights, derivatives = last(parameters)
    return unconstrained_rational_quadratic_spline(
        x, widths, heights, derivatives + spline.offset, inverse=inverse, **tails
    )


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


@both_directions
def test_linear_tails_equal_normflows(inverse):
    spline, parameters = drawn(fk.RationalQuadraticSpline, bound=2.0)
    x = 3 * torch.randn(ROWS, CHANNELS)
    close(apply(spline, x, parameters, inverse), as_normflows(x, spline, parameters, inverse, tail_bound=2.0))


@both_directions
def test_the_circle_equals_normflows_within_one_turn(inverse):
    spline, (*parameters, _) = drawn(fk.CircularRationalQuadraticSpline, low=-2.0, high=2.0)
    still = torch.zeros(ROWS, CHANNELS)  # normflows has no rotation
    x = 4 * torch.rand(ROWS, CHANNELS) - 2
    tails = {"tails": "circular", "tail_bound": 2.0}
    close(apply(spline, x, (*parameters, still), inverse), as_normflows(x, spline, parameters, inverse, **tails))
    # A turn further is the same point of the circle: normflows passes it unchanged, with log-det 0.
    close(apply(spline, x + 4, (*parameters, still), inverse), apply(spline, x, (*parameters, still), inverse))
    close(
        as_normflows(x + 4, spline, parameters, inverse, **tails),
        (x + 4, torch.zeros(ROWS, CHANNELS)),
    )


@both_directions
def test_what_normflows_does_outside_its_bound_where_tails_are_mixed(inverse):
    """A coordinate with linear tails comes out as 0 there, so all of both tails is one point; ours is the identity."""
    linear, parameters = drawn(fk.RationalQuadraticSpline, bound=2.0)
    x = 3 * torch.randn(ROWS, CHANNELS)
    padded = [*parameters[:2], torch.cat([torch.zeros(ROWS, 1, CHANNELS), parameters[2], parameters[2][:, :1]], 1)]
    ours, _ = apply(linear, x, parameters, inverse)
    theirs, _ = as_normflows(x, linear, padded, inverse, tails=["linear"] * CHANNELS, tail_bound=2.0)
    outside = x.abs() > 2
    close(theirs[~outside], ours[~outside])
    assert outside.sum() > 50
    assert not theirs[outside].any()
    assert torch.equal(ours[outside], x[outside])


def from_zuko(theirs, spline):
    """Our numbers for the bins and derivatives that zuko made of its own."""

    def raw_sizes(knots):
        share = knots.diff(dim=-1) / (spline.interval[1] - spline.interval[0])
        return ((share - spline.min_bin) / (1 - spline.bins * spline.min_bin)).log().movedim(-1, 1)

    raw = (theirs.derivatives - spline.min_derivative).expm1().log() - spline.offset
    return raw_sizes(theirs.horizontal), raw_sizes(theirs.vertical), raw.movedim(-1, 1)


NUMBERS = (BINS, BINS, BINS - 1)


@both_directions
def test_linear_tails_equal_zuko(inverse):
    theirs = MonotonicRQSTransform(*(2 * torch.randn(ROWS, CHANNELS, n) for n in NUMBERS), bound=4.0)
    spline = fk.RationalQuadraticSpline((CHANNELS,), bins=BINS, bound=4.0, min_bin=1e-6, min_derivative=1e-6)
    widths, heights, derivatives = from_zuko(theirs, spline)
    x = 4 * torch.randn(ROWS, CHANNELS)
    ours = apply(spline, x, (widths, heights, derivatives[:, 1:-1]), inverse)
    close(ours, (theirs.inv if inverse else theirs).call_and_ladj(x))


@both_directions
def test_the_circle_equals_zuko_which_turns_it_by_half_before(inverse):
    theirs = CircularRQSTransform(*(2 * torch.randn(ROWS, CHANNELS, n) for n in NUMBERS))
    spline = fk.CircularRationalQuadraticSpline((CHANNELS,), bins=BINS, min_bin=1e-6, min_derivative=1e-6)
    widths, heights, derivatives = from_zuko(theirs.transforms[1], spline)
    parameters = (widths, heights, derivatives[:, :-1], torch.zeros(ROWS, CHANNELS))  # both ends have derivative 1
    x = math.pi * (2 * torch.rand(ROWS, CHANNELS) - 1)
    half = torch.remainder(x, 2 * math.pi) - math.pi
    if inverse:
        back, log_derivative = spline.inverse(x, *parameters)
        close((torch.remainder(back, 2 * math.pi) - math.pi, log_derivative), theirs.inv.call_and_ladj(x))
    else:
        close(spline(half, *parameters), theirs.call_and_ladj(x))
