import pytest
import torch
from torch.nn import functional as F

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


@pytest.mark.parametrize("factor", [2, 3])
def test_squeeze_is_pixel_unshuffle(factor):
    x = torch.randn(2, 3, 6, 12)
    b = fk.Squeeze((3, 6, 12), factor=factor)
    y, log_det = b(x)
    assert torch.equal(y, F.pixel_unshuffle(x, factor))
    assert torch.equal(b.inverse(y)[0], F.pixel_shuffle(y, factor))
    assert not log_det.any()


def test_squeeze_of_a_line_and_a_volume_keeps_the_documented_order():
    x = torch.arange(12.0).view(1, 2, 6)
    assert fk.Squeeze((2, 6))(x)[0].tolist() == [[[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]]
    x = torch.randn(2, 3, 2, 4, 6)
    y = fk.Squeeze((3, 2, 4, 6))(x)[0]
    for c in range(3):
        for i in range(2):
            for j in range(2):
                for k in range(2):
                    assert torch.equal(y[:, 8 * c + 4 * i + 2 * j + k], x[:, c, i::2, j::2, k::2])


def test_squeeze_refusals():
    for shape, message in (
        ((4,), r"Squeeze needs a map with one, two or three spatial dimensions, got shape \(4,\)"),
        ((1, 2, 2, 2, 2), "one, two or three spatial dimensions"),
        ((3, 4, 5), r"Squeeze needs spatial sizes that are multiples of 2, got shape \(3, 4, 5\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            fk.Squeeze(shape)
    for factor in (1, 2.0, True, "2"):
        with pytest.raises(ConfigError, match="Squeeze: factor must be an int of at least 2, got"):
            fk.Squeeze((3, 4, 4), factor=factor)


def test_flatten_and_reshape_keep_the_order():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(fk.Flatten((3, 4, 5))(x)[0], x.flatten(1))
    assert torch.equal(fk.Reshape((3, 4, 5), to=(5, 12))(x)[0], x.view(2, 5, 12))
    assert fk.Flatten((3, 4, 5)).out_shapes == ((60,),)
    assert fk.Flatten(()).out_shapes == ((1,),)
    assert fk.Reshape((4,), to=4).out_shapes == ((4,),)


def test_a_reshape_is_a_view():
    x = torch.randn(2, 3, 4)
    assert fk.Flatten((3, 4))(x)[0].data_ptr() == x.data_ptr()


def test_reshape_refuses_another_number_of_elements():
    with pytest.raises(
        ShapeError, match=r"Reshape needs as many elements after as before, got \(3, 4\) \(12\) to \(5,\)"
    ):
        fk.Reshape((3, 4), to=5)


def test_transpose_is_that_of_numpy():
    x = torch.randn(2, 3, 4, 5)
    wanted = torch.from_numpy(x.numpy().transpose(0, 3, 1, 2))
    assert torch.equal(fk.Transpose((3, 4, 5), order=(2, 0, 1))(x)[0], wanted)
    with pytest.raises(fk.ConfigError, match=r"order must permute the event dimensions 0 to 1, got \(0, 0\)"):
        fk.Transpose((3, 4), order=(0, 0))
