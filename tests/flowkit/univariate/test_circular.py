"""Maps of the circle: against complex arithmetic, over the seam, in a flow on the torus."""

import math

import pytest
import torch
from normflows.flows import PeriodicShift

import flowkit as fk
from flowkit.testing import check_bijection
from flowkit.univariate.circular import wrap

SEVERAL = "components", [1, 2, 5]


def drawn(components, shape=(3,), rows=4, scale=2.0):
    torch.manual_seed(components)
    f = fk.Moebius(shape, components=components)
    channels = shape[0] if shape else 1
    return f, f.split(scale * torch.randn(rows, channels * f.numbers_per_element, *shape[1:]))


def test_one_component_is_the_transformation_of_the_disc():
    f, (a, b) = drawn(1)
    x = math.pi * (2 * torch.rand(4, 3) - 1)
    y, log_derivative = f(x, a, b)
    w = torch.complex(a, b).squeeze(1) * 0.95 / (1 + a**2 + b**2).sqrt().squeeze(1)

    def transform(z):
        return (z - w) / (1 - w.conj() * z)

    z = torch.polar(torch.ones_like(x), x)
    image = -transform(z) / transform(-torch.ones_like(z))  # turned, so that -1 is kept
    torch.testing.assert_close(torch.polar(torch.ones_like(y), y), image)
    torch.testing.assert_close(log_derivative.exp(), (1 - w.abs() ** 2) / (z - w).abs() ** 2)


@pytest.mark.parametrize(*SEVERAL)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_inverse_derivative_and_the_seam(components, shape):
    f, parameters = drawn(components, shape)
    x = (4 * torch.randn(4, *shape)).requires_grad_()
    y, log_derivative = f(x, *parameters)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_derivative, slope.log())
    back, inverse = f.inverse(y, *parameters)
    torch.testing.assert_close(back, x.detach())
    torch.testing.assert_close(inverse, -log_derivative)
    again, _ = f(x + 2 * math.pi, *parameters)
    torch.testing.assert_close(again, y + 2 * math.pi)
    ends = torch.full_like(x, math.pi)
    for end in (ends, -ends):
        torch.testing.assert_close(f(end, *parameters)[0], end)
    torch.testing.assert_close(f(ends, *parameters)[1], f(-ends, *parameters)[1])


@pytest.mark.parametrize(*SEVERAL)
def test_float32_at_extreme_parameters(components):
    f, parameters = drawn(components, (64,), scale=1e3)
    x = (math.pi * (2 * torch.rand(4, 64) - 1)).float()
    y, log_derivative = f(x, *(p.float() for p in parameters))
    back, _ = f.inverse(y, *(p.float() for p in parameters))
    assert y.dtype == log_derivative.dtype == torch.float32
    assert log_derivative.isfinite().all()
    assert y.abs().max() <= math.pi + 1e-5
    assert log_derivative.exp().max() <= 1.95 / 0.05 * 1.001
    torch.testing.assert_close(back, x, atol=2e-4, rtol=0)


@pytest.mark.parametrize(*SEVERAL)
def test_the_kit_on_elements_of_their_own(components):
    moebius = fk.Moebius.recipe(components=components)
    check_bijection(fk.Elementwise((3, 2), univariate=moebius), skip=["processes"])
    net = fk.MLP(hidden=4, activation="silu")
    check_bijection(fk.Elementwise((2,), given=(2,), univariate=moebius, subnet=net), skip=["processes"])


@pytest.mark.parametrize("components", [1, 3])
def test_the_kit_on_a_coupling_of_angles(components):
    net = fk.PeriodicNet(fk.MLP(hidden=5, activation="silu"), frequencies=2)
    moebius = fk.Moebius.recipe(components=components)
    check_bijection(fk.Coupling((3,), given=(2,), univariate=moebius, subnet=net), skip=["processes"])


