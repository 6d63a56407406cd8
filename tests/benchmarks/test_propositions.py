"""The propositions: the known posteriors are posteriors, and the figures mean what the tables say."""

import json
import math

import pytest
import torch
from flowkit.cli._benchmarks._common.posteriors import (
    GaussianMixture,
    LinearGaussian,
    deviation_bound,
    rank_deviation,
    ranks,
)

from flowkit.cli._benchmarks import propositions
from flowkit.cli.app import run

PROBLEMS = [LinearGaussian, GaussianMixture]


def log_likelihood(problem, x, y):
    mean = x @ problem.matrix.T if isinstance(problem, LinearGaussian) else x
    return torch.distributions.Normal(mean, problem.noise).log_prob(y).sum(-1)


@pytest.mark.parametrize("make", PROBLEMS)
def test_posteriors_are_bayes_theorem(make):
    problem = make()
    _, y = problem.sample(5)
    axis = torch.linspace(-5, 5, 401)
    grid = torch.cartesian_prod(axis, axis)
    for each in y:
        joint = problem.log_prior(grid) + log_likelihood(problem, grid, each)
        area = (axis[1] - axis[0]) ** 2
        normalised = joint - torch.logsumexp(joint, 0) - area.log()
        near = normalised > -15
        posterior = problem.log_posterior(grid, each.expand(len(grid), -1))
        torch.testing.assert_close(posterior[near], normalised[near], rtol=1e-6, atol=1e-6)


def test_information_is_the_expected_gain():
    problem = LinearGaussian()
    x, y = problem.sample(100_000)
    gain, error = propositions.mean_and_error(problem.log_posterior(x, y) - problem.log_prior(x))
    assert abs(gain - problem.information) < 4 * error
    assert error < 0.01


def test_ranks_of_exact_samples_are_uniform_and_those_of_wrong_ones_are_not():
    x, samples = torch.randn(1000, 1), torch.randn(99, 1000, 1)
    assert ranks(x, samples).shape == (1000, 1)
    assert rank_deviation(ranks(x, samples)[:, 0], 99) < deviation_bound(1000)
    for wrong in (samples + 0.3, samples * 0.7):
        assert rank_deviation(ranks(x, wrong)[:, 0], 99) > deviation_bound(1000)


def test_deviation_of_all_ranks_once_is_nothing():
    assert rank_deviation(torch.arange(100), 99) == pytest.approx(0.0, abs=1e-12)


def test_training_comes_nearer_to_the_posterior():
    problem = LinearGaussian(observed=3)
    x, y = problem.sample(2000)
    torch.manual_seed(0)
    flow = propositions.build(problem, None)

    def divergence():
        with torch.no_grad():
            return (problem.log_posterior(x, y) - flow.log_prob(x, given=y)).mean().item()

    before = divergence()
    propositions.train(flow, problem, 60)
    assert divergence() < 0.5 * before


def test_a_fixed_net_is_not_trained_and_a_joint_one_is():
    problem = LinearGaussian()
    for trained in (False, True):
        net = propositions.conditioning_net(problem.observed)
        net.requires_grad_(trained)
        flow = propositions.build(problem, net)
        before = [p.clone() for p in net.parameters()]
        propositions.train(flow, problem, 2)
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) is not trained


def test_the_command(tmp_path, capsys):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    torch.set_default_dtype(torch.float32)
    assert run(["bench", "propositions", "--quick", "--json", str(path), "--plot", str(plot)]) == 0
    first, second = json.loads(path.read_text())["sections"]
    assert [row["conditioning net"] for row in first["rows"]] == [
        propositions.JOINT,
        propositions.FIXED,
        propositions.NONE,
    ]
    assert all(math.isfinite(row["information"]) for row in first["rows"])
    assert {row["target"] for row in second["rows"]} == {"missed"}
    assert plot.exists()
