"""The sphere: its charts and maps against its area, flows on it integrated by quadrature."""

import math

import pytest
import torch

import flowkit as fk
from flowkit.testing.command import check_file


def points(count, dim, seed=0):
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def grid_of_sphere(side=200):
    """Points of S^2 that stand for equal areas: midpoints in longitude and height."""
    longitude = -math.pi + (torch.arange(2 * side) + 0.5) * math.pi / side
    height = -1 + (torch.arange(side) + 0.5) * 2 / side
    phi, z = torch.meshgrid(longitude, height, indexing="ij")
    radius = (1 - z**2).sqrt()
    return torch.stack((radius * phi.cos(), radius * phi.sin(), z), -1).reshape(-1, 3)


@pytest.mark.parametrize("dim", [2, 3, 4, 6])
def test_the_chart_round_trips_and_gives_coordinates(dim):
    chart = fk.SphereToCylinder((dim,))
    x = points(50, dim)
    y, log_det = chart(x)
    assert y.shape == (50, dim - 1)
    torch.testing.assert_close(y[:, 0], torch.atan2(x[:, 1], x[:, 0]))
    if dim > 2:
        torch.testing.assert_close(y[:, -1], x[:, -1])
    back, inverse = chart.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -log_det)
    assert chart.volume_preserving == (dim <= 3)


@pytest.mark.parametrize(("dim", "area"), [(3, 4 * math.pi), (4, 2 * math.pi**2), (5, 8 / 3 * math.pi**2)])
def test_the_area_of_the_sphere_by_its_chart(dim, area):
    """The area element, integrated over the cylinder, is the sphere's area."""
    side = 60 if dim < 5 else 24
    height = -1 + (torch.arange(side) + 0.5) * 2 / side
    heights = torch.cartesian_prod(*[height] * (dim - 2)).reshape(-1, dim - 2)
    y = torch.cat((torch.zeros(len(heights), 1), heights), 1)
    _, log_det = fk.SphereToCylinder((dim,)).inverse(y)
    total = log_det.exp().mean().item() * 2 ** (dim - 2) * 2 * math.pi
    assert total == pytest.approx(area, rel=5e-3)


def tangents(x):
    """An orthonormal basis of the tangent space at a point, `(D + 1, D)`."""
    return torch.linalg.svd(x[None])[2][1:].T


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_the_moebius_map_changes_areas_as_it_says(dim):
    f = fk.SphereMoebius((dim,))
    with torch.no_grad():
        f.direction.normal_()
    x = points(6, dim)
    y, log_det = f(x)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(6))
    for point, got in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: f(p[None] / p.norm())[0][0], point)
        inner = tangents(f(point[None])[0][0]).T @ jacobian @ tangents(point)
        torch.testing.assert_close(torch.linalg.slogdet(inner).logabsdet, got)
    back, inverse = f.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -log_det)


def sphere_flow(given=None):
    graph = fk.Graph()
    condition = None if given is None else graph.condition("y", given)
    x = graph.add(fk.SphereMoebius, graph.input("x", (3,)), **({} if given is None else {"given": condition}))
    x = graph.add(fk.OrthogonalLinear, x)
    x = graph.add(fk.SphereToCylinder, x)
    net = fk.MLP(hidden=8, zero_last=False)
    spline = fk.RationalQuadraticSpline.recipe(bins=4, bound=1.0)  # maps [-1, 1] onto itself
    x = graph.add(fk.Coupling, x, univariate=spline, subnet=fk.PeriodicNet(net), active="second")
    x = graph.add(fk.Coupling, x, univariate=fk.Moebius.recipe(components=2), subnet=net, active="first")
    x = graph.add(fk.Coupling, x, univariate=fk.AngleShift, subnet=net, active="first")
    x = graph.add(fk.Inverse(fk.SphereToCylinder((2 + 1,))), x)
    graph.output("z", x)
    flow = fk.Flow(graph, base=fk.UniformSphere)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return flow


