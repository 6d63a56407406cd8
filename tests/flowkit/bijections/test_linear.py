import numpy as np
import pytest
import torch
from nflows.transforms import LULinear as NflowsLU
from scipy.stats import kstest

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


def test_is_nflows_lu_with_equal_weights():
    theirs = NflowsLU(5, identity_init=False)
    lower, upper = theirs._create_lower_upper()
    ours = fk.LULinear((5,), init="identity")
    with torch.no_grad():
        ours.packed.copy_(lower.tril(-1) + upper.triu(1) + upper.diagonal().log().diag())
    x = torch.randn(4, 5)
    y, log_det = theirs(x)
    torch.testing.assert_close(ours(x), (y, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(y), (x, -log_det), atol=1e-10, rtol=1e-10)


def test_is_a_one_by_one_convolution():
    b, x = fk.LULinear((3, 4, 5)), torch.randn(2, 3, 4, 5)
    y, log_det = b(x)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, b.weight()[:, :, None, None]))
    torch.testing.assert_close(log_det, (20 * torch.linalg.slogdet(b.weight())[1]).expand(2), atol=1e-12, rtol=0)


def test_starts_as_a_rotation_or_the_identity():
    weight = fk.LULinear((6,)).weight()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6))
    torch.testing.assert_close(torch.linalg.det(weight), torch.tensor(1.0))
    assert not torch.allclose(weight, torch.eye(6), atol=0.1)
    assert torch.equal(fk.LULinear((6,), init="identity").weight(), torch.eye(6))


def test_inverse_of_random_weights(redraw):
    b = redraw(fk.LULinear((6, 3)), std=0.3)
    y = torch.randn(4, 6, 3)
    torch.testing.assert_close(b.inverse(y)[0], torch.linalg.solve(b.weight(), y))


def test_rotations_are_haar_distributed():
    size, draws = 4, 2000
    matrices = torch.stack([fk.FixedRotation((size,)).rotation for _ in range(draws)])
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(size).expand(draws, size, size))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(draws))
    # A coordinate u of a uniform unit vector in four dimensions has (u + 1) / 2 ~ Beta(3/2, 3/2).
    for i, j in ((0, 0), (3, 3), (1, 2), (3, 0)):
        assert kstest((matrices[:, i, j].numpy() + 1) / 2, "beta", args=(1.5, 1.5)).pvalue > 1e-4
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(trace.mean()) < 0.1
    assert abs(trace.square().mean() - 1) < 0.15  # of the Haar measure; QR's own signs give another
    assert np.isfinite(trace.numpy()).all()


def test_the_transpose_is_the_inverse_in_float32_and_when_widened():
    torch.set_default_dtype(torch.float32)
    single = fk.FixedRotation((48, 2))
    x = torch.randn(8, 48, 2)
    assert (single.inverse(single(x)[0])[0] - x).abs().max() < 1e-5
    eye = torch.eye(48, dtype=torch.float64)
    loaded = fk.FixedRotation((48, 2)).double()
    loaded.load_state_dict(single.state_dict())
    rotation = single.rotation.double()
    for wide in (loaded, single.double()):
        assert (wide.rotation @ wide.rotation.T - eye).abs().max() < 1e-14
        assert (wide.rotation - rotation).abs().max() < 1e-6


def test_moving_without_widening_changes_no_bit():
    b = fk.FixedRotation((5,))
    kept = b.rotation.clone()
    other = fk.FixedRotation((5,))
    other.load_state_dict(b.state_dict())
    assert torch.equal(b.double().to("cpu").rotation, kept)
    assert torch.equal(other.rotation, kept)


@pytest.mark.parametrize("cls", [fk.FixedRotation, fk.LULinear])
def test_autocast_does_not_touch_it(cls):
    torch.set_default_dtype(torch.float32)
    for shape in ((6,), (6, 4, 4)):
        b, x = cls(shape), torch.randn(3, *shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, log_det = b(x)
            back, _ = b.inverse(y)
        assert torch.equal(y, b(x)[0])
        assert y.dtype == log_det.dtype == torch.float32
        assert (back - x).abs().max() < 1e-5
        half = b(x.bfloat16())[0]
        assert half.dtype == torch.float32


@pytest.mark.parametrize("cls", [fk.FixedRotation, fk.LULinear])
def test_a_scalar_is_refused(cls):
    with pytest.raises(ShapeError, match=rf"{cls.__name__} needs channels to mix.*got shape \(\)"):
        cls(())


def test_an_unknown_init_is_refused():
    with pytest.raises(ConfigError, match="LULinear: init must be 'rotation' or 'identity', got 'zeros'"):
        fk.LULinear((3,), init="zeros")


def test_condition_numbers(redraw):
    assert abs(fk.FixedRotation((5, 2)).condition_number() - 1) < 1e-12
    linear = redraw(fk.LULinear((4,)))
    torch.testing.assert_close(linear.condition_number(), torch.linalg.cond(linear.weight()))
    torch.testing.assert_close(linear.inverse_weight(), torch.linalg.inv(linear.weight()))
    assert fk.LULinear((4,), init="identity").condition_number() == 1


def test_half_parameters_are_widened(redraw):
    x = torch.randn(3, 4).float()
    linear = redraw(fk.LULinear((4,)), std=0.2).bfloat16()
    y, log_det = linear(x)
    assert y.dtype == log_det.dtype == torch.float32
    assert (linear.inverse(y)[0] - x).abs().max() < 1e-4
    assert fk.FixedRotation((4,)).bfloat16().condition_number() < 1.1
