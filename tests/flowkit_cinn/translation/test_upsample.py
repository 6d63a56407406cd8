import math

import numpy as np
import pytest
import torch
from PIL import Image

from flowkit.errors import ConfigError, InputError
from flowkit_cinn.translation import upsample
from flowkit_cinn.translation.color import rgb_to_lab
from flowkit_cinn.translation.images import to_tensor
from flowkit_cinn.translation.upsample import default_sigma, joint_bilateral_upsample, recolor, upsample_rows


def brute_force(ab, lightness, sigma, sigma_lightness, truncation):
    """Kopf's equation 3, one output pixel at a time, every cell of the window."""
    _, channels, h, w = ab.shape
    height, width = lightness.shape[-2:]
    guide = upsample._reduced(lightness, ab.shape[-2:])
    radii = [
        max(1, min(cells, math.ceil(truncation * sigma * cells / size))) for cells, size in ((h, height), (w, width))
    ]
    out = torch.empty(1, channels, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            v, u = (y + 0.5) * h / height - 0.5, (x + 0.5) * w / width - 0.5
            total, values = 0.0, torch.zeros(channels, dtype=torch.float64)
            for j in range(max(0, math.floor(v) - radii[0] + 1), min(h, math.floor(v) + radii[0] + 1)):
                for i in range(max(0, math.floor(u) - radii[1] + 1), min(w, math.floor(u) + radii[1] + 1)):
                    distance = ((v - j) * height / h) ** 2 + ((u - i) * width / w) ** 2
                    difference = (lightness[0, 0, y, x] - guide[0, 0, j, i]).item()
                    weight = math.exp(-distance / (2 * sigma**2) - difference**2 / (2 * sigma_lightness**2))
                    total += weight
                    values += weight * ab[0, :, j, i]
            out[0, :, y, x] = values / total
    return out


def some(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("low", "high"), [((4, 5), (16, 20)), ((5, 3), (17, 22)), ((6, 6), (6, 6)), ((8, 7), (5, 6))])
@pytest.mark.parametrize("sigma", [None, 2.5])
def test_brute_force(low, high, sigma):
    ab, lightness = some(1, 2, *low), some(1, 1, *high, seed=1)
    expected = brute_force(ab, lightness, sigma or default_sigma(low, high), 0.1, 3.0)
    result = joint_bilateral_upsample(ab, lightness, sigma_space=sigma)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)


def test_truncation_changes_little_on_a_photograph():
    data = pytest.importorskip("skimage.data")
    lab = rgb_to_lab(to_tensor(Image.fromarray(data.astronaut()).resize((128, 128))).double() / 255)[None]
    ab = upsample._reduced(lab[:, 1:], torch.Size((32, 32)))
    near, full = (joint_bilateral_upsample(ab, lab[:, :1] / 100, truncation=t) for t in (3.0, 20.0))
    assert (near - full).abs().mean() < 0.02  # Lab units
    # Isolated pixels that resemble none of the near cells (highlights) look further without the cut.
    assert (near - full).abs().max() < 4


def test_tiles_and_batches_change_nothing(monkeypatch):
    ab, lightness = some(3, 2, 8, 6), some(3, 1, 40, 33, seed=1)
    whole = joint_bilateral_upsample(ab, lightness)
    monkeypatch.setattr(upsample, "TILE_PIXELS", 1100)
    torch.testing.assert_close(joint_bilateral_upsample(ab, lightness), whole, atol=1e-14, rtol=0)
    for b in range(3):
        one = joint_bilateral_upsample(ab[b : b + 1], lightness[b : b + 1])
        torch.testing.assert_close(one, whole[b : b + 1], atol=1e-14, rtol=0)


def test_rows_are_the_rows_of_the_whole():
    ab, lightness = some(1, 2, 8, 6), some(1, 1, 40, 33, seed=1)
    small = upsample._reduced(lightness, ab.shape[-2:])
    rows = upsample_rows(ab, small, lightness[:, :, 13:29], 13, 40, sigma_space=default_sigma((8, 6), (40, 33)))
    torch.testing.assert_close(rows, joint_bilateral_upsample(ab, lightness)[:, :, 13:29], atol=1e-14, rtol=0)


