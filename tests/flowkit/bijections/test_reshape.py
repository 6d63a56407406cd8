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


def test_checkerboard_squeeze_is_real_nvps_order():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = fk.CheckerboardSqueeze((2, 4, 4))(x)[0]
    assert y.shape == (1, 8, 2, 2)
    for place, (i, j) in enumerate([(0, 0), (1, 1), (0, 1), (1, 0)]):
        assert torch.equal(y[:, 2 * place : 2 * place + 2], x[:, :, i::2, j::2])


def test_checkerboard_squeeze_puts_each_colour_into_one_half():
    for shape in ((3, 6), (2, 4, 6), (1, 4, 2, 2)):
        squeeze, x = fk.CheckerboardSqueeze(shape), torch.randn(2, *shape)
        even, _ = fk.AffineCoupling(shape, split="checkerboard").partition.part(x)  # with zeros on the odd squares
        y = squeeze(even)[0]
        half = y.shape[1] // 2
        assert not y[:, half:].any()
        assert torch.equal(y[:, :half], squeeze(x)[0][:, :half])


def test_squeeze_is_freias_and_the_checkerboards_other_order():
    from FrEIA.modules import IRevNetDownsampling

    x = torch.randn(2, 3, 4, 6)
    (wanted,), _ = IRevNetDownsampling([(3, 4, 6)]).double()([x])
    torch.testing.assert_close(fk.Squeeze((3, 4, 6))(x)[0], wanted, atol=1e-10, rtol=1e-10)
    order = wanted.view(2, 3, 4, 2, 3)[:, :, [0, 3, 1, 2]].transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(fk.CheckerboardSqueeze((3, 4, 6))(x)[0], order, atol=1e-10, rtol=1e-10)


def test_checkerboard_squeeze_refuses_by_its_own_name():
    sentence = r"CheckerboardSqueeze needs spatial sizes that are multiples of 2, got shape \(1, 4, 5\)"
    with pytest.raises(ShapeError, match=sentence):
        fk.CheckerboardSqueeze((1, 4, 5))
