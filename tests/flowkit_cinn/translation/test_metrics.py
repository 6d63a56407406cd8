import math

import numpy as np
import pytest
import torch

from flowkit.errors import ConfigError, InputError
from flowkit_cinn.translation import metrics
from flowkit_cinn.translation.color import lab_to_rgb, stack_lab


def some(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_best_of_n_and_variance_are_numpys():
    samples, target = some(8, 3, 2, 4, 5), some(3, 2, 4, 5, seed=1)
    errors = ((samples.numpy() - target.numpy()) ** 2).mean((2, 3, 4))
    np.testing.assert_allclose(metrics.best_of_n_mse(samples, target).numpy(), errors.min(0))
    np.testing.assert_allclose(metrics.sample_variance(samples).numpy(), samples.numpy().var(0).mean((1, 2, 3)))
    assert errors.argmin(0).tolist() != [0, 0, 0]  # so that the minimum is over the samples


def test_units():
    ab, lightness = 20 * some(2, 2, 4, 4), 50 + 5 * some(2, 1, 4, 4, seed=1)
    samples = 20 * some(3, 2, 2, 4, 4, seed=2)
    in_lab, in_rgb = (metrics.diversity(samples, ab, lightness, units=u) for u in ("ab", "rgb"))
    assert in_lab["grayscale_mse"].mean == pytest.approx(ab.square().mean().item())
    rgb = lab_to_rgb(stack_lab(lightness, ab))
    gray = lab_to_rgb(stack_lab(lightness, torch.zeros_like(ab)))
    assert in_rgb["grayscale_mse"].mean == pytest.approx((rgb - gray).square().mean().item())
    assert in_rgb["variance"].mean < 1 < in_lab["variance"].mean
    with pytest.raises(ConfigError, match="'ab' or 'rgb'"):
        metrics.diversity(samples, ab, lightness, units="lab")


def test_one_sample_has_no_variance():
    assert metrics.sample_variance(some(1, 2, 2, 3, 3)).tolist() == [0, 0]


def test_bits_per_dimension_of_a_uniform_density():
    log_prob = torch.full((5,), -12 * math.log(256.0))
    torch.testing.assert_close(metrics.bits_per_dimension(log_prob, 12), torch.full((5,), 8.0))
    with pytest.raises(ConfigError, match="at least 1"):
        metrics.bits_per_dimension(log_prob, 0)


def test_bootstrap_error_is_the_standard_error():
    values = some(400)
    estimate = metrics.bootstrap(values, resamples=4000)
    assert estimate.mean == pytest.approx(values.mean().item())
    assert estimate.error == pytest.approx((values.std() / 20).item(), rel=0.06)
    assert metrics.bootstrap(values) == metrics.bootstrap(values)
    other = metrics.bootstrap(values, generator=torch.Generator().manual_seed(1))
    assert other.error != metrics.bootstrap(values).error


def test_bootstrap_edges():
    assert math.isnan(metrics.bootstrap(torch.ones(1)).error)
    assert str(metrics.Estimate(3.5312, 0.0412)) == "3.531 ± 0.041"
    with pytest.raises(InputError, match="one figure per image"):
        metrics.bootstrap(torch.ones(0))
    with pytest.raises(ConfigError, match="at least 2"):
        metrics.bootstrap(torch.ones(3), resamples=1)


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="samples"):
        metrics.best_of_n_mse(some(8, 3, 2, 4, 4), some(2, 2, 4, 4))
    with pytest.raises(InputError, match="samples"):
        metrics.best_of_n_mse(some(0, 3, 2, 4, 4), some(3, 2, 4, 4))
    with pytest.raises(InputError, match="samples"):
        metrics.sample_variance(some(3, 2, 4, 4))
