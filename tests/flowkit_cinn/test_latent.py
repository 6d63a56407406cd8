"""The laws of what is done with latent codes, on small untrained flows."""

import numpy as np
import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit_cinn import colorization_cinn, latent


@pytest.fixture
def flow():
    """A small colorization flow with weights that do something."""
    made = colorization_cinn("small", size=8, photo_size=8).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)
    return made


@pytest.fixture
def photos():
    return torch.randn(3, 1, 8, 8)


def test_a_typical_code_has_the_expected_norm():
    z = torch.randn(4, 10) * 7
    assert torch.allclose(latent.typical_code(z).square().sum(-1), torch.full((4,), 10.0))
    with pytest.raises(fk.InputError, match="direction"):
        latent.typical_code(torch.zeros(3))


def test_temperatures_scale_the_code(flow, photos):
    z = torch.randn(3, flow.dim)
    row = latent.temperature_row(flow, z, photos, (0.0, 1.0, 1.25))
    for t, x in zip((0.0, 1.0, 1.25), row, strict=True):
        assert torch.allclose(flow(x, given=photos)[0], t * z, atol=1e-8)
    with pytest.raises(fk.InputError, match="temperatures"):
        latent.temperature_row(flow, z, photos, (-1.0,))


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_the_corners_of_a_grid_are_the_codes(method):
    corners = torch.randn(2, 2, 3, 20)
    grid = latent.interpolation_grid(corners, 4, 5, method=method)
    assert grid.shape == (4, 5, 3, 20)
    assert torch.equal(grid[:: 4 - 1, :: 5 - 1], corners)


def test_power_one_is_the_straight_line_and_power_two_keeps_more_of_the_norm():
    a, b = torch.randn(2, 10_000)
    assert torch.allclose(latent.interpolate(a, b, 0.25, power=1), 0.75 * a + 0.25 * b)
    straight, curved = (latent.interpolate(a, b, 0.5, power=p).norm() / 100 for p in (1, 2))
    assert straight < 0.73 < 0.9 < curved


def test_spherical_interpolation_keeps_the_norm_and_turns_evenly():
    a, b = latent.typical_code(torch.randn(2, 5, 9))
    path = torch.stack([latent.interpolate_spherical(a, b, i / 10) for i in range(11)])
    assert torch.allclose(path.norm(dim=-1), torch.full((11, 5), 3.0))
    chords = (path[1:] - path[:-1]).norm(dim=-1)
    assert torch.allclose(chords, chords[:1].expand_as(chords))
    assert torch.allclose(latent.interpolate_spherical(a, a, 0.3), a)
    with pytest.raises(fk.InputError, match="opposite"):
        latent.interpolate_spherical(a, -a, 0.5)


def test_refused_grids():
    with pytest.raises(fk.InputError, match="corners"):
        latent.interpolation_grid(torch.zeros(2, 3, 4))
    with pytest.raises(fk.ConfigError, match="2 rows"):
        latent.interpolation_grid(torch.zeros(2, 2, 4), rows=1)
    with pytest.raises(fk.ConfigError, match="method"):
        latent.interpolation_grid(torch.zeros(2, 2, 4), method="cubic")


def test_transfer_under_the_same_lightness_gives_the_colours_back(flow, photos):
    ab = torch.randn(3, 2, 8, 8)
    assert torch.allclose(latent.transfer(flow, ab, photos, photos), ab, atol=1e-8)
    moved = latent.transfer(flow, ab, photos, photos.roll(1, 0))
    assert not torch.allclose(moved, ab, atol=1e-3)
    assert torch.allclose(flow(moved, given=photos.roll(1, 0))[0], flow(ab, given=photos)[0], atol=1e-8)


def test_resampling_a_level_leaves_the_others(flow):
    z = torch.randn(2, flow.dim)
    before = z.clone()
    level = list(flow.latents)[1]
    parts, old = flow.split(latent.resample_level(flow, z, level, 4)), flow.split(z)
    for name in flow.latents:
        same = torch.equal(parts[name], old[name].expand_as(parts[name]))
        assert same == (name != level)
    assert torch.equal(z, before)
    with pytest.raises(fk.ConfigError, match="no 'sharp'"):
        latent.resample_level(flow, z, "sharp", 1)


def test_the_most_likely_is_never_below_its_start(flow, photos):
    z = torch.randn(3, flow.dim)
    for lr in (0.05, 1e3):  # the second throws the codes far away
        with torch.no_grad():
            best, log_prob = latent.most_likely(flow, z, photos, steps=5, lr=lr)
            start = flow.log_prob(flow.inverse(z, given=photos)[0], given=photos)
            found = flow.log_prob(flow.inverse(best, given=photos)[0], given=photos)
        assert torch.allclose(found, log_prob, atol=1e-6)
        assert (log_prob >= start - 1e-6).all()
        assert (log_prob > start + 1).all() or lr > 1
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_principal_components_are_those_of_numpy():
    features = torch.randn(4, 6, 3, 5) * torch.arange(1.0, 7.0)[None, :, None, None]
    found = latent.principal_components(features, 6)
    assert torch.allclose(found.directions @ found.directions.T, torch.eye(6))
    assert (found.variances.diff() <= 0).all()
    flat = features.movedim(1, -1).reshape(-1, 6).numpy()
    _, sizes, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    assert np.allclose(found.variances.numpy(), sizes**2 / (len(flat) - 1))
    assert np.allclose(np.abs((found.directions.numpy() * rows).sum(1)), 1)
    assert torch.allclose(found.scores.var((0, 2, 3)), found.variances)
    with pytest.raises(fk.ConfigError, match="count"):
        latent.principal_components(features, 7)


def test_features_of_the_conditions(flow, photos):
    shapes = [tuple(f.shape[1:]) for f in latent.condition_features(flow, {"photo": photos}).values()]
    assert shapes == [(64, 8, 8), (128, 4, 4), (128, 2, 2), (512,)]
    with pytest.raises(fk.ConditionError, match="conditions"):
        latent.condition_features(flow, None)


def test_the_most_different_are_more_spread_than_the_first():
    x = torch.randn(60, 2, 3)
    chosen = latent.most_different(x, 6)
    assert len(set(chosen.tolist())) == 6
    assert torch.pdist(x[chosen].flatten(1)).min() > torch.pdist(x[:6].flatten(1)).min()
    assert sorted(latent.most_different(torch.zeros(3, 2), 3).tolist()) == [0, 1, 2]


def test_outliers_come_least_likely_first(flow, photos):
    ab = torch.randn(3, 2, 8, 8) * torch.tensor([1.0, 9.0, 3.0])[:, None, None, None]
    which, log_prob = latent.outliers(flow, ab, photos)
    assert which.tolist() == [1, 2, 0]
    assert torch.allclose(log_prob, flow.log_prob(ab, given=photos)[which])
    with pytest.raises(fk.ConfigError, match="count"):
        latent.outliers(flow, ab, photos, count=4)
