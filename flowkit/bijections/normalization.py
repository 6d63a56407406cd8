"""Normalisation layers that are bijections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from flowkit.bijection import Bijection
from flowkit.registry import Example, register
from flowkit.shapes import numel

SMALLEST_STD = 1e-12  # below it a channel counts as constant, whatever its mean
ROUNDING_STEPS = 4  # a standard deviation of so many rounding steps of the mean is rounding, not variation


def _examples() -> list[Example]:
    return [Example(()), Example((1,)), Example((3,)), Example((3, 4)), Example((2, 2, 3)), Example((1, 2, 2, 2))]


@register("flowkit.act_norm", examples=_examples)
class ActNorm(Bijection):
    """Per channel y = (x - m) exp(s), with m and s set from the first data and then learned.

    forward: y = (x - m) exp(s), log-det the sum of s over the event (H W times the sum over channels).
    inverse: x = y exp(-s) + m, log-det minus that.

    Before `initialize`, which `flow.initialize` calls, it is the identity, in both directions. `initialize` gives every
    channel mean 0 and standard deviation 1 over batch and space, over all processes where torch.distributed runs. A
    channel that does not vary (a batch of one vector, a constant) is centred and keeps scale 1; an empty batch changes
    nothing.

    Shapes: x `(B, C, ...)` or `(B,)`, log_det `(B,)`. State: `location` and `log_scale` `(C, 1, ...)`, and the boolean
    buffer `initialized`.

    Source: Kingma and Dhariwal, Glow, 2018.

    >>> norm = ActNorm((2,))
    >>> norm.initialize(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> norm(torch.tensor([[3.0, 30.0]]))[0].round(decimals=4).tolist()
    [[1.0, 1.0]]
    """

    constant_log_det = True
    needs_initialization = True

    location: Tensor
    log_scale: Tensor
    initialized: Tensor

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape)
        shape = self.in_shapes[0]
        per_channel = shape[:1] + (1,) * len(shape[1:])
        self.location = nn.Parameter(torch.zeros(per_channel))
        self.log_scale = nn.Parameter(torch.zeros(per_channel))
        self.register_buffer("initialized", torch.tensor(False))

    def _log_det(self, batch: int) -> Tensor:
        return (self.log_scale.sum() * numel(self.in_shapes[0][1:])).expand(batch)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`((x - m) exp(s), log_det)`."""
        return (x - self.location) * self.log_scale.exp(), self._log_det(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y exp(-s) + m, log_det)`."""
        return torch.addcmul(self.location, y, (-self.log_scale).exp()), -self._log_det(y.shape[0])

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set m and s from the data x, so that the output has mean 0 and standard deviation 1 per channel."""
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # where float64 exists, it is used
        values = x.detach().to(wide)
        dims = (0, *range(2, x.dim()))
        channels = values.shape[1:2]
        count = torch.full((), x.numel() // max(1, numel(tuple(channels))), dtype=wide, device=x.device)
        count, total = _over_processes(count, values.sum(dims))
        if count == 0:
            return
        mean = total / count
        centred = values - mean.view(self.location.shape)
        # The mean's own rounding error shows in the centred values: without this a constant channel seems to vary.
        rest, squares = _over_processes(centred.sum(dims), centred.square().sum(dims))
        mean = mean + rest / count
        std = (squares / count - (rest / count).square()).clamp_min(0).sqrt()
        rounding = ROUNDING_STEPS * torch.finfo(x.dtype).eps * mean.abs()
        varies = (std > SMALLEST_STD) & (std > rounding)
        self.location.copy_(mean.view(self.location.shape))
        self.log_scale.copy_(torch.where(varies, -std.log(), torch.zeros_like(std)).view(self.location.shape))
        self.initialized.fill_(True)

    def log_scales(self, x: Tensor) -> Tensor:
        """s, in x's shape."""
        return self.log_scale.expand(x.shape)

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _over_processes(*sums: Tensor) -> tuple[Tensor, ...]:
    """Sums over all processes, where there are several."""
    if distributed.is_available() and distributed.is_initialized():
        for each in sums:
            distributed.all_reduce(each)
    return sums
