"""Every spline in float32 where it is hardest: on knots and bounds, one step beside them, far out, with extreme bins.

What float32 may give is what float64 gives for data a few units in the last place away: within a bin a thousandth of
the interval wide, or next to a steep end, that is a range, and a jump at a knot is in it.
"""

import math

import pytest
import torch

import flowkit as fk
from flowkit.univariate.knots import knots, sizes

KINDS = {
    "linear": fk.LinearSpline,
    "quadratic": fk.QuadraticSpline,
    "cubic": fk.CubicSpline,
    "rational_quadratic": fk.RationalQuadraticSpline,
    "bounded": fk.BoundedRationalQuadraticSpline,
    "circular": fk.CircularRationalQuadraticSpline,
}
DIRECTIONS = "forward", "inverse"
BINS, ROWS = 5, 24
PREDICTED = {
    "zeros": lambda *shape: torch.zeros(*shape),
    "normal": torch.randn,
    "50": lambda *shape: 50 * torch.randn(*shape).sign(),
    "1e4": lambda *shape: 1e4 * torch.randn(*shape).sign(),
}
STEPS = (0.0, *(sign * size for sign in (1, -1) for size in (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)))
LAYERS = (0.0, *(sign * 10.0**-k for sign in (1, -1) for k in range(12)))
every_kind = pytest.mark.parametrize("name", KINDS)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def interval(spline):
    return getattr(spline, "interval", None) or (-spline.bound, spline.bound)


def knots_of(spline, raw, direction):
    """All K + 1 knots of the direction, `(rows, K + 1)`, in float64."""
    low, high = interval(spline)
    parameters = spline.split(raw.double())
    parts = sizes(parameters[0], spline.min_bin)
    if isinstance(spline, fk.LinearSpline):
        parts = torch.full_like(parts, 1 / BINS)
    places = low + (high - low) * knots(parts).squeeze(-1)
    if direction == "inverse":
        places = torch.cat([spline(places[:, [k]], *parameters)[0] for k in range(BINS + 1)], 1)
    return places


def outputs_and_gradients(spline, direction, x, raw):
    """The image and the log-derivative, each with its gradient by x, in one list."""
    x = x.clone().requires_grad_()
    found = []
    for value in getattr(spline, direction)(x, *spline.split(raw)):
        value = value + 0 * x  # a linear spline's log-derivative does not depend on x
        found += [value.detach(), *torch.autograd.grad(value.sum(), x, retain_graph=True)]
    return found


def edges(name, direction, predicted):
    """A spline, float32 data and numbers, and the nearest knot to each."""
    torch.manual_seed(7)
    spline = KINDS[name]((1,), bins=BINS)
    low, high = interval(spline)
    raw = PREDICTED[predicted](ROWS, spline.numbers_per_element).float()
    places = knots_of(spline, raw, direction)
    on = torch.cat((places, torch.tensor([[low, high]]).expand(ROWS, 2)), 1).float()
    x = torch.cat((on, *(torch.nextafter(on, torch.tensor(end).float()) for end in (math.inf, -math.inf))), 1)
    x = torch.cat((x, (low + (high - low) * torch.rand(ROWS, 6)).float()), 1)
    if name == "bounded":
        x = x.clamp(low, high)
    elif name != "circular" or predicted in ("50", "1e4"):  # float32 knows an angle of 1e6 to 0.03 of a radian
        x = torch.cat((x, torch.tensor([[1e6, -1e6]]).float().expand(ROWS, 2)), 1)
    each = x.shape[1]
    nearest = places.unsqueeze(1) - x.unsqueeze(2)
    nearest = places.gather(1, nearest.abs().argmin(2)).reshape(-1, 1)
    return spline, x.reshape(-1, 1), raw.repeat_interleave(each, 0), nearest


def ranges(spline, direction, x, raw, nearest):
    """The least and the largest that float64 gives near x, of each output and gradient."""
    low, high = interval(spline)
    unit = torch.finfo(torch.float32).eps * max(abs(low), abs(high))
    at, far = x.double(), x.abs() > 1e5
    beside = (nearest - at).abs() < 33 * unit
    points = [torch.where(far, at, at + step * unit) for step in STEPS]
    points += [torch.where(beside, nearest + step * unit, at) for step in LAYERS]
    if isinstance(spline, fk.BoundedRationalQuadraticSpline):
        points = [point.clamp(low, high) for point in points]
    all_found = [outputs_and_gradients(spline, direction, point, raw.double()) for point in points]
    together = [torch.stack(each) for each in zip(*all_found, strict=True)]
    return [(each.amin(0), each.amax(0)) for each in together]


