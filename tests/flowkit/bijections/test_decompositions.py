import pytest
import torch
from nflows.transforms import QRLinear as NflowsQR
from nflows.transforms import SVDLinear as NflowsSVD

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError

CLASSES = [fk.QRLinear, fk.SVDLinear]


def test_is_nflows_qr_with_equal_weights():
    theirs = NflowsQR(5, 4)
    ours = fk.QRLinear((5,), reflections=4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
        theirs.bias.zero_()
        upper = theirs._create_upper()
        ours.vectors.copy_(theirs.orthogonal.q_vectors.flip(0))
        ours.upper.copy_(upper.triu(1) + theirs.log_upper_diag.diag())
    x = torch.randn(4, 5)
    y, log_det = theirs(x)
    torch.testing.assert_close(ours(x), (y, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(y), (x, -log_det), atol=1e-10, rtol=1e-10)


def test_is_nflows_svd_with_equal_weights():
    theirs = NflowsSVD(5, 4)
    ours = fk.SVDLinear((5,), reflections=4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
        theirs.bias.zero_()
        ours.left.copy_(theirs.orthogonal_1.q_vectors.flip(0))
        ours.right.copy_(theirs.orthogonal_2.q_vectors)
        ours.log_values.copy_(theirs.log_diagonal)
    x = torch.randn(4, 5)
    y, log_det = theirs(x)
    torch.testing.assert_close(ours(x), (y, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(y), (x, -log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shape", [(6,), (5, 3), (3, 2, 4)])
def test_is_its_matrix_at_every_position(cls, shape, redraw):
    b = redraw(cls(shape), std=0.5)
    weight, x = b.weight(), torch.randn(2, *shape)
    y, log_det = b(x)
    torch.testing.assert_close(y.flatten(2) if y.dim() > 2 else y[..., None], weight @ x.reshape(2, shape[0], -1))
    positions = x[0, 0].numel()
    expected = positions * torch.linalg.slogdet(weight)[1]
    torch.testing.assert_close(log_det, expected.expand(2), atol=1e-12, rtol=1e-12)
    back, inverse_log_det = b.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-11, rtol=0)
    torch.testing.assert_close(inverse_log_det, -log_det)
    torch.testing.assert_close(b.inverse_weight(), torch.linalg.inv(weight), atol=1e-11, rtol=0)
    torch.testing.assert_close(b.condition_number(), torch.linalg.cond(weight))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_starts_as_the_identity(cls, channels):
    torch.testing.assert_close(cls((channels,)).weight(), torch.eye(channels))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shape", [(6,), (6, 4)])
def test_autocast_does_not_touch_it(cls, shape, redraw):
    torch.set_default_dtype(torch.float32)
    b, x = redraw(cls(shape), std=0.3), torch.randn(3, *shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = b(x)
        back, _ = b.inverse(y)
        b.condition_number()
    assert torch.equal(y, b(x)[0])
    assert y.dtype == log_det.dtype == torch.float32
    assert (back - x).abs().max() < 1e-4
    assert (b.bfloat16().inverse(b(x)[0])[0] - x).abs().max() < 1e-4


@pytest.mark.parametrize("cls", CLASSES)
def test_refusals(cls):
    with pytest.raises(ShapeError, match=rf"{cls.__name__} needs channels to mix.*got shape \(\)"):
        cls(())
    with pytest.raises(ConfigError, match=rf"{cls.__name__}: reflections must be a whole number of at least 1, got 0"):
        cls((3,), reflections=0)
