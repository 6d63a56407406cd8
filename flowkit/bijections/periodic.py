"""An invertible k x k convolution on maps that are closed in themselves, by the Fourier transform."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection
from flowkit.bijections.emerging import odd_kernel
from flowkit.bijections.linear import full_precision, widened
from flowkit.errors import ShapeError
from flowkit.registry import Example, register


def _examples() -> list[Example]:
    return [
        Example((1, 3, 4)),
        Example((3, 3, 3)),
        Example((2, 5, 5), kernel=5),
        Example((3, 4)),
        Example((2, 3, 3, 4), kernel=1),
    ]


@register("flowkit.periodic_convolution", examples=_examples)
class PeriodicConvolution(Bijection):
    """A learned k x k convolution whose padding is circular: at each frequency f a matrix W_f on the channels.

    forward: y^(f) = W_f x^(f), log-det the sum over all H W frequencies of log abs det W_f.
    inverse: x^(f) = W_f^-1 y^(f), log-det minus that. Float32 or wider, under autocast too.

    x^ is the discrete Fourier transform of x, and W_f that of the kernel, C x C and complex. It starts as the identity.
    Nothing keeps a W_f from becoming singular: the log-det is then minus infinity, which training avoids, and the
    inverse not finite. `condition_number` tells how near it is.

    Cost: the log-det takes a multiple of C^3 products at each of the H (W / 2 + 1) frequencies, the inverse as many to
    solve, once a call, and both directions then C^2 products a frequency, beside two transforms of C H W numbers with
    log(H W) products each. The size of the kernel costs nothing.

    Shapes: x `(B, C, H, W)`, or `(B, C, W)`, or `(B, C, D, H, W)`, with a kernel of k along each. State: the parameter
    `kernel` `(C, C, k, k)`, laid out as `torch.nn.Conv2d`'s weight.

    Args:
        shape: event shape with one, two or three spatial dimensions, none smaller than the kernel.
        kernel: k, odd.

    Raises:
        ShapeError: no map, or one that is smaller than the kernel.
        ConfigError: a kernel that is not odd.

    Source: Hoogeboom et al., Emerging Convolutions for Generative Normalizing Flows, 2019, section 3.2.

    >>> convolution, x = PeriodicConvolution((3, 8, 8)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(convolution.inverse(convolution(x)[0])[0], x, atol=1e-5)
    True
    """

    constant_log_det = True

    def __init__(self, shape: int | Sequence[int], kernel: int = 3):
        super().__init__(shape)
        shape = self.in_shapes[0]
        if len(shape) not in (2, 3, 4):
            raise ShapeError(
                f"PeriodicConvolution needs a map with one, two or three spatial dimensions, got shape {shape}"
            )
        size = odd_kernel("PeriodicConvolution", shape, kernel, reach=False)
        start = torch.zeros(shape[0], shape[0], *[size] * len(shape[1:]))
        start.flatten(2)[..., start[0, 0].numel() // 2] = torch.eye(shape[0])
        self.kernel = nn.Parameter(start)
        self.dims = tuple(range(-len(shape[1:]), 0))

    def matrices(self) -> Tensor:
        """W_f `(F, C, C)`, complex, for the F = H (W // 2 + 1) frequencies of a real transform in row-major order."""
        sizes = self.in_shapes[0][1:]
        with full_precision(self.kernel):
            kernel = widened(self.kernel).flip(self.dims)  # a network's convolution is a correlation
            size = kernel.shape[-1]
            padding = [n for side in reversed(sizes) for n in (0, side - size)]
            whole = nn.functional.pad(kernel, padding).roll([-(size // 2)] * len(sizes), self.dims)
            return torch.fft.rfftn(whole, dim=self.dims).flatten(2).permute(2, 0, 1)

    def _log_det(self, matrices: Tensor, batch: int) -> Tensor:
        last = self.in_shapes[0][-1]
        log_abs_det = torch.linalg.slogdet(matrices)[1].unflatten(0, (-1, last // 2 + 1))
        # A real transform leaves out the frequencies that are conjugates of others, with the same determinant: along
        # its last axis all but the first, and but the middle one where there is one.
        total = log_abs_det[:, 0].sum() + 2 * log_abs_det[:, 1 : (last + 1) // 2].sum()
        if last % 2 == 0:
            total = total + log_abs_det[:, -1].sum()
        return total.expand(batch)

    def _apply_matrices(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            matrices = self.matrices()
            x = x.to(matrices.real.dtype)
            log_det = self._log_det(matrices, x.shape[0])
            if not x.shape[0]:  # MKL refuses to transform nothing
                return x.clone(), log_det
            spectrum = torch.fft.rfftn(x, dim=self.dims)
            numbers = spectrum.flatten(2).permute(2, 1, 0)  # (F, C, B)
            if inverse:  # without the check for singular matrices, which would wait for the device
                mapped = torch.linalg.solve_ex(matrices, numbers)[0]
            else:
                mapped = matrices @ numbers
            y = torch.fft.irfftn(mapped.permute(2, 1, 0).reshape(spectrum.shape), s=x.shape[2:], dim=self.dims)
            return y, -log_det if inverse else log_det

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(the convolution of x, log_det)`."""
        return self._apply_matrices(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(x of which y is the convolution, log_det)`."""
        return self._apply_matrices(y, inverse=True)

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """The largest singular value of all W_f over the smallest, `()`, which is that of the whole map."""
        values = torch.linalg.svdvals(self.matrices())
        return values.max() / values.min()

    def extra_repr(self) -> str:
        """The event shape and the kernel."""
        return f"{self.in_shapes[0]}, kernel={self.kernel.shape[-1]}"
