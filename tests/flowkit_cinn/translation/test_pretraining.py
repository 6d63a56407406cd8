import math

import pytest
import torch

import flowkit as fk
from flowkit_cinn import FeaturePyramid, colorization_cinn
from flowkit_cinn.models import COLORIZATION
from flowkit_cinn.translation.color import denormalize_ab, lab_to_rgb, normalize_ab, rgb_to_lab
from flowkit_cinn.translation.pretraining import ColourClassifier, colour_bins, colour_frequencies

SMALL = {"features": {"channels": (6, 8), "first": 1, "vector": 5}, "size": 16, "photo_size": 16}


def test_every_colour_has_a_bin_nearby():
    bins = colour_bins()
    rgb = torch.rand(3, 100, 100)
    ab = rgb_to_lab(rgb)[1:].flatten(1).T
    assert torch.cdist(ab, bins).amin(1).max() < 10  # half a bin's diagonal, and a bit at the gamut's edge
    assert len({tuple(b) for b in bins.tolist()}) == len(bins)
    assert [0.0, 0.0] in bins.tolist()
    lightness = torch.arange(1.0, 100.0)
    shown = torch.stack(
        [torch.stack((lightness[:, None], *(x.expand(99, 1) for x in b[:, None, None]))).flatten(1) for b in bins], 1
    )
    off = (rgb_to_lab(lab_to_rgb(shown)) - shown)[1:].norm(dim=0).amin(1)
    assert off.max() < 5 * math.sqrt(2)  # no bin lies farther than that from everything that sRGB shows


def test_targets_by_hand():
    model = ColourClassifier(**SMALL)
    lab = torch.tensor([[12.0, -23.0], [0.0, 0.0]])  # two colours
    nearest, soft = model.targets(normalize_ab(lab.T.reshape(1, 2, 1, 2)))
    assert model.bins[nearest[0, 0, :, 0]].tolist() == [[10.0, -20.0], [0.0, 0.0]]
    for colour, which, shares in zip(lab, nearest[0, 0], soft[0, 0], strict=True):
        weights = [math.exp(-(math.dist(colour.tolist(), model.bins[i].tolist()) ** 2) / 50) for i in which]
        torch.testing.assert_close(shares, torch.tensor(weights) / sum(weights))


def test_the_loss_is_the_cross_entropy():
    model = ColourClassifier(**SMALL)
    torch.nn.init.zeros_(model.predict.weight)
    torch.nn.init.zeros_(model.predict.bias)
    ab, photo = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(model.loss(ab, photo), torch.tensor(float(len(model.bins))).log())
    model.predict.bias.data = torch.randn(len(model.bins))
    log_shares = model.predict.bias.log_softmax(0)
    small = torch.nn.functional.avg_pool2d(ab, 2)
    nearest, soft = model.targets(small)
    torch.testing.assert_close(model.loss(ab, photo), -(log_shares[nearest] * soft).sum(-1).mean())
    model.weights.mul_(torch.arange(len(model.bins)))
    weighted = -(log_shares[nearest] * soft).sum(-1) * nearest[..., 0]
    torch.testing.assert_close(model.loss(ab, photo), weighted.mean())


def test_rebalancing_weighs_rare_colours_up_and_one_on_average():
    ab = torch.randn(4, 2, 8, 8)
    bins = colour_bins()
    frequencies = colour_frequencies(ab, bins)
    assert frequencies.sum() == 4 * 64
    nearest = torch.cdist(denormalize_ab(ab).movedim(1, -1).flatten(0, 2), bins).argmin(1)
    assert frequencies[nearest[0]] == (nearest == nearest[0]).sum()
    weights = ColourClassifier(**SMALL, frequencies=frequencies).weights
    torch.testing.assert_close((weights * frequencies).sum() / frequencies.sum(), torch.tensor(1.0))
    order = frequencies.argsort()
    assert weights[order[0]] > weights[order[-1]]
    assert torch.equal(ColourClassifier(**SMALL).weights, torch.ones(len(bins)))


def test_it_learns_and_shows_the_colours():
    model = ColourClassifier(**SMALL)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
    photo, ab = sign + 0.1 * torch.randn(4, 1, 16, 16), sign.expand(4, 2, 16, 16)
    (optimizer,) = model.optimizers()
    losses = [model.update(ab, photo, [optimizer]) for _ in range(150)]
    least = -(lambda s: (s * s.log()).sum(-1).mean())(model.targets(ab)[1])  # the soft targets' own entropy
    assert losses[-1] < least + 0.5 < losses[0] - 2
    model.eval()
    shown = model.sample(photo, 3)
    assert shown.shape == (3, 4, 2, 16, 16)
    assert torch.equal(shown[0], shown[2])
    assert (shown[0] - ab).abs().mean() < 0.5
    assert all(p.grad is not None for p in model.parameters())  # or DDP waits for a gradient that never comes


def test_what_it_learned_goes_into_a_flow():
    flow = colorization_cinn("demo", size=16, photo_size=16)
    model = ColourClassifier(COLORIZATION["demo"].features, size=16, photo_size=16)
    pyramid, photo = flow.network.nodes["pyramid"], torch.randn(2, 1, 16, 16)
    coarser = pyramid.head[3].weight.clone()
    assert not torch.equal(pyramid(photo)[0], model.pyramid(photo)[0])
    model.give_to(pyramid)
    assert torch.equal(pyramid(photo)[0], model.pyramid(photo)[0])
    assert torch.equal(pyramid.head[3].weight, coarser)
    assert all(p.requires_grad for p in pyramid.parameters())
    with pytest.raises(
        fk.ConfigError, match=r"not the one that was trained: it has no 'backbone\.stages\.0\.0\.weight'"
    ):
        model.give_to(FeaturePyramid(channels=(3, 4), first=1))


def test_the_papers_net_is_zhangs_up_to_the_cut():
    with torch.device("meta"):
        pyramid = FeaturePyramid(**COLORIZATION["paper"].features)
        alone = FeaturePyramid(channels=(256,), backbone="zhang", first=2)
    state, whole = alone.state_dict(), pyramid.state_dict()
    assert [name for name in whole if name.startswith("backbone.stages.0.")] == list(state)
    assert any(name.endswith("running_mean") for name in state)  # BatchNorm's statistics go with it
    torch.set_default_dtype(torch.float32)
    model = ColourClassifier(COLORIZATION["paper"].features, size=8, photo_size=32)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, len(model.bins), 8, 8)
    assert model.predict.weight.shape == (len(model.bins), 256, 1, 1)


def test_refused_in_one_sentence():
    for bad in (torch.ones(3), -torch.ones(len(colour_bins())), torch.zeros(len(colour_bins()))):
        with pytest.raises(fk.ConfigError, match=r"frequencies must be .* numbers, one a bin"):
            ColourClassifier(**SMALL, frequencies=bad)