def test_a_flow_on_the_sphere_integrates_to_one_and_has_its_samples():
    torch.manual_seed(0)
    flow = sphere_flow()
    assert flow.exact
    grid = grid_of_sphere()
    with torch.no_grad():
        density = flow.log_prob(grid).exp()
        samples, log_prob = flow.given().sample_and_log_prob((40_000,))
    assert density.max() / density.min() > 3
    assert density.mean().item() * 4 * math.pi == pytest.approx(1, abs=2e-3)
    torch.testing.assert_close(samples.norm(dim=1), torch.ones(40_000))
    torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-6, rtol=1e-6)
    for corner in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, -0.6, 0.8])):
        mass = density[(grid @ corner) > 0.3].sum().item() / len(grid) * 4 * math.pi
        share = ((samples @ corner) > 0.3).double().mean().item()
        assert abs(share - mass) < 4 * math.sqrt(mass / 40_000) + 3e-3


def test_a_conditional_flow_on_the_sphere_to_a_file_and_back(tmp_path):
    flow = sphere_flow(given=(2,))
    x, y = points(5, 3), torch.randn(5, 2)
    fk.save(flow, tmp_path / "sphere.safetensors")
    again = fk.load(tmp_path / "sphere.safetensors")
    torch.testing.assert_close(again.log_prob(x, given=y), flow.log_prob(x, given=y), atol=1e-12, rtol=1e-12)
    samples = flow.sample((7,), given=y)
    torch.testing.assert_close(samples.norm(dim=-1), torch.ones(7, 5))


def test_a_chart_alone_with_a_uniform_cylinder_is_the_uniform_sphere():
    graph = fk.Graph()
    graph.output("z", graph.add(fk.SphereToCylinder, graph.input("x", (3,))))
    flow = fk.Flow(graph, base=fk.Uniform(2, low=[-math.pi, -1.0], high=[math.pi, 1.0]))
    x = points(9, 3)
    torch.testing.assert_close(flow.log_prob(x), fk.UniformSphere(3).log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_poles(dtype):
    """The angle is not defined there; nothing is NaN, and the point comes back."""
    for dim in (3, 4, 5):
        poles = torch.zeros(2, dim, dtype=dtype)
        poles[:, -1] = torch.tensor([1.0, -1.0])
        chart = fk.SphereToCylinder((dim,)).to(dtype)
        y, log_det = chart(poles)
        assert y.isfinite().all()
        assert log_det.isfinite().all()
        torch.testing.assert_close(chart.inverse(y)[0], poles, atol=1e-6, rtol=0)


def test_float32_near_a_pole():
    x = torch.tensor([[1e-4, 2e-4, 1.0]], dtype=torch.float32)
    x = x / x.norm()
    chart = fk.SphereToCylinder((3,)).float()
    y, _ = chart(x)
    torch.testing.assert_close(chart.inverse(y)[0], x, atol=3e-4, rtol=0)  # the height's rounding, under a root


@pytest.mark.parametrize("given", [None, (2,)])
def test_a_file_of_a_flow_on_a_surface_can_be_checked(given, tmp_path):
    torch.manual_seed(0)
    fk.save(sphere_flow(given).float(), tmp_path / "sphere.safetensors")
    report = check_file(str(tmp_path / "sphere.safetensors")).report
    assert {"round_trip_float64", "trace"} <= set(report.passed)
    assert report.skipped["log_det"] == "a part is on a surface: its class is checked by the kit"


def test_a_network_on_a_surface_says_so():
    flow = sphere_flow()
    assert flow.network.embedded
    assert fk.Inverse(fk.SphereToCylinder((3,))).embedded
    assert not fk.Flow(fk.Identity((3,))).network.embedded


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.SphereToCylinder((1,)), r"2 or more coordinates along the channels, got shape \(1,\)"),
        (lambda: fk.SphereToCylinder(()), "2 or more coordinates"),
        (lambda: fk.SphereToCylinder((2,))(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), "got one of length 1.41421 at"),
        (lambda: fk.SphereToCylinder((3,)).inverse(torch.tensor([[0.0, 2.0]])), "SphereToCylinder's inverse needs"),
        (lambda: fk.SphereMoebius((2, 2)), r"vectors \(D \+ 1,\)"),
        (lambda: fk.SphereMoebius((3,), radius=0.0), "radius must be above 0"),
        (lambda: fk.SphereMoebius((3,), subnet=fk.MLP()), "a subnet needs conditions"),
        (lambda: fk.SphereMoebius((3,))(torch.zeros(1, 3)), "points of length 1, got one of length 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()
