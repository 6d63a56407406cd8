"""Augmentation and slicing: a marginal's bound, the chain rule, round trips where they exist, refusals."""

import math

import pytest
import torch
from torch import distributions as td

import flowkit as fk
from flowkit.testing import check_bijection

MIXING = torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)


class Correlated(fk.Base):
    """A normal of (x, e) with known covariance: x has a known marginal."""

    def __init__(self):
        super().__init__(2)
        self.register_buffer("factor", torch.linalg.cholesky(MIXING @ MIXING.T))

    def law(self):
        return td.MultivariateNormal(self.factor.new_zeros(2), scale_tril=self.factor)

    def log_prob(self, z, *conditions):
        return self.law().log_prob(z)

    def sample(self, shape, *conditions, temperature=1.0):
        return self.law().sample(torch.Size(shape)) * temperature


def augmented(**config):
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Augment, graph.input("x", (1,)), channels=1, **config))
    return fk.Flow(graph, base=Correlated())


def test_augmentation_bounds_the_marginal_and_tends_to_it():
    torch.manual_seed(0)
    flow = augmented()
    x = torch.linspace(-2, 2, 5)[:, None]
    truth = td.Normal(0.0, (MIXING @ MIXING.T)[0, 0].sqrt()).log_prob(x[:, 0])
    with torch.no_grad():
        drawn = flow.log_prob(x.expand(40_000, 5, 1))
    assert (drawn.mean(0) < truth - 0.05).all()
    torch.testing.assert_close(drawn.logsumexp(0) - math.log(40_000), truth, atol=0.03, rtol=0)
    samples = flow.sample((20_000,))
    assert samples.std().item() == pytest.approx((MIXING @ MIXING.T)[0, 0].sqrt().item(), rel=0.03)


def test_a_base_as_noise_takes_numbers_as_conditions():
    augment = fk.Augment((2,), channels=1, given=((),), noise=fk.DiagonalNormal)
    y, log_det = augment(torch.randn(5, 2), torch.randn(5))
    assert y.shape == (5, 3)
    assert log_det.isfinite().all()


def test_the_right_conditional_noise_makes_the_bound_exact():
    """e given x is normal with slope 0.48 / 1.64 and variance 0.36 - 0.48^2 / 1.64."""
    flow = augmented(noise=None, subnet=fk.MLP(hidden=1))
    covariance = MIXING @ MIXING.T
    slope = covariance[0, 1] / covariance[0, 0]
    log_std = 0.5 * (covariance[1, 1] - covariance[0, 1] * slope).log()
    affine = flow.network.nodes["augment_1"].noise.flow
    raw = -log_std / (1 - log_std.abs() / 4)  # before the softsign of limit 4: noise to latent scales by exp(-log std)

    def exact(seen, *rest):
        mean = slope * seen
        return torch.cat((raw.expand_as(seen), -mean * (-log_std).exp()), 1)

    affine.subnet.forward = exact
    x = torch.linspace(-2, 2, 5)[:, None]
    truth = td.Normal(0.0, covariance[0, 0].sqrt()).log_prob(x[:, 0])
    torch.testing.assert_close(flow.log_prob(x), truth)


def test_slicing_is_the_chain_rule():
    """p(y) p(d | y) of a known normal is its density, whatever is drawn on the way back."""
    torch.manual_seed(0)
    flow = fk.Flow(fk.Slice((3,), channels=1, noise=fk.FullNormal, given=()))
    piece = flow.network.nodes["slice_1"]
    with torch.no_grad():
        for parameter in piece.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(6, 3)
    given = piece.noise.base.log_prob(x[:, 1:], x[:, :1])
    torch.testing.assert_close(flow.log_prob(x), td.Normal(0.0, 1.0).log_prob(x[:, 0]) + given)
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))
    drawn, log_prob = flow.given().sample_and_log_prob((50,))
    torch.testing.assert_close(flow.log_prob(drawn), log_prob)
    assert not flow.exact
    assert "its own part of log_prob is exact" in repr(flow.exact)


def test_the_density_of_a_sliced_flow_integrates_to_one():
    torch.manual_seed(0)
    flow = fk.Flow(fk.Slice((2,), channels=1, subnet=fk.MLP(hidden=8, zero_last=False)))
    grid = torch.linspace(-9, 9, 361)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert density.sum().item() * 0.05**2 == pytest.approx(1, abs=2e-3)


def test_augment_then_slice_give_back_what_is_kept():
    augment, cut = fk.Augment((2, 3), channels=2), fk.Slice((4, 3), channels=2, noise=fk.StandardNormal)
    x = torch.randn(5, 2, 3)
    assert torch.equal(augment.inverse(augment(x)[0])[0], x)
    assert torch.equal(augment.inverse_only(augment(x)[0]), x)
    assert torch.equal(cut(cut.inverse(x)[0])[0], x)


class Forgetful(fk.Slice):
    """Its inverse puts the drawn channels first, so that forward does not find y again."""

    def inverse(self, y, *conditions):
        x, log_det = super().inverse(y, *conditions)
        return x.flip(1), log_det


class Reversed(fk.Augment):
    """Its inverse's log-det has the wrong sign."""

    def inverse(self, y, *conditions):
        x, log_det = super().inverse(y, *conditions)
        return x, -log_det


def test_the_kit_still_finds_a_wrong_one():
    wrong = check_bijection(Forgetful((3,), channels=1), laws="exactness", raises=False)
    assert {"round_trip", "log_det_opposite"} <= set(wrong.failed)
    assert set(check_bijection(Reversed((3,), channels=1), laws="exactness", raises=False).failed) == {
        "log_det_opposite"
    }


@pytest.mark.parametrize(
    "part",
    [
        fk.UniformDequantization((3,)),
        fk.VariationalDequantization((3,), levels=4),
        fk.Augment((3,), channels=1),
        fk.Slice((3,), channels=1),
    ],
    ids=lambda part: type(part).__name__,
)
def test_the_kit_leaves_out_the_jacobian_alone(part):
    report = check_bijection(part, laws="exactness")
    assert set(report.skipped) == {"log_det_forward", "log_det_inverse"}


def test_with_conditions_in_a_flow():
    graph = fk.Graph()
    y = graph.condition("y", (2,))
    x = graph.add(fk.Augment, graph.input("x", (2,)), given=y, channels=1, noise=fk.DiagonalNormal)
    x = graph.add(fk.AffineCoupling, x, given=y)
    graph.output("z", graph.add(fk.Slice, x, given=y, channels=2))
    flow = fk.Flow(graph)
    posterior = flow.given(torch.randn(4, 2))
    samples, log_prob = posterior.sample_and_log_prob((7,))
    assert samples.shape == (7, 4, 2)
    assert log_prob.shape == posterior.log_prob(samples).shape == (7, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.Augment((), channels=1), "at least one dimension"),
        (lambda: fk.Augment((2,), channels=0), "how many are appended, must be an int of at least 1, got 0"),
        (lambda: fk.Augment((2,), channels=1, subnet=fk.MLP()), "a subnet predicts the default noise alone"),
        (lambda: fk.Slice((1,), channels=1), "two or more channels"),
        (lambda: fk.Slice((3,), channels=3), "how many are kept, must be an int from 1 to 2, got 3"),
        (lambda: fk.Slice((3,), channels=1, given=((1, 4, 4),)), "conditions that are vectors"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()
