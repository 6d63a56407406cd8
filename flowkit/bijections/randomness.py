"""Random constants that bijections are built with.

They are drawn on the CPU from torch's generator, so that one seed gives one flow wherever it is built, and moved to
the default device. On the meta device nothing is drawn: a graph learns shapes there, and the seed is left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.errors import ConfigError


def random_order(size: int) -> Tensor:
    """A random permutation of `range(size)`, uniform over all but the identity (size 1 excepted)."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(size, dtype=torch.int64)
    identity = torch.arange(size, device="cpu")
    order = torch.randperm(size, device="cpu")
    while size > 1 and torch.equal(order, identity):
        order = torch.randperm(size, device="cpu")
    return order.to(device)


def random_rotation(size: int) -> Tensor:
    """A random rotation `(size, size)`, Haar-distributed, with determinant 1; orthogonal to float64's precision."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(size, size, dtype=torch.float64)
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, device="cpu"))
    q = q * r.diagonal().sign()  # without this the distribution is that of the QR algorithm's choice of signs
    q[:, 0] *= torch.linalg.det(q).sign()
    return q.contiguous().to(device)  # as a file gives it back: strides decide the last bit


def check_order(owner: str, order: Tensor) -> None:
    """Refuse an order, from a file, that does not hold each index once.

    Raises:
        ConfigError: so it is.
    """
    if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device, dtype=order.dtype)):
        raise ConfigError(f"{owner}: order must hold each of 0 to {len(order) - 1} once")
