import numpy as np
import pytest
import torch

from flowkit.errors import InputError
from flowkit_cinn.translation import color


def some_rgb(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-12)])
def test_lab_is_scikit_images(dtype, tolerance):
    skimage_color = pytest.importorskip("skimage.color")
    rgb = some_rgb(2, 3, 16, 16, dtype=dtype)
    expected = skimage_color.rgb2lab(rgb.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(color.rgb_to_lab(rgb).permute(0, 2, 3, 1).numpy(), expected, atol=tolerance)


def test_rgb_round_trip():
    rgb = some_rgb(2, 4, 3, 8, 8)
    torch.testing.assert_close(color.lab_to_rgb(color.rgb_to_lab(rgb)), rgb, atol=1e-5, rtol=0)


def test_every_grey_of_eight_bits_comes_back():
    grey = (torch.arange(256) / 255).expand(3, 1, 256)
    back = (color.lab_to_rgb(color.rgb_to_lab(grey)) * 255).round()
    assert torch.equal(back, (grey * 255).round())


def test_normalisation_is_the_papers():
    lightness, ab = torch.full((1, 1, 1), 73.1), torch.tensor([13.6, -9.4]).reshape(2, 1, 1)
    assert color.normalize_lightness(lightness).item() == pytest.approx(1)
    torch.testing.assert_close(color.normalize_ab(ab), torch.tensor([1.0, -1.0]).reshape(2, 1, 1))
    torch.testing.assert_close(color.denormalize_ab(color.normalize_ab(ab)), ab)
    torch.testing.assert_close(color.denormalize_lightness(color.normalize_lightness(lightness)), lightness)


def test_split_and_join_are_inverse():
    rgb = some_rgb(3, 3, 5, 7)
    photo, ab = color.split_rgb(rgb)
    assert photo.shape == (3, 1, 5, 7)
    assert ab.shape == (3, 2, 5, 7)
    torch.testing.assert_close(color.join_rgb(photo, ab), rgb, atol=1e-5, rtol=0)


def test_join_broadcasts_samples_over_photographs():
    photo, ab = torch.zeros(3, 1, 4, 4), torch.zeros(8, 3, 2, 4, 4)
    assert color.join_rgb(photo, ab).shape == (8, 3, 3, 4, 4)


def test_clipped_pixels_are_counted_per_image():
    lab = color.rgb_to_lab(some_rgb(2, 3, 4, 4))
    assert color.lab_to_rgb_counted(lab)[1].tolist() == [0.0, 0.0]
    lab[1, 1:, 0, :2] = 120.0
    rgb, fraction = color.lab_to_rgb_counted(lab)
    assert fraction.tolist() == [0.0, 2 / 16]
    assert rgb.min() >= 0
    assert rgb.max() <= 1


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4)])
def test_wrong_images_are_refused(wrong):
    with pytest.raises(InputError, match="3, H, W"):
        color.rgb_to_lab(wrong)


def test_wrong_ab_is_refused():
    with pytest.raises(InputError, match="ab must be"):
        color.normalize_ab(torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="of one size"):
        color.join_rgb(torch.zeros(1, 4, 4), torch.zeros(2, 5, 4))


def test_arguments_are_left_alone():
    rgb = some_rgb(3, 4, 4)
    before = rgb.clone()
    lab = color.rgb_to_lab(rgb)
    kept = lab.clone()
    color.lab_to_rgb_counted(lab)
    assert torch.equal(rgb, before)
    assert torch.equal(lab, kept)
