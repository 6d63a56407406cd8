import numpy as np
import pytest
import torch
from torch import nn

from flowkit.errors import InputError

pytest.importorskip("torchmetrics")
pytest.importorskip("scipy")

from flowkit_cinn.backbones import PretrainedWeightsError
from flowkit_cinn.translation import realism
from flowkit_cinn.translation.realism import (
    Extractor,
    RandomFeatures,
    bootstrap_frechet,
    frechet_distance,
    imagenet_classes,
    inception_or_substitute,
    top5,
)


def test_the_distance_is_scipys():
    torch.manual_seed(0)
    mix = torch.randn(5, 5)
    real, made = torch.randn(300, 5) @ mix, 0.5 * torch.randn(200, 5) + 1
    covariances = [np.cov(x.numpy().T) for x in (real, made)]
    from scipy.linalg import sqrtm

    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = (real.mean(0) - made.mean(0)).square().sum().item() + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-8)
    estimate = bootstrap_frechet(real, made, resamples=5)
    assert estimate.mean == pytest.approx(expected, rel=1e-8)
    assert 0 < estimate.error < expected


def test_features_that_do_not_fit():
    with pytest.raises(InputError, match=r"of one D.* got \(3, 2\) and \(3, 4\)"):
        frechet_distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(InputError, match="of the made ones some are not"):
        frechet_distance(torch.zeros(3, 2), torch.full((3, 2), float("inf")))


def test_random_features_are_the_same_everywhere_and_see_colours():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    net, other = RandomFeatures().double(), RandomFeatures().double()
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(4, 3, 32, 32)
    extractor = Extractor("random", net)
    features = extractor.features(images)
    assert features.dtype == torch.float64
    assert torch.equal(features, Extractor("random", other).features(images))
    gray = images.mean(1, keepdim=True).expand_as(images)
    assert (extractor.features(gray) - features).abs().max() > 1e-2


def test_the_substitute_is_named_where_inception_cannot_be_had(monkeypatch):
    from torchmetrics.image import fid

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(fid, "FrechetInceptionDistance", unreachable)
    found = inception_or_substitute()
    assert found.name == "an untrained net, seed 0"
    assert "no network" in found.note


def test_classes_are_numbered_as_torchvision_does():
    folders = [f"n{i:08d}" for i in range(1000)]
    names = [f"train/{folder}/a.jpg" for folder in reversed(folders)]
    assert imagenet_classes(["val/n00000007/x.jpg", "val/n00000999/y.jpg"], names).tolist() == [7, 999]
    assert imagenet_classes(["val/n00000007/x.jpg"], names[1:]) is None
    assert imagenet_classes(["x.jpg"], names) is None


class Ranked(nn.Module):
    """Ten logits: class k is the k-th best of a black picture, and the (9 - k)-th of a white one."""

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        sign = torch.where(x.mean((1, 2, 3)) > 0, 1.0, -1.0)
        return sign[:, None] * torch.arange(10)


def test_top5_of_a_classifier():
    black, white = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    images = torch.stack((black, black, white, white))
    assert top5(Ranked(), images, torch.tensor([4, 5, 4, 5])).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_vgg_without_weights_is_an_error(monkeypatch):
    def fetch(name):
        raise PretrainedWeightsError("no network")

    monkeypatch.setattr(realism, "fetch", fetch)
    with pytest.raises(PretrainedWeightsError, match="no network"):
        realism.vgg16()