def test_wide_images_are_cut_into_tiles_across():
    ab, lightness = some(1, 1, 2, 40), some(1, 1, 3, 2500, seed=1)
    left = joint_bilateral_upsample(ab, lightness)
    right = joint_bilateral_upsample(ab.flip(-1), lightness.flip(-1)).flip(-1)
    torch.testing.assert_close(left, right, atol=1e-9, rtol=0)


def test_constant_stays_constant_even_where_no_weight_is_left():
    ab = torch.full((1, 2, 4, 4), 7.0)
    lightness = (some(1, 1, 64, 64, dtype=torch.float32) > 0.5).float()
    for sigma, sigma_lightness in ((0.05, 0.1), (6.0, 1e-3), (500.0, 10.0)):
        result = joint_bilateral_upsample(ab, lightness, sigma_space=sigma, sigma_lightness=sigma_lightness)
        torch.testing.assert_close(result, torch.full_like(result, 7.0))


def test_float32_is_near_float64():
    ab, lightness = some(1, 2, 16, 16), some(1, 1, 100, 90, seed=1)
    single = joint_bilateral_upsample(ab.float(), lightness.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), joint_bilateral_upsample(ab, lightness), atol=1e-5, rtol=0)


def test_edges_are_sharper_than_bilinear():
    edge = (torch.arange(64) >= 27).double().expand(1, 1, 64, 64)
    ab = upsample._reduced(edge, torch.Size((16, 16)))
    bilinear = torch.nn.functional.interpolate(ab, size=(64, 64), mode="bilinear")
    joint = joint_bilateral_upsample(ab, edge, sigma_space=4.0)
    assert (joint - edge).abs().mean() < 0.6 * (bilinear - edge).abs().mean()


def test_recolor_equals_the_whole_in_one_piece():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (45, 60, 3), dtype=np.uint8))
    ab = 20 * some(2, 9, 12, dtype=torch.float32) - 10
    strips, whole = (np.asarray(recolor(picture, ab, strip_pixels=n)).astype(int) for n in (200, 10**6))
    np.testing.assert_array_equal(strips, whole)


def test_recolor_keeps_the_lightness_and_brings_the_colours():
    grey = Image.fromarray(np.tile(np.linspace(80, 180, 60).astype(np.uint8)[None, :, None], (45, 1, 3)))
    ab = torch.tensor([12.0, -9.0]).reshape(2, 1, 1).expand(2, 9, 12)
    before, after = (rgb_to_lab(to_tensor(i).float() / 255) for i in (grey, recolor(grey, ab)))
    assert (before[0] - after[0]).abs().max() < 0.6  # 8 bits
    torch.testing.assert_close(after[1:].mean((1, 2)), torch.tensor([12.0, -9.0], dtype=after.dtype), atol=0.3, rtol=0)


def test_refusals():
    ab, lightness = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 8, 8)
    with pytest.raises(InputError, match=r"lightness \(B, 1, H, W\)"):
        joint_bilateral_upsample(ab, torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"lightness \(B, 1, H, W\)"):
        joint_bilateral_upsample(ab, torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match="empty"):
        joint_bilateral_upsample(torch.zeros(1, 2, 0, 4), lightness)
    with pytest.raises(InputError, match="float32 or float64"):
        joint_bilateral_upsample(ab, lightness.half())
    with pytest.raises(ConfigError, match="sigma_space must be positive"):
        joint_bilateral_upsample(ab, lightness, sigma_space=0.0)
    with pytest.raises(ConfigError, match="sigma_lightness must be positive"):
        joint_bilateral_upsample(ab, lightness, sigma_lightness=-1.0)
    with pytest.raises(InputError, match=r"\(2, h, w\)"):
        recolor(Image.new("RGB", (16, 16)), ab)


def test_no_batch_is_no_batch():
    assert joint_bilateral_upsample(torch.zeros(0, 2, 4, 4), torch.zeros(0, 1, 8, 8)).shape == (0, 2, 8, 8)