def torus_flow():
    graph = fk.Graph()
    x = graph.input("x", (2,))
    net = fk.PeriodicNet(fk.MLP(hidden=16, activation="silu", zero_last=False))
    for _ in range(2):
        for active in ("first", "second"):
            x = graph.add(fk.Coupling, x, univariate=fk.Moebius.recipe(components=3), subnet=net, active=active)
        x = graph.add(fk.CircleShift, x)
    graph.output("z", x)
    flow = fk.Flow(graph, base=fk.Uniform(2, low=-math.pi, high=math.pi))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def test_a_flow_on_the_torus_integrates_to_one_and_has_no_seam():
    torch.manual_seed(0)
    flow = torus_flow()
    side = 400
    grid = -math.pi + (torch.arange(side) + 0.5) * 2 * math.pi / side
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(grid, grid)).exp().reshape(side, side)
        assert density.max() / density.min() > 3  # far from uniform
        assert density.mean().item() * (2 * math.pi) ** 2 == pytest.approx(1, abs=1e-6)
        end = math.pi - 1e-9
        edge = torch.tensor([[-end, 1.0], [end, 1.0], [1.0, -end], [1.0, end]])
        values = flow.log_prob(edge)
        torch.testing.assert_close(values[::2], values[1::2], atol=1e-6, rtol=0)
        samples = flow.sample((20_000,))
    assert samples.abs().max() <= math.pi + 1e-9
    share = ((samples > 0) & (samples < 1.5)).all(-1).double().mean().item()
    inside = (grid > 0) & (grid < 1.5)
    mass = density[inside][:, inside].sum().item() * (2 * math.pi / side) ** 2
    assert abs(share - mass) < 4 * math.sqrt(mass / 20_000) + 0.01 * mass


def test_wrap():
    angles = torch.tensor([0.0, math.pi, -math.pi, 3.5, -100.0])
    wrapped = wrap(angles)
    assert ((wrapped >= -math.pi) & (wrapped < math.pi)).all()
    torch.testing.assert_close(wrapped.cos(), angles.cos())
    torch.testing.assert_close(wrapped.sin(), angles.sin())


def test_wrap_of_odd_multiples_of_pi_in_float32():
    """Rounding took them below -pi, out of the base's turn, where the log-density is minus infinity."""
    angles = (math.pi * torch.arange(-9.0, 10.0, 2.0)).float()
    around = torch.cat([angles, *[torch.nextafter(angles, angles + step) for step in (1, -1)]]).requires_grad_()
    base = fk.Uniform(1, low=-math.pi, high=math.pi).float()
    wrapped = wrap(around)
    assert base.log_prob(wrapped[:, None]).isfinite().all()
    assert torch.autograd.grad(wrapped.sum(), around)[0].equal(torch.ones_like(around))


def test_a_shift_is_normflows():
    shift = 4 * torch.randn(2)
    theirs, ours = PeriodicShift([0, 1], bound=math.pi, shift=shift), fk.CircleShift((2,))
    with torch.no_grad():
        ours.numbers.copy_(shift)
    x = math.pi * (2 * torch.rand(9, 2) - 1)
    for mine, run in ((ours, theirs), (ours.inverse, theirs.inverse)):
        torch.testing.assert_close(mine(x), run(x), atol=1e-12, rtol=1e-12)


def test_a_shift_over_the_seam():
    shift = fk.CircleShift((2,))
    with torch.no_grad():
        shift.numbers.fill_(3.0)
    y, log_det = shift(torch.tensor([[1.0, -2.0]]))
    torch.testing.assert_close(y, torch.tensor([[4.0 - 2 * math.pi, 1.0]]))
    assert log_det.item() == 0
    assert shift.volume_preserving


def test_what_a_periodic_net_predicts_has_no_seam(tmp_path):
    recipe = fk.PeriodicNet(fk.MLP(hidden=4, zero_last=False), frequencies=3)
    net = recipe.build((2,), ((1,),), 5)
    x, c = torch.randn(3, 2), torch.randn(3, 1)
    torch.testing.assert_close(net(x + 2 * math.pi, c), net(x, c))
    torch.testing.assert_close(net(x, prepared=net.prepare(c)), net(x, c))
    assert recipe == fk.PeriodicNet(fk.MLP(hidden=4, zero_last=False), frequencies=3)
    flow = torus_flow()
    fk.save(flow, tmp_path / "torus.safetensors")
    again = fk.load(tmp_path / "torus.safetensors")
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_a_periodic_net_on_maps():
    coupling = fk.Coupling((2, 4, 4), univariate=fk.Moebius, subnet=fk.PeriodicNet(fk.ConvNet(hidden=3)))
    assert coupling(torch.randn(2, 2, 4, 4))[0].shape == (2, 2, 4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.Moebius((2,), components=0), "components must be an int of at least 1, got 0"),
        (lambda: fk.Moebius((2,), radius=1.0), "radius must be above 0 and below 1, got 1.0"),
        (lambda: fk.PeriodicNet(frequencies=0), "frequencies must be an int of at least 1, got 0"),
        (lambda: fk.CircleShift((2,), subnet=fk.MLP()), "a subnet needs conditions"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()
