import pytest
import torch
from scipy.fft import dctn, idctn

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


@pytest.mark.parametrize(
    ("shape", "dims", "axes"),
    [((7,), None, (1,)), ((3, 5), None, (2,)), ((2, 4, 6), None, (2, 3)), ((3, 4, 2), (0, -1), (1, 3))],
)
def test_is_scipys(shape, dims, axes):
    b, x = fk.DCT(shape, dims=dims), torch.randn(3, *shape)
    torch.testing.assert_close(b(x)[0], torch.from_numpy(dctn(x.numpy(), axes=axes, norm="ortho")))
    torch.testing.assert_close(b.inverse(x)[0], torch.from_numpy(idctn(x.numpy(), axes=axes, norm="ortho")))


def test_is_exact_in_float32_at_the_size_of_an_image():
    x = torch.randn(2, 1, 256, 200)
    b = fk.DCT((1, 256, 200))
    y = b(x.float())[0]
    assert y.dtype == torch.float32
    assert (y - torch.from_numpy(dctn(x.numpy(), axes=(2, 3), norm="ortho"))).abs().max() < 1e-5
    assert (b.inverse(y)[0] - x).abs().max() < 1e-5


def test_refusals():
    with pytest.raises(ShapeError, match=r"DCT needs at least one event dimension, got shape \(\)"):
        fk.DCT(())
    for dims in ((), (0, 0), (1, -1)):
        with pytest.raises(ConfigError, match="DCT: dims must hold at least one event dimension, each once, got"):
            fk.DCT((3, 4), dims=dims)
    with pytest.raises(ConfigError, match="DCT: dim must be an event dimension of"):
        fk.DCT((3, 4), dims=(2,))
