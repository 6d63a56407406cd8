import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    MixtureSameFamily,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

import flowkit as fk


def reference(x, weights, locations, scales):
    """Logit of a mixture's CDF by torch.distributions; parameters (B, K, C)."""
    weights, locations, scales = (p.movedim(1, -1) for p in (weights, locations, scales))
    logistic = TransformedDistribution(
        Uniform(torch.zeros_like(scales), 1), [SigmoidTransform().inv, AffineTransform(locations, scales)]
    )
    mixture = MixtureSameFamily(Categorical(probs=weights), logistic)
    cdf = mixture.cdf(x)
    return cdf.logit(), mixture.log_prob(x) - cdf.log() - (-cdf).log1p()


def test_is_the_mixture_of_torch():
    torch.manual_seed(0)
    mixture = fk.LogisticMixture((3,), components=4, limit=5.0, min_derivative=0.0)
    raw, locations, scales, s, t = mixture.split(torch.randn(32, 3 * mixture.numbers_per_element))
    x = 2 * torch.randn(32, 3)
    clamped = mixture.rates * scales
    clamped = clamped / (1 + clamped.abs() / 5)
    y, log_derivative = reference(x, raw.softmax(1), mixture.rates * locations, clamped.exp())
    s_clamped = s / (1 + s.abs() / 5)
    got = mixture(x, raw, locations, scales, s, t)
    torch.testing.assert_close(got, (y * s_clamped.exp() + t, log_derivative + s_clamped), atol=1e-9, rtol=1e-9)


def test_sigmoidal_is_the_mixture_with_slopes():
    torch.manual_seed(0)
    sigmoidal = fk.Sigmoidal((3,), components=4, min_derivative=0.0)
    slopes, offsets, weights = sigmoidal.split(torch.randn(32, 3 * sigmoidal.numbers_per_element))
    x = 2 * torch.randn(32, 3)
    a = torch.nn.functional.softplus(sigmoidal.rates * slopes + sigmoidal.offset) + 1e-3
    y = reference(x, weights.softmax(1), -sigmoidal.rates * offsets / a, 1 / a)
    torch.testing.assert_close(sigmoidal(x, slopes, offsets, weights), y, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", [fk.Sigmoidal, fk.LogisticMixture])
def test_a_part_of_the_identity_is_in_it(kind):
    paper, floored = kind((3,), components=4, min_derivative=0.0), kind((3,), components=4, min_derivative=0.1)
    parameters = paper.split(torch.randn(32, 3 * paper.numbers_per_element))
    scale = torch.ones(32, 3)
    if kind is fk.LogisticMixture:  # what follows the mixture is tried above
        scale = (parameters[3] / (1 + parameters[3].abs() / 5)).exp()
        parameters = *parameters[:4], torch.zeros(32, 3)
    x = 2 * torch.randn(32, 3)
    y, log_derivative = paper(x, *parameters)
    wanted = 0.9 * y + 0.1 * scale * x, (0.9 * log_derivative.exp() + 0.1 * scale).log()
    torch.testing.assert_close(floored(x, *parameters), wanted)


def test_sigmoidal_of_one_component_is_affine():
    sigmoidal = fk.Sigmoidal((2,), components=1)
    slope, offset = sigmoidal.split(torch.randn(5, 4))
    x = torch.randn(5, 2)
    y, log_derivative = sigmoidal(x, slope, offset)
    torch.testing.assert_close(y, x * log_derivative.exp() + (1 - 1e-3) * offset[:, 0])
    torch.testing.assert_close(sigmoidal.inverse(y, slope, offset)[0], x)


FAR_APART = [-80.0, -60.0, -40.0, -20.0, 0.0, 20.0, 40.0, 60.0, 80.0]


def far_components(least):
    """Two components at -60 and 60, whose mixture is flat between them; float32."""
    mixture = fk.LogisticMixture((1,), components=2, min_derivative=least).float()
    zero = torch.zeros(9, 2, 1, dtype=torch.float32)
    apart = torch.tensor([-60.0, 60.0]).float().reshape(1, 2, 1).expand(9, 2, 1) / mixture.rates
    scales = torch.full((9, 2, 1), -0.5, dtype=torch.float32)
    numbers = torch.zeros(9, 1, dtype=torch.float32)
    x = torch.tensor(FAR_APART, dtype=torch.float32)[:, None].requires_grad_()
    return mixture, x, (zero, apart, scales, numbers, numbers)


def test_the_papers_plateau_stays_finite_in_float32():
    mixture, x, parameters = far_components(0.0)
    y, log_derivative = mixture(x, *parameters)
    assert log_derivative[4].item() < -50  # no y tells the plateau's x apart
    back, minus = mixture.inverse(y, *parameters)
    for each in (y, log_derivative, back, minus, *torch.autograd.grad(log_derivative.sum(), x)):
        assert each.isfinite().all()
    outside = [0, 1, 7, 8]
    torch.testing.assert_close(back[outside], x[outside], rtol=1e-3, atol=1e-3)


def test_a_part_of_the_identity_makes_the_plateau_invertible():
    mixture, x, parameters = far_components(1e-3)
    y, log_derivative = mixture(x, *parameters)
    assert log_derivative.min().item() == pytest.approx(math.log(1e-3), abs=1e-6)
    back, minus = mixture.inverse(y, *parameters)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(minus, -log_derivative, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.LogisticMixture((2,), components=1), "LogisticMixture: components must be an int of at least 2"),
        (lambda: fk.LogisticMixture((2,), limit=0), "limit, the bound on the log-scales, must be positive.*got 0"),
        (lambda: fk.Sigmoidal((2,), components=True), "Sigmoidal: components must be an int of at least 1, got True"),
        (lambda: fk.Sigmoidal((2,), min_derivative=-1e-3), "Sigmoidal: min_derivative must be at least 0 and below 1"),
        (
            lambda: fk.LogisticMixture((2,), min_derivative=1.0),
            "must be at least 0 and below 1, got 1.0",
        ),
        (lambda: fk.Sigmoidal((2,), min_slope=1.0), "Sigmoidal: min_slope must be above 0 and below 1, got 1.0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.ConfigError, match=message):
        make()
