import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize(
    ("shape", "kernel"), [((3, 4), 3), ((2, 3), 1), ((1, 5, 6), 5), ((3, 3, 4), 3), ((2, 3, 4, 3), 3)]
)
def test_is_a_circular_convolution(shape, kernel, redraw):
    b = redraw(fk.PeriodicConvolution(shape, kernel=kernel))
    theirs = CONVOLUTIONS[len(shape) - 1](
        shape[0], shape[0], kernel, padding="same", padding_mode="circular", bias=False
    )
    theirs.load_state_dict({"weight": b.kernel})
    x = torch.randn(3, *shape)
    torch.testing.assert_close(b(x)[0], theirs(x))


@pytest.mark.parametrize(("shape", "kernel"), [((2, 3, 4), 3), ((1, 3, 3), 3), ((3, 5), 3), ((2, 6), 5)])
def test_is_exact_against_the_dense_jacobian(shape, kernel, redraw):
    b = redraw(fk.PeriodicConvolution(shape, kernel=kernel))
    size = torch.Size(shape).numel()
    matrix = b(torch.eye(size).view(size, *shape))[0].flatten(1).T
    y = torch.randn(4, *shape)
    x, log_det = b.inverse(y)
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(matrix, y.flatten(1).T).T)
    torch.testing.assert_close(-log_det, torch.linalg.slogdet(matrix)[1].expand(4))
    torch.testing.assert_close(b.condition_number(), torch.linalg.cond(matrix))


def test_starts_as_the_identity():
    b = fk.PeriodicConvolution((3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(b(x), (x, torch.zeros(2)))
    assert b.condition_number() == 1


def test_a_singular_kernel_shows():
    b = fk.PeriodicConvolution((1, 4))
    with torch.no_grad():
        b.kernel.copy_(torch.tensor([[[-0.5, 1.0, -0.5]]]))  # takes the mean away
    x = torch.randn(2, 1, 4)
    assert b(x)[1].max() < -30
    assert not b.inverse(x)[0].abs().max() < 1e9
    assert b.condition_number() > 1e12


def test_refusals():
    sentence = r"PeriodicConvolution needs a map with one, two or three spatial dimensions, got shape \(3,\)"
    with pytest.raises(ShapeError, match=sentence):
        fk.PeriodicConvolution((3,))
    sentence = r"PeriodicConvolution with a kernel of 5 needs maps of at least 5 a side, got \(1, 4, 5\)"
    with pytest.raises(ShapeError, match=sentence):
        fk.PeriodicConvolution((1, 4, 5), kernel=5)
    with pytest.raises(ConfigError, match="PeriodicConvolution: kernel must be an odd int of at least 1, got 4"):
        fk.PeriodicConvolution((1, 4, 4), kernel=4)
