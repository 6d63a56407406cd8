"""What splines share: the check of their bins, knots, and the search of each element's bin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import HALF
from flowkit.errors import ConfigError


def check_bins(owner: str, bins: int, min_bin: float) -> None:
    """Refuse fewer than two bins, one of which is the identity or wastes its parameters, and too wide a minimum.

    Raises:
        ConfigError: bins, or the smallest of them, out of range.
    """
    if not is_int(bins) or bins < 2:
        raise ConfigError(f"{owner}: bins must be an int of at least 2, got {bins!r}")
    if not 0 < min_bin * bins < 1:
        raise ConfigError(f"{owner}: min_bin must be above 0 and below 1 / bins = {1 / bins:.4g}, got {min_bin!r}")


def wide(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """x in float32 or wider, and the parameters in its dtype."""
    x = x.float() if x.dtype in HALF else x
    return x, [each.to(x.dtype) for each in parameters]


def between(x: Tensor, low: float, high: float) -> Tensor:
    """x kept between both, with gradient 1 at either, where `torch.clamp` has 0 in some versions of torch."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


def within_unit(t: Tensor) -> Tensor:
    """t kept in [0, 1], which rounding alone takes it out of, so with gradient 1 everywhere.

    A knot is where t is 0 or 1, and data often lie on one: zero is a knot of every spline that starts with even bins.
    """
    return t + (t.clamp(0, 1) - t).detach()


def sizes(raw: Tensor, min_bin: float) -> Tensor:
    """The sizes `(B, K, C, ...)` of K bins of [0, 1], none below `min_bin`: a softmax along dimension 1."""
    return min_bin + (1 - min_bin * raw.shape[1]) * raw.contiguous().softmax(1)  # it is slow where it has strides


def knots(parts: Tensor) -> Tensor:
    """The knots `(B, K + 1, C, ...)` of bins of these sizes, from 0 to 1 exactly."""
    inner = parts.cumsum(1)[:, :-1]
    spatial = (0, 0) * (parts.dim() - 2)
    return F.pad(F.pad(inner, (*spatial, 1, 0)), (*spatial, 0, 1), value=1.0)


def find(at: Tensor, places: Tensor) -> Tensor:
    """The index `(B, 1, C, ...)` of each element's bin: how many inner knots do not lie right of it."""
    return (at.unsqueeze(1) >= places[:, 1:-1]).sum(1, keepdim=True)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Of `(B, K, C, ...)` each element's own, of x's shape."""
    return values.gather(1, index).squeeze(1)