@every_kind
@every_direction
@pytest.mark.parametrize("predicted", ["zeros", "normal"])
def test_float32_at_edges_is_float64_within_a_few_units_in_the_last_place(name, direction, predicted):
    spline, x, raw, nearest = edges(name, direction, predicted)
    wanted = ranges(spline, direction, x, raw, nearest)
    got = outputs_and_gradients(spline, direction, x, raw)
    what = "image", "its gradient", "log-derivative", "its gradient"
    for value, (least, most), name_of in zip(got, wanted, what, strict=True):
        assert value.dtype == torch.float32
        beyond = torch.maximum(least - value, value - most).clamp_min(0) / (1 + torch.maximum(least.abs(), most.abs()))
        assert beyond.isfinite().all(), name_of
        assert beyond.max() < 3e-3, name_of


@every_kind
@every_direction
@pytest.mark.parametrize("predicted", ["50", "1e4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_extreme_bins_at_edges_give_finite_numbers(name, direction, predicted, dtype):
    spline, x, raw, _ = edges(name, direction, predicted)
    low, high = interval(spline)
    x, leaf = x.to(dtype), raw.to(dtype).requires_grad_()
    found = outputs_and_gradients(spline, direction, x, raw.to(dtype))
    image, log_derivative = getattr(spline, direction)(x, *spline.split(leaf))
    gradients = [torch.autograd.grad(each.sum(), leaf, retain_graph=True)[0] for each in (image, log_derivative)]
    for each in (*found, *gradients):
        assert each.dtype == dtype
        assert each.isfinite().all()
    inside = (x >= low) & (x <= high)
    assert (image[inside] >= torch.tensor(low, dtype=dtype)).all()
    assert (image[inside] <= torch.tensor(high, dtype=dtype)).all()
    if name != "circular":
        assert image[~inside].equal(x[~inside])


@pytest.mark.parametrize("kind", [fk.LinearSpline, fk.QuadraticSpline, fk.CubicSpline])
@every_direction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_what_comes_from_within_the_bound_stays_within_it(kind, direction, dtype):
    """Rounded beyond the bound, an image would come back as a tail, with the log-derivative 0 of one."""
    spline = kind((1,))
    torch.manual_seed(0)
    parameters = spline.split(torch.randn(20_000, spline.numbers_per_element, dtype=dtype))
    x = torch.full((20_000, 1), 3.0, dtype=dtype)
    opposite = "inverse" if direction == "forward" else "forward"
    for sign in (1, -1):
        for at in (x, torch.nextafter(x, torch.zeros_like(x))):
            image, log_derivative = getattr(spline, direction)(sign * at, *parameters)
            assert image.abs().max() <= 3
            back, minus = getattr(spline, opposite)(image, *parameters)
            rounding = 3 * torch.finfo(dtype).eps * (1 + (-log_derivative).exp())
            assert ((back - sign * at).abs() <= 20 * rounding).all()  # the knots are sums of eight sizes
            assert ((minus + log_derivative).abs() <= 1e4 * rounding).all()


@every_kind
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_way_back_loses_no_more_than_rounding_over_the_slope(name, scale, dtype):
    """In both orders: a root that cancels loses hundreds of times as much next to ends that are steep."""
    torch.manual_seed(0)
    spline = KINDS[name]((1,), bins=8)
    low, high = interval(spline)
    parameters = spline.split(scale * torch.randn(20_000, spline.numbers_per_element, dtype=dtype))
    if name == "circular":
        parameters = *parameters[:3], torch.zeros_like(parameters[3])
    x = low + (high - low) * torch.rand(20_000, 1, dtype=dtype)
    for there, back in ((spline.forward, spline.inverse), (spline.inverse, spline.forward)):
        image, log_derivative = there(x, *parameters)
        error = (back(image, *parameters)[0] - x).abs()
        if name == "circular":
            error = torch.minimum(error, (2 * math.pi - error).abs())
        rounding = (high - low) * torch.finfo(dtype).eps * (1 + (-log_derivative).exp())
        assert (error <= 5 * rounding).all()


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-0.3, 0.7)])
@every_direction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_bounded_spline_does_not_refuse_what_it_gave(ends, direction, dtype):
    spline = fk.BoundedRationalQuadraticSpline((1,), low=ends[0], high=ends[1])
    torch.manual_seed(0)
    parameters = spline.split(2 * torch.randn(50_000, spline.numbers_per_element, dtype=dtype))
    opposite = "inverse" if direction == "forward" else "forward"
    for end in ends:
        x = torch.full((50_000, 1), end, dtype=dtype)
        for at in (x, torch.nextafter(x, torch.full_like(x, 0.2))):
            image, _ = getattr(spline, direction)(at, *parameters)
            back, _ = getattr(spline, opposite)(image, *parameters)
            assert back.isfinite().all()
