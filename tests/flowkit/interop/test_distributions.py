"""A flow as a torch Distribution, a bijection as a Transform, and both in Pyro."""

import warnings

import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import AffineTransform, ComposeTransform

import flowkit as fk
from flowkit.interop import BijectionTransform, as_pyro


def redraw(module, scale=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def normal(*shape):
    return Independent(Normal(torch.zeros(shape), torch.ones(shape)), 1)


# ---------------------------------------------------------------------- torch.distributions


def test_given_is_a_distribution_that_transforms_apply_to():
    flow = redraw(fk.flows.nsf(3, 2, layers=2, hidden=(6,)))
    c, x = torch.randn(5, 2), torch.randn(5, 3)
    density = flow.given(c)
    assert density.batch_shape == (5,)
    assert density.event_shape == (3,)
    assert density.support.check(x).all()
    scaled = TransformedDistribution(density, [AffineTransform(1.0, 2.0, event_dim=1)])
    expected = flow.log_prob((x - 1) / 2, given=c) - 3 * torch.tensor(2.0).log()
    torch.testing.assert_close(scaled.log_prob(x), expected)
    assert scaled.sample((4,)).shape == (4, 5, 3)
    assert density.expand((2, 5)).log_prob(x).shape == (2, 5)


@pytest.mark.parametrize("lead", [(), (5,), (4, 5)])
def test_transformed_distribution_is_the_flow_with_conditions(lead):
    part = redraw(fk.AffineCoupling((3,), given=((2,), (1,)), two_sided=True))
    conditions = [torch.randn(*lead, n, requires_grad=True) for n in (2, 1)]
    transform = BijectionTransform(part, *conditions)
    density = TransformedDistribution(normal(*lead, 3), [transform.inv])
    flow = fk.Flow(part)
    x = torch.randn(*lead, 3)
    given = dict(zip(flow.condition_shapes, conditions, strict=True))
    found, expected = density.log_prob(x), flow.log_prob(x, given=given)
    torch.testing.assert_close(found, expected)
    torch.manual_seed(1)
    drawn = density.rsample((6,))
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, flow.given(given).rsample((6,)))
    for a, b in zip(
        torch.autograd.grad(found.sum(), [*part.parameters(), *conditions], retain_graph=True),
        torch.autograd.grad(expected.sum(), [*part.parameters(), *conditions]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_transforms_compose_and_invert():
    first, second = redraw(fk.AffineCoupling((4,))), fk.Reshape((4,), (2, 2))
    both = ComposeTransform([BijectionTransform(first), BijectionTransform(second)])
    x = torch.randn(5, 4)
    y = both(x)
    assert y.shape == (5, 2, 2) == both.forward_shape(x.shape)
    assert both.inverse_shape(y.shape) == (5, 4)
    torch.testing.assert_close(both.inv(y), x)
    torch.testing.assert_close(both.log_abs_det_jacobian(x, y), first(x)[1])
    torch.testing.assert_close(BijectionTransform(first).call_and_ladj(x)[1], first(x)[1])


def test_conditions_that_do_not_fit_are_refused():
    part = fk.AffineCoupling((3,), given=(2,))
    with pytest.raises(fk.ShapeError, match=r"takes conditions of shapes \(\(2,\),\), got \(\(5, 3\),\)"):
        BijectionTransform(part, torch.zeros(5, 3))
    with pytest.raises(fk.ShapeError, match=r"got \(\)"):
        BijectionTransform(part)
    with pytest.raises(fk.ShapeError, match="one input and one output"):
        BijectionTransform(fk.Split((3,), sizes=(1, 2)))


def test_kl_by_samples_and_mixtures_take_it():
    flow = redraw(fk.flows.nsf(2, layers=1, hidden=(4,)), 0.1)
    density = flow.given()
    with pytest.raises(NotImplementedError):
        kl_divergence(density, normal(2))
    samples, log_prob = density.sample_and_log_prob((500,))
    assert (log_prob - normal(2).log_prob(samples)).mean() > -0.05
    mixture = MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3)), density.expand((3,)), validate_args=False
    )
    torch.testing.assert_close(mixture.log_prob(samples[:4]), log_prob[:4])


# ---------------------------------------------------------------------- Pyro


@pytest.fixture
def pyro():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("pyro")
    module.clear_param_store()
    yield module
    module.clear_param_store()


def test_pyro_samples_and_conditions(pyro):
    flow = redraw(fk.flows.nsf(3, 2, layers=2, hidden=(6,)))
    c = torch.randn(5, 2)

    def model():
        with pyro.plate("rows", 5):
            return pyro.sample("x", as_pyro(flow, c))

    assert model().shape == (5, 3)
    x = torch.randn(5, 3)
    trace = pyro.poutine.trace(pyro.condition(model, {"x": x})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), flow.log_prob(x, given=c).sum())
    density = as_pyro(flow, c)
    assert density.expand_by([4]).sample().shape == (4, 5, 3)
    assert type(density.expand((4, 5))) is type(density)
    assert density.mask(torch.zeros(5, dtype=torch.bool)).log_prob(x).abs().sum() == 0
    assert density.to_event(1).event_shape == (5, 3)


def test_pyro_trains_a_flow_as_a_guide(pyro):
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    flow = fk.flows.nsf(2, layers=1, hidden=(4,))
    before = [p.detach().clone() for p in flow.parameters()]

    def model():
        pyro.sample("x", pyro.distributions.Normal(torch.tensor([1.0, -1.0]), 1.0).to_event(1))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("x", as_pyro(flow))

    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO(num_particles=32, vectorize_particles=True))
    losses = [svi.step() for _ in range(40)]
    assert any((p != b).any() for p, b in zip(flow.parameters(), before, strict=True))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_pyro_takes_one_tensor(pyro):
    graph = fk.Graph()
    for name in ("a", "b"):
        graph.output(f"z{name}", graph.add(fk.Permute, graph.input(name, (2,))))
    with pytest.raises(fk.ConfigError, match="takes one tensor, this flow has the inputs a, b"):
        as_pyro(fk.Flow(graph))
