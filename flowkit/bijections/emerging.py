"""An invertible k x k convolution as two autoregressive ones, whose inverse is exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.bijection import Bijection
from flowkit.bijections.linear import full_precision, widened
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import Shape, numel


def odd_kernel(owner: str, shape: Shape, kernel: int, reach: bool) -> int:
    """The size of a kernel, checked: odd, and not beyond the map; with `reach` half of it is less than the map.

    Raises:
        ShapeError: no map, or one that is too small for the kernel.
        ConfigError: a kernel that is not an odd int of at least 1.
    """
    if not is_int(kernel) or kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"{owner}: kernel must be an odd int of at least 1, got {kernel!r}")
    smallest = kernel // 2 + 1 if reach else kernel
    if any(size < smallest for size in shape[1:]):
        raise ShapeError(f"{owner} with a kernel of {kernel} needs maps of at least {smallest} a side, got {shape}")
    return kernel


def _examples() -> list[Example]:
    return [
        Example((1, 2, 3)),
        Example((3, 2, 2)),
        Example((2, 3, 4), kernel=5),
        Example((3, 4)),
        Example((2, 3), kernel=1),
    ]


@register("flowkit.emerging_convolution", examples=_examples)
class EmergingConvolution(Bijection):
    """A learned k x k convolution, zeros around the map, as the product of two autoregressive ones: y = A B x.

    forward: y = A B x, log-det H W times the sum of the log diagonal of B's centre.
    inverse: x = B^-1 A^-1 y by triangular systems, log-det minus that. Float32 or wider, under autocast too.

    Take the numbers of a map in raster order, channels innermost. B's kernel reaches only what comes before a number
    and the number itself, A's only what comes after: as matrices on the map, B is lower and A upper triangular. B's
    diagonal is exp(log diagonal), A's is 1, which loses nothing. The two together reach all of k x k, and a little
    further. The map cannot become singular, but nothing bounds its condition number. It starts as the identity.

    Cost: the log-det is a sum of C numbers. forward takes (k^2 + 1) C^2 products a position. The inverse is exact, no
    iteration: it goes through each of the two H times, a row at a time, since all rows have the same triangular
    system of C W unknowns, and takes (k + 1) / 2 times (C W)^2 products a row, and as much memory. That is (k + 1) C W
    products a number, which is dear for wide maps: put it after an `fk.Squeeze`, as Glow does.

    Shapes: x `(B, C, H, W)`, or `(B, C, W)` with a kernel of k. State: the parameters `packed` `(C, C)`, B's centre
    below the diagonal, A's above, the log of B's diagonal on it, and `before` and `after` `(T, C, C)`, the matrices of
    the T = (k^2 - 1) / 2 other places of B's kernel in raster order, and of A's, which mirror them.

    Args:
        shape: event shape `(C, H, W)` or `(C, W)`, each side more than half of the kernel.
        kernel: k, odd.

    Raises:
        ShapeError: no map, or one that is too small for the kernel.
        ConfigError: a kernel that is not odd.

    Source: Hoogeboom et al., Emerging Convolutions for Generative Normalizing Flows, 2019, sections 3.1 and 4.

    >>> convolution, x = EmergingConvolution((3, 8, 8)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(convolution.inverse(convolution(x)[0])[0], x, atol=1e-5)
    True
    """

    constant_log_det = True

    def __init__(self, shape: int | Sequence[int], kernel: int = 3):
        super().__init__(shape)
        shape = self.in_shapes[0]
        if len(shape) not in (2, 3):
            raise ShapeError(f"EmergingConvolution needs a map (C, H, W) or (C, W), got shape {shape}")
        self.kernel = odd_kernel("EmergingConvolution", shape, kernel, reach=True)
        channels, radius = shape[0], kernel // 2
        above = radius if len(shape) == 3 else 0
        # The places of B's kernel before its centre: rows above it, whole, and what is left of it in its own row.
        self.places = [(i, j) for i in range(-above, 1) for j in range(-radius, radius + 1) if (i, j) < (0, 0)]
        self.packed = nn.Parameter(torch.zeros(channels, channels))
        self.before = nn.Parameter(torch.zeros(len(self.places), channels, channels)) if self.places else None
        self.after = nn.Parameter(torch.zeros(len(self.places), channels, channels)) if self.places else None

    def _factors(self) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """The centre `(C, C)` and the other places of B, and of A mirrored in all its axes, where it is like B."""
        packed = widened(self.packed)
        lower = packed.tril(-1) + packed.diagonal().exp().diag_embed()
        mirrored = packed.triu(1).flip(0, 1) + torch.eye(len(packed), dtype=packed.dtype, device=packed.device)
        before, after = (p if p is None else widened(p) for p in (self.before, self.after))
        return (lower, before), (mirrored, after if after is None else after.flip(1, 2))

    def _convolve(self, centre: Tensor, others: Tensor | None, x: Tensor) -> Tensor:
        """The lower triangular convolution of x `(B, C, H, W)`.

        As products of matrices, one for each place of the kernel: convolutions may round to TF32, and would spend
        half of their work on the zeros of the kernel.
        """
        height, width = x.shape[2:]
        y = torch.matmul(centre, x.flatten(2)).view(x.shape)
        if others is None:
            return y
        radius, above = self.kernel // 2, -self.places[0][0]
        padded = nn.functional.pad(x, (radius, radius, above, 0))
        for matrix, (i, j) in zip(others.unbind(), self.places, strict=True):
            window = padded[:, :, above + i : above + i + height, radius + j : radius + j + width]
            y = y + torch.matmul(matrix, window.flatten(2)).view(x.shape)
        return y

    def _rows(self, centre: Tensor, others: Tensor | None, width: int) -> list[Tensor]:
        """For each row of the kernel, from its own upwards, the matrix `(W C, W C)` from that row to this one."""
        found = [torch.block_diag(*[centre] * width)]
        above = -self.places[0][0] if self.places else 0
        found += [found[0].new_zeros(found[0].shape) for _ in range(above)]
        if others is None:
            return found
        for matrix, (i, j) in zip(others.unbind(), self.places, strict=True):
            shifted = torch.ones(width - abs(j), dtype=matrix.dtype, device=matrix.device).diag(j)
            found[-i] = found[-i] + torch.kron(shifted, matrix)
        return found

    def _solve(self, centre: Tensor, others: Tensor | None, y: Tensor) -> Tensor:
        """x with `_convolve(centre, others, x) = y`, one row after the other."""
        batch, channels, height, width = y.shape
        own, *upper = self._rows(centre, others, width)
        rows: list[Tensor] = []
        for row in y.permute(2, 0, 3, 1).reshape(height, batch, width * channels).unbind():
            for distance, matrix in enumerate(upper[: len(rows)], 1):
                row = row - rows[-distance] @ matrix.T
            rows.append(torch.linalg.solve_triangular(own.T, row, upper=True, left=False))
        return torch.stack(rows, 1).unflatten(2, (width, channels)).permute(0, 3, 1, 2)

    def _log_det(self, x: Tensor) -> Tensor:
        return (widened(self.packed).diagonal().sum() * numel(self.in_shapes[0][1:])).expand(x.shape[0])

    def _as_maps(self, x: Tensor) -> Tensor:
        x = x.to(widened(self.packed).dtype)
        return x if x.dim() == 4 else x.unsqueeze(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(A B x, log_det)`."""
        with full_precision(x):
            first, second = self._factors()
            y = self._convolve(*first, self._as_maps(x))
            y = self._convolve(*second, y.flip(1, 2, 3)).flip(1, 2, 3)
            return y.reshape(x.shape), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(B^-1 A^-1 y, log_det)`."""
        with full_precision(y):
            first, second = self._factors()
            x = self._solve(*second, self._as_maps(y).flip(1, 2, 3)).flip(1, 2, 3)
            return self._solve(*first, x).reshape(y.shape), -self._log_det(y)

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """The largest singular value of the map over the smallest, `()`, from its matrix of (C H W)^2 numbers.

        That takes a multiple of (C H W)^3 products: a smaller map with the same weights gives an indication for less.
        """
        shape = self.in_shapes[0]
        eye = torch.eye(numel(shape), dtype=widened(self.packed).dtype, device=self.packed.device)
        return torch.linalg.cond(self.forward(eye.view(-1, *shape))[0].flatten(1))

    def extra_repr(self) -> str:
        """The event shape and the kernel."""
        return f"{self.in_shapes[0]}, kernel={self.kernel}"
