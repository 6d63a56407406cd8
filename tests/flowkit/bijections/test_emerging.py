import pytest
import torch
from torch.nn.functional import conv1d, conv2d

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


def kernels(b, two_dimensional=True):
    """The kernels of B and A, as torch's convolutions take them."""
    channels, k = b.packed.shape[0], b.kernel
    before, after = (torch.zeros(channels, channels, k if two_dimensional else 1, k) for _ in range(2))
    half = before.shape[2] // 2
    for t, (i, j) in enumerate(b.places):
        before[:, :, half + i, k // 2 + j] = b.before[t]
        after[:, :, half - i, k // 2 - j] = b.after[t]
    before[:, :, half, k // 2] = b.packed.tril(-1) + b.packed.diagonal().exp().diag()
    after[:, :, half, k // 2] = b.packed.triu(1) + torch.eye(channels)
    return before, after


@pytest.mark.parametrize(("shape", "kernel"), [((3, 3, 4), 3), ((2, 3, 5), 5), ((1, 4, 2), 3), ((4, 2, 2), 1)])
def test_is_two_convolutions(shape, kernel, redraw):
    b = redraw(fk.EmergingConvolution(shape, kernel=kernel))
    x = torch.randn(3, *shape)
    before, after = kernels(b)
    wanted = conv2d(conv2d(x, before, padding="same"), after, padding="same")
    torch.testing.assert_close(b(x)[0], wanted)


def test_is_two_convolutions_in_one_dimension(redraw):
    b = redraw(fk.EmergingConvolution((3, 6), kernel=5))
    x = torch.randn(3, 3, 6)
    before, after = (k[:, :, 0] for k in kernels(b, two_dimensional=False))
    torch.testing.assert_close(b(x)[0], conv1d(conv1d(x, before, padding="same"), after, padding="same"))


@pytest.mark.parametrize(("shape", "kernel"), [((2, 3, 3), 3), ((1, 3, 4), 5), ((3, 5), 3)])
def test_is_exact_against_the_dense_jacobian(shape, kernel, redraw):
    b = redraw(fk.EmergingConvolution(shape, kernel=kernel), std=0.5)
    size = torch.Size(shape).numel()
    matrix = b(torch.eye(size).view(size, *shape))[0].flatten(1).T
    y = torch.randn(4, *shape)
    x, log_det = b.inverse(y)
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(matrix, y.flatten(1).T).T)
    torch.testing.assert_close(-log_det, torch.linalg.slogdet(matrix)[1].expand(4))
    torch.testing.assert_close(b.condition_number(), torch.linalg.cond(matrix))


def test_both_factors_are_triangular(redraw):
    b = redraw(fk.EmergingConvolution((2, 3, 3)))
    eye = torch.eye(18).view(18, 3, 3, 2).permute(0, 3, 1, 2)  # raster order, channels innermost

    def dense(factor, mirror):
        x = eye.flip(1, 2, 3) if mirror else eye
        y = b._convolve(*factor, x)
        return (y.flip(1, 2, 3) if mirror else y).permute(0, 2, 3, 1).flatten(1).T

    lower, upper = (dense(f, mirror) for f, mirror in zip(b._factors(), (False, True), strict=True))
    assert lower.triu(1).eq(0).all()
    assert lower.ne(0).any(0).all()
    assert upper.tril(-1).eq(0).all()
    torch.testing.assert_close(upper.diagonal(), torch.ones(18))


def test_starts_as_the_identity_and_is_exact_in_float32(redraw):
    torch.set_default_dtype(torch.float32)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(fk.EmergingConvolution((4, 8, 8))(x)[0], x)
    b = redraw(fk.EmergingConvolution((4, 8, 8)), std=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        back = b.inverse(b(x)[0])[0]
    assert (back - x).abs().max() < 1e-4


def test_refusals():
    with pytest.raises(ShapeError, match=r"EmergingConvolution needs a map \(C, H, W\) or \(C, W\), got shape \(3,\)"):
        fk.EmergingConvolution((3,))
    with pytest.raises(
        ShapeError,
        match=r"EmergingConvolution with a kernel of 5 needs maps of at least 3 a side, got \(1, 2, 4\)",
    ):
        fk.EmergingConvolution((1, 2, 4), kernel=5)
    for kernel in (2, 0, True, 3.0):
        with pytest.raises(ConfigError, match="EmergingConvolution: kernel must be an odd int of at least 1, got"):
            fk.EmergingConvolution((1, 4, 4), kernel=kernel)
