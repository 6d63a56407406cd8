import itertools
import math

import pytest
import torch

import flowkit as fk


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_applies_the_univariate_map_to_each_element(redraw, shape):
    b = redraw(fk.Elementwise(shape, univariate=fk.RationalQuadraticSpline.recipe(bins=3)))
    spline = fk.RationalQuadraticSpline((), bins=3)
    x = 2 * torch.randn(5, *shape)
    numbers = b.numbers.unflatten(0, (8, *shape[:1]))
    y, log_det = b(x)
    wanted, total = torch.empty_like(x), torch.zeros(5)
    for place in itertools.product(*map(range, shape)):
        at = (slice(None), *place)
        wanted[at], log_derivative = spline(x[at], *spline.split(numbers[at].expand(5, 8)))
        total += log_derivative
    torch.testing.assert_close((y, log_det), (wanted, total))


def test_with_affine_it_is_elementwise_affine():
    b = fk.Elementwise((3, 2), univariate=fk.Affine.recipe(clamp=None))
    with torch.no_grad():
        b.numbers.normal_()
    scale, shift = b.numbers.exp()[:3], b.numbers[3:]
    x = torch.randn(4, 3, 2)
    torch.testing.assert_close(b(x), (x * scale + shift, b.numbers[:3].sum().expand(4)))


@pytest.mark.parametrize("given", [(), (2,)])
@pytest.mark.parametrize("univariate", [fk.Additive, fk.VolumePreservingAffine, fk.Affine, fk.RationalQuadraticSpline])
def test_an_instance_makes_the_promises_of_its_univariate_map(redraw, univariate, given):
    b = redraw(fk.Elementwise((3,), given=given, univariate=univariate))
    conditions = [torch.randn(4, 2)] * len(given)
    log_det = b(torch.randn(4, 3), *conditions)[1]
    assert b.volume_preserving == bool(log_det.abs().max() < 1e-12)
    assert b.constant_log_det == bool(log_det.std() < 1e-12)


@pytest.mark.parametrize("given", [(), (4,)])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_starts_as_the_identity(shape, given):
    x, conditions = torch.randn(2, *shape), [torch.randn(2, *given)] * len(given)
    y, log_det = fk.Elementwise(shape, given=given)(x, *conditions)
    torch.testing.assert_close((y, log_det), (x, torch.zeros(2)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("given", [(), (4,)])
def test_a_spread_is_what_the_numbers_start_with(given):
    torch.manual_seed(0)
    b = fk.Elementwise((500,), given=given, univariate=fk.Affine.recipe(clamp="atan"), spread=0.5)
    assert abs(b.numbers.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2000)  # 4 standard errors of 1,000 draws
    x, conditions = torch.randn(2, 500), [torch.randn(2, *given)] * len(given)
    raw, shift = b.univariate.split(b.numbers.expand(2, -1))
    torch.testing.assert_close(b(x, *conditions)[0], b.univariate(x, raw, shift)[0])  # a subnet starts at zero


def test_the_subnet_is_not_called_with_prepared_conditions(redraw):
    b = redraw(fk.Elementwise((3,), given=((2,), (1,))))
    conditions = torch.randn(2, 2), torch.randn(2, 1)
    prepared = fk.Prepared(b.prepare(*conditions))
    x = torch.randn(6, 3)
    wanted = b(x, *[c.repeat(3, 1) for c in conditions])
    b.subnet = torch.nn.Module()
    torch.testing.assert_close(b(x, prepared), wanted)


def test_goes_to_a_file_and_back(tmp_path, redraw):
    graph = fk.Graph()
    x = graph.add(fk.Elementwise, graph.input("x", (3,)), given=graph.condition("y", (2,)))
    x = graph.add(fk.Elementwise, x, univariate=fk.Affine.recipe(clamp="atan"))
    graph.output("z", x)
    flow = redraw(fk.Flow(graph))
    fk.save(flow, tmp_path / "flow.safetensors")
    data, given = torch.randn(4, 3), torch.randn(4, 2)
    again = fk.load(tmp_path / "flow.safetensors")
    assert torch.equal(again.log_prob(data, given=given), flow.log_prob(data, given=given))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"subnet": fk.MLP()}, "a subnet needs conditions to predict from, got MLP"),
        ({"univariate": "spline"}, "univariate must be a class of fk.Univariate or its recipe.*got 'spline'"),
        ({"spread": -1.0}, "spread must be 0 or more and finite, got -1.0"),
        ({"given": (2, 3)}, r"Elementwise on data of shape \(2,\) needs conditions that are vectors"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(fk.FlowkitError, match=message):
        fk.Elementwise((2,), **config)
