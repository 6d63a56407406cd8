"""The modules that subnet recipes build: a first layer that knows about conditions, and the rest in pieces of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.bijection import add_rows, may_overwrite

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PIECE_BYTES = 4 * 2**20  # of hidden values; measured: from 2 to 8 MiB are alike, 32 MiB took 1.9 to 2.8 times as long


class FirstLayer(nn.Module):
    """The first layer of a subnet, a linear map or convolution of [x; c] with one weight W = [W_x, W_c].

    On maps W_x x and W_c c are computed apart and added, which saves the copy that concatenation makes; on vectors
    concatenating is as fast, and one matrix product is one call less.
    """

    def __init__(self, c_x: int, c_c: int, c_out: int, spatial: int, kernel: int = 1):
        super().__init__()
        self.c_x, self.c_c = c_x, c_c
        layer = (
            CONVOLUTIONS[spatial](c_x + c_c, c_out, kernel, padding=kernel // 2)
            if spatial
            else nn.Linear(c_x + c_c, c_out)
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.spatial, self.padding = spatial, kernel // 2

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.spatial == 0:
            return F.linear(x, weight, bias)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        return convolution(x, weight, bias, padding=self.padding)

    def prepare(self, c: Tensor) -> Tensor:
        """`W_c c + b`, for the rows of the conditions alone."""
        return self._apply_weight(c, self.weight[:, self.c_x :], self.bias)

    def forward(self, x: Tensor, c: Tensor | None = None, prepared: Tensor | None = None) -> Tensor:
        """`W_x x + W_c c + b`, from the condition or from its prepared part."""
        if prepared is not None:
            return add_rows(self._apply_weight(x, self.weight[:, : self.c_x], None), prepared)
        if c is None:
            return self._apply_weight(x, self.weight, self.bias)
        if self.spatial == 0:
            return F.linear(torch.cat((x, c), 1), self.weight, self.bias)
        return add_rows(self._apply_weight(x, self.weight[:, : self.c_x], None), self.prepare(c))

    def extra_repr(self) -> str:
        """Channels in (of the data and of the conditions) and out."""
        kernel = f", kernel={2 * self.padding + 1}" if self.spatial else ""
        return f"{self.c_x} + {self.c_c} -> {self.weight.shape[0]}{kernel}"


class Subnet(nn.Module):
    """A first layer that knows about conditions, and the rest, which does not."""

    def __init__(self, first: FirstLayer, rest: nn.Module):
        super().__init__()
        self.first, self.rest = first, rest

    def prepare(self, c: Tensor) -> Tensor:
        """The condition's part of the first layer."""
        return self.first.prepare(c)

    def forward(self, x: Tensor, c: Tensor | None = None, prepared: Tensor | None = None) -> Tensor:
        """Parameters for the active half from the passive half x `(B, C, ...)` and the conditions."""
        if not may_overwrite():
            return self.rest(self.first(x, c, prepared))
        rows = self._rows_at_once(x)
        if rows >= x.shape[0]:
            return self._whole(x, c, prepared)
        parts: Iterator[tuple[Tensor, Tensor | None, Tensor | None]]
        if prepared is None:
            parts = ((x[i : i + rows], None if c is None else c[i : i + rows], None) for i in range(0, len(x), rows))
        else:
            cuts = pieces(x.shape[0], prepared.shape[0], rows)
            parts = ((x[of_x], None, prepared[of_c]) for of_x, of_c in cuts)
        return torch.cat([self._whole(*part) for part in parts])

    def _rows_at_once(self, x: Tensor) -> int:
        """How many rows to take through the net together, where nothing is kept for a backward pass.

        The hidden values are the widest tensors of a flow. In pieces they stay in a CPU's cache from layer to layer,
        and the memory that sampling needs does not grow with the number of samples.
        """
        if x.device.type != "cpu":
            return x.shape[0]
        hidden_bytes = self.first.weight.shape[0] * x[0, 0].numel() * x.element_size() if x.shape[0] else 1
        rows = max(1, PIECE_BYTES // max(1, hidden_bytes))
        # What trains (batch normalisation, dropout) and hooks see the whole batch.
        if rows >= x.shape[0] or any(module.training or _hooked(module) for module in self.modules()):
            return x.shape[0]
        return rows

    def _whole(self, x: Tensor, c: Tensor | None, prepared: Tensor | None) -> Tensor:
        h = self.first(x, c, prepared)
        activation = self.rest[0] if isinstance(self.rest, nn.Sequential) else None
        if type(activation) is nn.ReLU and not (_hooked(self.first) or _hooked(activation)):
            h.relu_()  # the widest tensor of the net: a copy of it is felt
            for layer in list(self.rest.children())[1:]:
                h = layer(h)
            return h
        return self.rest(h)


def pieces(rows: int, repeated: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cuts `rows` data rows, samples outermost, of which `repeated` share one pass over the conditions' rows.

    Yields slices of the data and of the conditions, whole samples where they fit into `at_once` rows.

    >>> list(pieces(6, 2, 5))
    [(slice(0, 4, None), slice(0, 2, None)), (slice(4, 6, None), slice(0, 2, None))]
    >>> list(pieces(4, 2, 1))[:2]
    [(slice(0, 1, None), slice(0, 1, None)), (slice(1, 2, None), slice(1, 2, None))]
    """
    if at_once >= repeated:
        step = at_once // repeated * repeated
        for first in range(0, rows, step):
            yield slice(first, min(first + step, rows)), slice(0, repeated)
        return
    for sample in range(0, rows, repeated):
        for first in range(0, repeated, at_once):
            last = min(first + at_once, repeated)
            yield slice(sample + first, sample + last), slice(first, last)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Concatenated(nn.Module):
    """A user's own net, which sees the data and the conditions as one tensor."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def prepare(self, c: Tensor) -> None:
        """Nothing can be prepared: the net wants data and conditions together."""
        return None

    def forward(self, x: Tensor, c: Tensor | None = None, prepared: None = None) -> Tensor:
        """The net on `[x; c]`."""
        return self.net(x if c is None else torch.cat((x, c), 1))
