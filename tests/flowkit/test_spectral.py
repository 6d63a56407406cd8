"""Bounds of operator norms: above the norm of the dense matrix, and not by much."""

import copy
import math

import pytest
import torch

from flowkit.jacobian_net import Layer
from flowkit.spectral import convolution_bound, matrix_bound, waves


def dense(kernel, size):
    """The matrix of the convolution with zero padding, column by column."""
    shape = (kernel.shape[1], *size)
    basis = torch.eye(math.prod(shape)).reshape(-1, *shape)
    convolution = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
    return convolution[len(size)](basis, kernel, padding=[k // 2 for k in kernel.shape[2:]]).flatten(1).T


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (64, 64)])
def test_a_matrix(shape):
    matrix = torch.randn(4, *shape)
    norm, bound = torch.linalg.matrix_norm(matrix, 2), matrix_bound(matrix)
    assert (bound >= norm * (1 - 1e-12)).all()
    assert (bound <= norm * min(shape) ** (1 / 256) * (1 + 1e-12)).all()
    orthogonal = torch.linalg.qr(torch.randn(64, 64))[0]  # the worst case: all singular values are equal
    assert matrix_bound(orthogonal).item() == pytest.approx(64 ** (1 / 256), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_matrix_of_any_scale_in_float32(scale):
    matrix = torch.randn(7, 9)
    bound = matrix_bound((scale * matrix).float()).item() / scale
    assert bound == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-2)


@pytest.mark.parametrize(
    ("size", "kernel", "most"),
    [
        ((1,), (3,), 5.0),  # only the centre of the kernel meets the map, whose wrap-around still counts
        ((9,), (3,), 1.15),
        ((80,), (5,), 1.05),  # more points than frequencies
        ((2, 2), (3, 3), 2.0),
        ((5, 4), (3, 3), 1.3),
        ((7, 6), (5, 1), 1.2),
        ((20, 20), (3, 3), 1.15),  # more points than frequencies
        ((3, 3, 3), (3, 3, 3), 2.0),
    ],
)
def test_a_convolution_with_its_padding_on_its_map(size, kernel, most):
    for _ in range(3):
        weight = torch.randn(2, 3, *kernel) if math.prod(size) < 300 else torch.randn(1, 1, *kernel)
        norm = torch.linalg.matrix_norm(dense(weight, size), 2)
        bound = convolution_bound(weight, *waves(kernel, size))
        assert norm <= bound <= most * norm


def test_the_reshaped_kernel_would_not_bound_it():
    weight = torch.ones(1, 1, 3, 3)
    norm = torch.linalg.matrix_norm(dense(weight, (8, 8)), 2).item()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(3)  # what is often taken for it
    assert norm > 8.2
    assert norm < convolution_bound(weight, *waves((3, 3), (8, 8))).item() < 9.5


def test_a_bound_keeps_its_exactness_through_half_precision():
    layer = Layer(2, 3, (9, 9), 3, bounded=True)
    wanted = layer.bound()
    with torch.no_grad():
        copied = copy.deepcopy(layer).bfloat16().double()
        copied.weight.copy_(layer.weight)
    torch.testing.assert_close(copied.bound(), wanted, rtol=1e-13, atol=0)


def test_gradients():
    assert torch.autograd.gradcheck(matrix_bound, torch.randn(3, 4, requires_grad=True))
    tables = waves((3, 3), (4, 3))
    assert torch.autograd.gradcheck(
        lambda k: convolution_bound(k, *tables), torch.randn(2, 2, 3, 3, requires_grad=True)
    )
    for dtype in (torch.float32, torch.float64):  # at zero, where layers start
        zero = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
        matrix_bound(zero).backward()
        assert not zero.grad.any()
