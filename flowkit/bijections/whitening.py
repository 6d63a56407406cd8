"""Whitening: the channels brought to mean 0 and to the identity as their covariance, from the first data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.bijections.linear import MatrixLinear, full_precision, widened
from flowkit.bijections.normalization import over_processes
from flowkit.registry import Example, register

SMALLEST_SHARE = 1e-10  # of the largest variance: directions below it count as constant, and keep their scale


def _examples() -> list[Example]:
    return [Example((1,)), Example((3,)), Example((2, 4)), Example((3, 2, 2))]


@register("flowkit.whiten", examples=_examples)
class Whiten(MatrixLinear):
    """y = W (x - m), with m and W from the first data: the channels of y have mean 0 and are not correlated.

    forward: y = W (x - m), log-det H W log |det W|. inverse: x = W^-1 y + m, log-det minus that. Float32 or wider.

    Before `initialize`, which `flow.initialize` calls, it is the identity, in both directions. `initialize` takes W as
    the inverse square root of the channels' covariance over batch and space (ZCA, the whitening that changes data
    least), over all processes where torch.distributed runs. Directions in which the data do not vary keep their scale.
    Nothing is learned: for a matrix that goes on learning, put `fk.LULinear` after it. Where channels are nearly
    dependent W is ill-conditioned, see `condition_number()`.

    Cost: an inverse or a determinant of a C x C matrix a call, and C^2 products a position.

    Shapes: x `(B, C, ...)`, log_det `(B,)`. State: the buffers `location` `(C, 1, ...)` and `matrix` `(C, C)`, and the
    boolean buffer `initialized`.

    Args:
        shape: event shape `(C, ...)`.

    Raises:
        ShapeError: shape ().

    Source: Kessy et al., Optimal whitening and decorrelation, 2018; with a matrix of one's own, FrEIA's
        `FixedLinearTransform`.

    >>> x = torch.randn(1000, 2) @ torch.tensor([[3.0, 1.0], [0.0, 0.5]])
    >>> whiten = Whiten((2,))
    >>> whiten.initialize(x)
    >>> whiten(x)[0].T.cov().round(decimals=2).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    needs_initialization = True

    location: Tensor
    matrix: Tensor
    initialized: Tensor

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape)
        shape = self.in_shapes[0]
        self.register_buffer("location", torch.zeros(shape[:1] + (1,) * len(shape[1:])))
        self.register_buffer("matrix", torch.eye(shape[0]))
        self.register_buffer("initialized", torch.tensor(False))

    def weight(self) -> Tensor:
        """W."""
        return widened(self.matrix)

    def inverse_weight(self) -> Tensor:
        """The inverse of W."""
        return torch.linalg.inv(self.weight())

    def log_abs_det(self) -> Tensor:
        """log |det W|."""
        return torch.linalg.slogdet(self.weight())[1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(W (x - m), log_det)`."""
        with full_precision(x):
            return super().forward(x.to(self.weight().dtype) - self.location)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(W^-1 y + m, log_det)`."""
        x, log_det = super().inverse(y)
        return x + self.location, log_det

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set m and W from the data x, so that the channels of the output have the identity as their covariance."""
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # where float64 exists, it is used
        rows = x.detach().to(wide).movedim(1, -1).reshape(-1, self.in_shapes[0][0])
        count = rows.new_tensor(float(len(rows)))
        count, total = over_processes(count, rows.sum(0))
        if count == 0:
            return
        centred = rows - total / count
        (scatter,) = over_processes(centred.T @ centred)
        variances, directions = torch.linalg.eigh(scatter / count)
        varies = variances > SMALLEST_SHARE * variances[-1].clamp_min(torch.finfo(x.dtype).tiny)
        scales = torch.where(varies, variances.clamp_min(torch.finfo(wide).tiny).rsqrt(), torch.ones_like(variances))
        self.location.copy_((total / count).view(self.location.shape))
        self.matrix.copy_((directions * scales) @ directions.T)
        self.initialized.fill_(True)
