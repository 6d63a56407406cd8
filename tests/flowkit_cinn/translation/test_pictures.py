import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from flowkit.errors import ConfigError
from flowkit_cinn.translation.pictures import figure_image, grid, loss_curve, new_figure, png_bytes

RED, BLUE = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (32, 16), (0, 0, 255))


def count(picture, colour):
    return int((np.asarray(picture) == colour).all(2).sum())


def test_cells_hold_their_images():
    picture = grid([[RED, None], [BLUE, RED]], cell=32, gap=4)
    assert count(picture, (255, 0, 0)) == 2 * 32 * 32
    assert count(picture, (0, 0, 255)) == 32 * 16  # its aspect is kept


def test_tensors_are_pictures_too():
    colour, grey = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1).expand(3, 8, 8), torch.full((1, 8, 8), 0.4)
    picture = grid([[colour, grey]], cell=16)
    assert count(picture, (255, 0, 0)) == 256
    assert count(picture, (102, 102, 102)) == 256


def test_titles_are_drawn_and_cover_no_image():
    plain = grid([[RED, RED]], cell=64)
    titled = grid(
        [[RED, RED]], cell=64, row_titles=["a long title of one row"], column_titles=["τ = 0.7", "x"], title="Τίτλος"
    )
    assert titled.width > plain.width
    assert titled.height > plain.height
    assert count(titled, (255, 0, 0)) == count(plain, (255, 0, 0)) == 2 * 64 * 64
    dark = np.asarray(titled).max(2) < 100
    assert dark.any()
    assert not dark[:, -3:].any()  # nothing runs out of the picture
    assert not dark[:2].any()


def test_long_words_are_shortened_to_the_picture():
    picture = grid([[RED]], cell=64, row_titles=["photograph_" * 20], column_titles=["w" * 300])
    assert picture.width < 300


def test_refusals():
    with pytest.raises(ConfigError, match="needs images"):
        grid([])
    with pytest.raises(ConfigError, match="needs images"):
        grid([[]])
    with pytest.raises(ConfigError, match="2 columns need 2 column titles"):
        grid([[RED, RED]], column_titles=["one"])
    with pytest.raises(ConfigError, match="at least one curve"):
        loss_curve({})
    with pytest.raises(ConfigError, match="3 steps and 2 values"):
        loss_curve({"a": ([1, 2, 3], [1.0, 2.0])})


def test_loss_curve_shows_each_curve():
    picture = loss_curve({"a": (range(100), [math.exp(-i / 30) for i in range(100)]), "b": ([0, 50], [1.0, 0.5])})
    assert picture.size == (960, 540)
    assert count(picture, (0x1F, 0x5F, 0xA8)) > 100
    assert count(picture, (0xD1, 0x60, 0x2B)) > 100


def test_one_huge_loss_does_not_flatten_the_rest():
    values = [math.exp(-i / 30) for i in range(100)]
    usual = loss_curve({"a": (range(100), values)})
    spiked = loss_curve({"a": (range(100), [*values[:50], 1e6, *values[51:]])})
    drops = []
    for picture in (usual, spiked):
        y, x = np.nonzero((np.asarray(picture) == (0x1F, 0x5F, 0xA8)).all(2))
        drops.append(y[x == x.max()].mean() - y[x == x.min()].mean())  # from the curve's first pixel to its last
    assert drops[0] > 300
    assert drops[1] > 0.7 * drops[0]


def test_gaps_where_the_loss_is_not_finite():
    values = [1.0, math.nan, math.inf, 0.5] * 30
    assert loss_curve({"a": (range(120), values)}).size == (960, 540)


def test_pyplot_stays_out():
    import subprocess
    import sys

    code = "from flowkit_cinn.translation.pictures import *; loss_curve({'a': ([0, 1], [1, 2])}); import sys; "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_png_bytes_read_back():
    back = Image.open(io.BytesIO(png_bytes(BLUE)))
    np.testing.assert_array_equal(np.asarray(back), np.asarray(BLUE))


def test_figures_become_images():
    figure = new_figure((2, 1))
    figure.add_subplot().plot([0, 1])
    assert figure_image(figure).size == (300, 150)
