import numpy as np
import pytest
import torch
from PIL import Image

from flowkit.errors import ConfigError, InputError
from flowkit_cinn.translation.fitting import Placement, fit, pad, pad_to_multiple


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 64), (2000, 9), (9, 2000), (17, 33)])
@pytest.mark.parametrize("multiple", [1, 4])
def test_aspect_is_kept_and_the_crop_is_the_photograph(size, multiple):
    padded, place = fit(Image.new("RGB", size, (255, 0, 0)), (64, 64), multiple=multiple)
    assert padded.shape == (3, 64, 64)
    assert max(place.rows, place.columns) == 64
    expected = 64 * min(size) / max(size)
    assert abs(min(place.rows, place.columns) - expected) <= max(multiple / 2, multiple - expected)
    assert place.crop(padded).shape == (3, place.rows, place.columns)
    assert place.crop(torch.zeros(2, 64 // multiple, 64 // multiple)).shape[1:] == (
        place.rows // multiple,
        place.columns // multiple,
    )
    assert (padded[0] == 1).all()


@pytest.mark.parametrize(("rows", "columns", "top", "left"), [(5, 4, 3, 0), (2, 3, 9, 7), (1, 1, 4, 4), (16, 16, 0, 0)])
def test_padding_is_numpys_reflection(rows, columns, top, left):
    pixels = torch.rand(3, rows, columns, generator=torch.Generator().manual_seed(0))
    padded = pad(pixels, Placement(16, 16, top, left, rows, columns))
    outside = ((0, 0), (top, 16 - top - rows), (left, 16 - left - columns))
    np.testing.assert_array_equal(padded.numpy(), np.pad(pixels.numpy(), outside, "reflect"))


def test_crop_inverts_padding():
    rgb = torch.rand(2, 3, 30, 41, generator=torch.Generator().manual_seed(0))
    padded, place = pad_to_multiple(rgb, 32)
    assert padded.shape == (2, 3, 32, 64)
    assert torch.equal(place.crop(padded), rgb)


def test_refusals():
    _, place = fit(Image.new("RGB", (100, 60)), (64, 64))
    with pytest.raises(InputError, match="between two pixels"):
        place.crop(torch.zeros(2, 16, 16))
    with pytest.raises(InputError, match="64 x 64"):
        place.crop(torch.zeros(2, 64, 32))
    with pytest.raises(ConfigError, match="multiple of 5"):
        fit(Image.new("RGB", (100, 60)), (64, 64), multiple=5)
    with pytest.raises(ConfigError, match="at least 1"):
        pad_to_multiple(torch.zeros(3, 4, 4), 0)
