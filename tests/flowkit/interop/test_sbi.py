"""sbi: a flow trained as a posterior. Skipped where sbi is not installed."""

import pickle
import sys

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.interop import sbi_density_estimator


def test_without_sbi_it_is_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "flowkit.interop._sbi", raising=False)
    monkeypatch.setitem(sys.modules, "sbi", None)
    monkeypatch.setitem(sys.modules, "sbi.neural_nets", None)
    monkeypatch.setitem(sys.modules, "sbi.neural_nets.estimators", None)
    with pytest.raises(fk.MissingDependencyError, match="python -m pip install sbi"):
        sbi_density_estimator()(torch.zeros(3, 2), torch.zeros(3, 2))


def test_arguments():
    with pytest.raises(fk.ConfigError, match=r"must be a callable or one of spline, .*, got 'nope'"):
        sbi_density_estimator("nope")
    pickle.loads(pickle.dumps(sbi_density_estimator("nsf", layers=2)))


@pytest.fixture
def estimators():
    return pytest.importorskip("sbi.neural_nets.estimators", reason="sbi is not installed")


@pytest.mark.filterwarnings("ignore")
def test_shapes_standardisation_and_gradients(estimators):
    theta, x = torch.randn(50, 3) * 5 + 100, torch.randn(50, 2, 4)
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(8, 6))
    made = sbi_density_estimator("spline", embedding, layers=2, hidden=(8,))(theta, x)
    assert isinstance(made, estimators.ConditionalDensityEstimator)
    assert (made.input_shape, made.condition_shape) == ((3,), (2, 4))
    assert made.embedding_net is embedding
    assert made.log_prob(theta[:5], x[:5]).shape == (1, 5)
    assert made.log_prob(torch.stack([theta[:5]] * 7), x[:5]).shape == (7, 5)
    assert made.log_prob(torch.stack([theta[:5]] * 7), x[:1]).shape == (7, 5)
    assert made.loss(theta[:5], x[:5]).shape == (5,)
    assert made.sample((7, 2), x[:5]).shape == (7, 2, 5, 3)
    samples, log_prob = made.sample_and_log_prob((7,), x[:5])
    assert torch.allclose(log_prob, made.log_prob(samples, x[:5]))
    # At the start the flow is nearly the identity: samples have the data's moments.
    assert torch.allclose(made.sample((2000,), x[:1]).mean((0, 1)), theta.mean(0), atol=1)
    made.loss(theta[:5], x[:5]).sum().backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    raw = sbi_density_estimator(lambda d, c: fk.flows.realnvp(d, condition=c), z_score=False)(theta, x[:, 0])
    assert torch.equal(raw.scale, torch.ones(3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_npe_finds_the_posterior_of_a_linear_gaussian(estimators, monkeypatch, tmp_path):
    """x = theta + noise / 2, prior N(0, 1): the posterior is N(0.8 x, 0.2)."""
    inference = pytest.importorskip("sbi.inference", reason="sbi is not installed")
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((5000,))
    x = theta + 0.5 * torch.randn_like(theta)
    held_out, seen = theta[3000:], x[3000:]
    build = sbi_density_estimator("nsf", layers=2, hidden=(32,), bins=4)
    trainer = inference.NPE(prior, density_estimator=build, show_progress_bars=False)
    estimator = trainer.append_simulations(theta[:3000], x[:3000]).train(max_num_epochs=40, learning_rate=2e-3)
    with torch.no_grad():
        found = -estimator.loss(held_out, seen).mean()
    exact = torch.distributions.Normal(0.8 * seen, 0.2**0.5).log_prob(held_out).sum(-1).mean()
    assert 0 < exact - found < 0.1
    posterior = trainer.build_posterior()
    samples = posterior.sample((4000,), x=torch.tensor([1.0, -1.0]), show_progress_bars=False)
    assert torch.allclose(samples.mean(0), torch.tensor([0.8, -0.8]), atol=0.12)
