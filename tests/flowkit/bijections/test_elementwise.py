import pytest
import torch
from torch.distributions import AffineTransform, ComposeTransform, ExpTransform

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


def test_is_the_affine_transform_of_torch(redraw):
    b = redraw(fk.ElementwiseAffine((3, 4, 5)))
    theirs = AffineTransform(b.shift, b.log_scale.exp().expand(3, 4, 5), event_dim=3)
    x = torch.randn(2, 3, 4, 5)
    y = theirs(x)
    torch.testing.assert_close(b(x), (y, theirs.log_abs_det_jacobian(x, y)))
    torch.testing.assert_close(b.inverse(y), (x, theirs.inv.log_abs_det_jacobian(y, x)))


def test_scalars_are_the_affine_transform_of_torch():
    b = fk.ElementwiseAffine((), given=1, subnet=lambda c_in, c_out: torch.nn.Linear(c_in, c_out))
    x, c = torch.randn(4), torch.randn(4, 1)
    raw, shift = b.subnet(c).unbind(1)
    theirs = ComposeTransform([AffineTransform(shift, ExpTransform()(raw))])
    torch.testing.assert_close(b(x, c), (theirs(x), theirs.log_abs_det_jacobian(x, theirs(x))))


@pytest.mark.parametrize("given", [(), (4,)])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_starts_as_the_identity(shape, given):
    x, conditions = torch.randn(2, *shape), [torch.randn(2, *given)] * len(given)
    y, log_det = fk.ElementwiseAffine(shape, given=given)(x, *conditions)
    assert torch.equal(y, x)
    assert not log_det.any()


def test_only_without_conditions_is_the_log_det_constant():
    assert fk.ElementwiseAffine((3,)).constant_log_det
    assert not fk.ElementwiseAffine((3,), given=2).constant_log_det
    assert not fk.ElementwiseAffine.constant_log_det


def test_everything_is_prepared_once():
    b = fk.ElementwiseAffine((3, 4, 4), given=((2, 4, 4), (1, 4, 4)), clamp="tanh", limit=0.5)
    s, t = b.prepare(torch.randn(2, 2, 4, 4), torch.randn(2, 1, 4, 4))
    assert s.shape == t.shape == (2, 3, 4, 4)
    b.subnet = torch.nn.Module()  # is not called any more
    y, log_det = b(torch.randn(6, 3, 4, 4), fk.Prepared((s, t)))
    assert y.shape == (6, 3, 4, 4)
    assert log_det.shape == (6,)


def test_the_clamp_bounds_the_log_scale():
    b = fk.ElementwiseAffine((2,), clamp="atan", limit=0.3)
    with torch.no_grad():
        b.log_scale.fill_(1e6)
    assert 0.29 < b.log_scales(torch.zeros(1, 2)).max() < 0.3


def test_refusals():
    with pytest.raises(
        ShapeError, match=r"ElementwiseAffine on data of shape \(3, 4, 4\).*got one of shape \(7,\).*ToMap"
    ):
        fk.ElementwiseAffine((3, 4, 4), given=7)
    with pytest.raises(ShapeError, match=r"ElementwiseAffine on data of shape \(\) needs conditions that are vectors"):
        fk.ElementwiseAffine((), given=((3, 4, 4),))
    with pytest.raises(ConfigError, match="ElementwiseAffine: a subnet needs conditions"):
        fk.ElementwiseAffine((3,), subnet=fk.MLP())
    with pytest.raises(ConfigError, match="clamp must be"):
        fk.ElementwiseAffine((3,), clamp="sigmoid")
