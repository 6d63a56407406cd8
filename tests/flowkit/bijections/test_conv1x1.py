import pytest
import torch

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError

FORMS = ["lu", "qr", "svd", "householder", "matrix_exp", "cayley"]


@pytest.mark.parametrize("form", FORMS)
def test_is_a_convolution_with_its_weight(form, redraw):
    b, x = redraw(fk.InvertibleConv1x1((3, 4, 5), form=form)), torch.randn(2, 3, 4, 5)
    weight = b.weight()
    y, log_det = b(x)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight[:, :, None, None]))
    torch.testing.assert_close(log_det, (20 * torch.linalg.slogdet(weight)[1]).expand(2), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(b.inverse(y), (x, -log_det))
    torch.testing.assert_close(b.condition_number(), torch.linalg.cond(weight))
    assert b.volume_preserving == (form in FORMS[3:])


def test_refusals():
    with pytest.raises(ShapeError, match=r"InvertibleConv1x1 needs channels and at least one.*got shape \(3,\)"):
        fk.InvertibleConv1x1(3)
    with pytest.raises(ConfigError, match="one of lu, qr, svd, householder, matrix_exp, cayley, got 'plu'"):
        fk.InvertibleConv1x1((3, 2), form="plu")
