"""Problems whose posterior is known: a small conditional flow comes near to it, and is calibrated."""

import math

import pytest
import torch
from scipy.stats import chi2
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import flowkit as fk

TARGET = 0.02  # nats, of KL(p(x | y) || q(x | y)), averaged over y
OBSERVATIONS, DRAWS = 200, 100  # of y, and of the true posterior of each
PAIRS, SAMPLES, BINS = 1000, 99, 20
FALSE_ALARM = 1e-4  # of one chi-square test of exact samples, were the seed not fixed


class LinearGaussian:
    """x ~ N(0, I), y = A x + noise: p(x | y) is a normal, of the same covariance for all y."""

    matrix, noise = torch.tensor([[1.0, -0.3], [0.5, 0.8]]).double(), 0.5

    def sample(self, count):
        x = torch.randn(count, 2)
        return x, x @ self.matrix.T + self.noise * torch.randn(count, 2)

    def posterior(self, y):
        covariance = torch.linalg.inv(torch.eye(2) + self.matrix.T @ self.matrix / self.noise**2)
        return MultivariateNormal(y @ self.matrix @ covariance / self.noise**2, covariance)

    def flow(self):
        return fk.flows.realnvp(2, condition=2, layers=4, hidden=(32,))


class GaussianMixture:
    """x from three normals of different weights and covariances, y = A x + noise: p(x | y) is a mixture of three.

    Of each component, Kalman's update; its weight is that of the component times the evidence N(y; A m, A C A^T + I
    noise^2).
    """

    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    means = torch.tensor([[1.5, 0.5], [-1.0, 1.0], [0.0, -1.5]]).double()
    roots = torch.tensor([[[0.6, 0.0], [0.3, 0.4]], [[0.5, 0.0], [-0.2, 0.5]], [[0.7, 0.0], [0.0, 0.3]]]).double()
    matrix, noise = torch.tensor([[0.8, 0.3], [-0.4, 1.0]]).double(), 0.8

    def sample(self, count):
        component = torch.multinomial(self.weights, count, replacement=True)
        x = self.means[component] + (self.roots[component] @ torch.randn(count, 2, 1)).squeeze(-1)
        return x, x @ self.matrix.T + self.noise * torch.randn(count, 2)

    def posterior(self, y):
        prior = self.roots @ self.roots.mT
        seen = self.matrix @ prior @ self.matrix.T + self.noise**2 * torch.eye(2)
        expected = self.means @ self.matrix.T
        gain = prior @ self.matrix.T @ torch.linalg.inv(seen)
        log_weights = self.weights.log() + MultivariateNormal(expected, seen).log_prob(y[:, None])
        means = self.means + (gain @ (y[:, None] - expected).unsqueeze(-1)).squeeze(-1)
        parts = MultivariateNormal(means, prior - gain @ self.matrix @ prior)
        return MixtureSameFamily(Categorical(logits=log_weights), parts)

    def flow(self):
        return fk.flows.nsf(2, condition=2, layers=3, hidden=(32, 32))


PROBLEMS = {"linear-Gaussian": (LinearGaussian, 700, 256), "mixture": (GaussianMixture, 1000, 512)}


def trained(problem, steps, batch):
    flow = problem.flow()
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        x, y = problem.sample(batch)
        loss = -flow.log_prob(x, given=y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return flow.eval()


def divergence(flow, problem):
    """The KL averaged over y, and its standard error, by samples of the true posteriors."""
    _, y = problem.sample(OBSERVATIONS)
    truth = problem.posterior(y)
    x = truth.sample((DRAWS,))
    gaps = (truth.log_prob(x) - flow.given(y).log_prob(x)).mean(0)
    return gaps.mean().item(), gaps.std().item() / math.sqrt(OBSERVATIONS)


def deviation(x, samples):
    """Chi-square of the ranks of x `(B,)` among the samples `(S, B)`, which are uniform where q is p."""
    counts = torch.histc((samples < x).sum(0).double(), bins=BINS, min=-0.5, max=SAMPLES + 0.5)
    return ((counts - PAIRS / BINS) ** 2 / (PAIRS / BINS)).sum().item()


def deviations(samples, x):
    """Of both coordinates and of their sum and difference, which see how they depend on each other."""
    directions = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, -1.0]])
    pairs = zip((x @ directions).unbind(-1), (samples @ directions).unbind(-1), strict=True)
    return [deviation(*each) for each in pairs]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_posterior_is_bayes_theorem(name):
    """p(x | y) p(y) = p(x) p(y | x): over x the logarithms differ by a constant, whatever y."""
    problem = PROBLEMS[name][0]()
    x, y = problem.sample(50)
    one = y[:1].expand(50, 2)
    likelihood = MultivariateNormal(x @ problem.matrix.T, problem.noise**2 * torch.eye(2)).log_prob(one)
    if name == "mixture":
        parts = MultivariateNormal(problem.means, problem.roots @ problem.roots.mT)
        prior = MixtureSameFamily(Categorical(problem.weights), parts).log_prob(x)
    else:
        prior = MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(x)
    evidence = prior + likelihood - problem.posterior(one).log_prob(x)
    torch.testing.assert_close(evidence, evidence[:1].expand(50), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_small_flow_comes_near_the_posterior_and_is_calibrated(name):
    make, steps, batch = PROBLEMS[name]
    problem = make()
    torch.manual_seed(0)
    flow = trained(problem, steps, batch)
    with torch.no_grad():
        mean, error = divergence(flow, problem)
        assert -3 * error < mean  # a divergence below zero is one from what is no density
        assert mean + 3 * error < TARGET
        x, y = problem.sample(PAIRS)
        bound = chi2.isf(FALSE_ALARM, BINS - 1)
        found = deviations(flow.given(y).sample((SAMPLES,)), x)
        narrow = deviations(flow.sample((SAMPLES,), given=y, temperature=0.7), x)
        exact = deviations(problem.posterior(y).sample((SAMPLES,)), x)
    assert max(found) < bound
    assert max(exact) < bound
    assert min(narrow) > bound  # what is a third too narrow is found
