"""Upper bounds of operator norms: of matrices, and of convolutions with zero padding on maps of a known size.

The bounds are Schatten norms, found by squaring a Gram matrix: they lie above the spectral norm, where a power
iteration comes from below, hold no state, and are differentiable (Delattre et al., Efficient bound of Lipschitz
constant for convolutional layers by Gram iteration, 2023, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SQUARINGS = 6  # the bound is the Schatten norm of order 4 * 2**6 = 256: at most rank**(1/256) too large
TINY = 1e-30  # what a norm of zero is taken for
FREQUENCIES = {1: 64, 2: 16, 3: 12}  # at most so many in each dimension, by the number of dimensions


def matrix_bound(matrix: Tensor) -> Tensor:
    """An upper bound of the spectral norm of `(..., M, N)`, at most min(M, N)**(1/256) times as large, `(...)`.

    >>> matrix_bound(torch.tensor([[3.0, 0.0], [0.0, -1.0]])).item()
    3.0
    """
    largest = matrix.detach().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(TINY)  # so that nothing overflows
    matrix = matrix / largest
    transposed = matrix.mT
    gram = matrix @ transposed if matrix.shape[-2] <= matrix.shape[-1] else transposed @ matrix
    log_square: Tensor | float = 0.0
    for step in range(SQUARINGS + 1):
        norm = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True).clamp_min(TINY)
        log_square = log_square + norm.log() / 2**step
        if step < SQUARINGS:
            gram = gram / norm  # the exponent of the largest number would double at every squaring
            gram = gram @ gram
    return (largest * torch.as_tensor(log_square / 2).exp())[..., 0, 0]


def waves(kernel: Sequence[int], size: Sequence[int], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, float]:
    """What `convolution_bound` needs for odd kernel sizes on maps of a size: cosines and sines `(F, taps)`, a factor.

    A convolution that pads its map of size n by r = k // 2 zeros on each side is a part of the matrix of the circular
    convolution on n + r points: what wraps around lands in the r points that the map does not have. The norm of a
    circular convolution is the largest over its frequencies of the norms of the C' x C matrices that the kernel's
    Fourier transform gives. Where n + r is large, N evenly spaced frequencies take the place of all, and the factor
    1 / cos(pi r / N) in each dimension bounds what lies between them (Ehlich and Zeller 1964, for trigonometric
    polynomials of degree r). Complex conjugate frequencies give one norm, so that half of them are left out.
    """
    counts, factor = [], 1.0
    for k, n in zip(kernel, size, strict=True):
        radius, most = k // 2, max(FREQUENCIES[len(size)], 4 * k)
        counts.append(min(n + radius, most) if radius else 1)
        if n + radius > most and radius:
            factor /= math.cos(math.pi * radius / most)
    halves = [*counts[:-1], counts[-1] // 2 + 1]
    grids = [torch.arange(half, dtype=torch.float64) / count for half, count in zip(halves, counts, strict=True)]
    taps = [torch.arange(k, dtype=torch.float64) - k // 2 for k in kernel]
    turns = torch.cartesian_prod(*grids).reshape(-1, len(size)) @ torch.cartesian_prod(*taps).reshape(-1, len(size)).T
    angles = 2 * math.pi * turns
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return angles.cos().to(dtype), angles.sin().to(dtype), factor


def convolution_bound(kernel: Tensor, cosines: Tensor, sines: Tensor, factor: float) -> Tensor:
    """An upper bound of the norm of the convolution with a kernel `(C', C, k, ...)` and zero padding k // 2, a scalar.

    The other arguments are those of `waves(kernel.shape[2:], size)`.

    >>> kernel = torch.ones(1, 1, 3)
    >>> 2.4142 < convolution_bound(kernel, *waves((3,), (3,))).item() < 3.02  # the matrix of ones on three diagonals
    True
    """
    flat = kernel.flatten(2)
    real = torch.einsum("oik,fk->foi", flat, cosines)
    imaginary = torch.einsum("oik,fk->foi", flat, sines)
    # The complex matrix A + iB as a real one of twice the size, which has its norm.
    embedded = torch.cat((torch.cat((real, -imaginary), 2), torch.cat((imaginary, real), 2)), 1)
    return factor * matrix_bound(embedded).amax()
