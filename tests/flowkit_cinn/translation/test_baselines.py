import pytest
import torch

import flowkit as fk

pytest.importorskip("torchvision")

from flowkit_cinn.translation.baselines import BASELINES, CODE, ColourDecoder, ColourGan, ColourRegression, ColourVae

FEATURES = {"channels": (6, 8), "first": 1, "vector": 5}


def trained(model, ab, photo, steps):
    optimizers = model.train().optimizers()
    losses = [model.update(ab, photo, optimizers) for _ in range(steps)]
    model.eval()
    return losses


@pytest.fixture
def pairs():
    torch.manual_seed(0)
    photo = torch.randn(16, 1, 16, 16)
    return torch.cat((0.8 * photo, -0.5 * photo), 1), photo


@pytest.mark.parametrize("name", list(BASELINES))
def test_each_learns_and_draws_by_its_generator(name, pairs):
    torch.manual_seed(0)
    model = BASELINES[name](FEATURES, size=16, photo_size=16)
    losses = trained(model, *pairs, 30)
    assert sum(losses[-5:]) < sum(losses[:5])
    with torch.no_grad():
        drawn = [model.sample(pairs[1], 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == (3, 16, 2, 16, 16)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2]) == (name == "CNN")


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_conditioning_net_is_trained_with_each(name, pairs):
    torch.manual_seed(0)
    model = BASELINES[name](FEATURES, size=16, photo_size=16)
    before = {key: value.clone() for key, value in model.pyramid.state_dict().items()}
    trained(model, *pairs, 2)
    assert all(not torch.equal(value, before[key]) for key, value in model.pyramid.state_dict().items())


def test_a_regression_finds_the_conditional_mean(pairs):
    torch.manual_seed(0)
    photo = pairs[1]
    noisy = torch.cat((0.8 * photo, -0.5 * photo), 1) + torch.randn(16, 2, 1, 1)
    model = ColourRegression(FEATURES, size=16, photo_size=16)
    trained(model, noisy, photo, 150)
    with torch.no_grad():
        assert model.sample(photo, 1)[0].sub(noisy).square().mean() < 0.8 * noisy.square().mean()


def test_the_discriminator_is_not_moved_by_the_generators_step(pairs):
    torch.manual_seed(0)
    model = ColourGan(FEATURES, size=16, photo_size=16)
    optimizers = model.optimizers()
    frozen = torch.optim.SGD(model.discriminator.parameters(), lr=0.0)
    before = [p.clone() for p in model.discriminator.parameters()]
    model.update(*pairs, [optimizers[0], frozen])
    assert all(torch.equal(a, b) for a, b in zip(before, model.discriminator.parameters(), strict=True))
    assert all(p.requires_grad for p in model.discriminator.parameters())
    ours = {id(p) for group in optimizers for p in group.param_groups[0]["params"]}
    assert ours == {id(p) for p in model.parameters()}


def test_the_mixture_is_a_density_and_does_not_move_the_encoder(pairs):
    torch.manual_seed(0)
    model = ColourVae(FEATURES, size=16, photo_size=16).eval()
    weights, means, log_variances = model._components(pairs[1][:1])
    spread = torch.distributions.Normal(means[0], (0.5 * log_variances[0]).exp())
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=weights[0]), torch.distributions.Independent(spread, 1)
    )
    z = torch.randn(5, CODE)
    torch.testing.assert_close(model.log_density(z, pairs[1][:1].expand(5, -1, -1, -1)), mixture.log_prob(z))
    drawn = model.sample(pairs[1], 2)
    assert drawn.shape == (2, 16, 2, 16, 16)
    loss, encoder = -model.log_density(z, pairs[1][:5]).mean(), list(model.encode.parameters())
    assert all(g is None for g in torch.autograd.grad(loss, encoder, allow_unused=True))


def test_a_pyramid_that_cannot_be_doubled_is_refused():
    with pytest.raises(fk.ConfigError, match="must halve from level to level up to 16"):
        ColourDecoder([(4, 8, 8), (4, 2, 2)], size=16)
    with pytest.raises(fk.ConfigError, match="a size that 16 divides and a vector"):
        ColourVae({"channels": (4, 4), "first": 1}, size=16, photo_size=16)
