"""Codes between codes: linear in the signed power, spherical, and on 2-D grids."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import flowkit as fk

PARALLEL = 1e-6  # below this sine of half the angle, an arc and its chord agree to rounding


def typical_code(z: Tensor) -> Tensor:
    """z scaled to the norm that a standard normal code has: |z*|^2 = E|z|^2 = D. The z* of Fig. 7.

    Args:
        z: `(..., D)`.

    Returns:
        `(..., D)`, the same directions.

    Raises:
        InputError: a code without a direction: zero, or not finite.

    Source: the paper, Fig. 7.

    Example:
        >>> typical_code(torch.tensor([3.0, 0.0, 0.0, 4.0])).norm().item()
        2.0
    """
    return _directions(z) * math.sqrt(z.shape[-1])


def interpolate(start: Tensor, end: Tensor, weight: Tensor | float, *, power: float = 2.0) -> Tensor:
    """Codes between two, linear in the signed power: s(z) = sign(z) |z|^p, z = s^-1((1 - w) s(start) + w s(end)).

    Power 1 is the straight line, on which the middle of two normal codes is too short by a factor of sqrt(2), and its
    colours too pale (Fig. 7); at power 2 it is too short by a twentieth.

    Args:
        start: `(..., D)`.
        end: `(..., D)`; they broadcast.
        weight: 0 gives start, 1 end; a number, or a tensor that broadcasts against the codes.
        power: positive.

    Raises:
        InputError: a power that is not positive.

    Source: the paper, section 4.2, "latent space interpolations".

    Example:
        >>> interpolate(torch.tensor([1.0]), torch.tensor([3.0]), 0.5, power=1).item()
        2.0
    """
    if not 0 < power < math.inf:
        raise fk.InputError(f"the power must be positive and finite, got {power}")
    w = torch.as_tensor(weight, dtype=start.dtype, device=start.device)
    mixed = _signed_power(_lerp(_signed_power(start, power), _signed_power(end, power), w), 1 / power)
    return _with_ends(start, end, w, mixed)


def interpolate_spherical(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Codes between two along the arc: the direction turns at even speed, the norm changes linearly.

    Between codes of equal norm the norm stays; opposite codes have no arc between them that is shorter than others, and
    are refused.

    Args:
        start: `(..., D)`.
        end: `(..., D)`; they broadcast.
        weight: 0 gives start, 1 end; a number, or a tensor that broadcasts against `(..., 1)`.

    Raises:
        InputError: a code without a direction, or two that are opposite.

    Source: the paper, section 4.2, "latent space interpolations".

    Example:
        >>> middle = interpolate_spherical(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
        >>> [round(v, 4) for v in middle.tolist()]
        [1.4142, 1.4142]
    """
    a, b = torch.broadcast_tensors(_directions(start), _directions(end))
    # Half the angle by atan2 of chord and sum: accurate for small angles, where acos of the product is not.
    half = torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    if bool((half.cos() < PARALLEL).any()):
        raise fk.InputError("opposite codes have no shortest arc between them, so there is no spherical interpolation")
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device)
    near = half.sin() < PARALLEL
    angle = torch.where(near, torch.ones_like(half), 2 * half)
    arc = (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / angle.sin()
    turned = torch.where(near, (1 - w) * a + w * b, arc)
    turned = turned / turned.norm(dim=-1, keepdim=True)
    norm = _lerp(start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True), w)
    return _with_ends(start, end, w, turned * norm)


def interpolation_grid(
    corners: Tensor, rows: int = 5, columns: int = 5, *, method: str = "linear", power: float = 2.0
) -> Tensor:
    """A 2-D grid of codes between four: along the upper and the lower edge first, then from the one to the other.

    Args:
        corners: `(2, 2, ..., D)`: upper and lower, each left and right.
        rows: 2 or more.
        columns: 2 or more.
        method: `"linear"`, in the signed power (`interpolate`), or `"spherical"` (`interpolate_spherical`).
        power: of the linear method.

    Returns:
        `(rows, columns, ..., D)`; its corners are the given codes.

    Raises:
        InputError: corners of another shape, or without an arc between them.
        ConfigError: fewer than two rows or columns, or an unknown method.

    Source: the paper, section 4.2, "latent space interpolations".

    Example:
        >>> grid = interpolation_grid(torch.tensor([[[0.0], [4.0]], [[8.0], [12.0]]]), 3, 3, power=1)
        >>> grid[..., 0].tolist()
        [[0.0, 2.0, 4.0], [4.0, 6.0, 8.0], [8.0, 10.0, 12.0]]
    """
    if corners.dim() < 3 or tuple(corners.shape[:2]) != (2, 2):
        raise fk.InputError(f"the corners must be (2, 2, ..., D), upper and lower, got {tuple(corners.shape)}")
    if rows < 2 or columns < 2:
        raise fk.ConfigError(f"an interpolation grid has 2 rows and 2 columns or more, got {rows} and {columns}")
    if method not in ("linear", "spherical"):
        raise fk.ConfigError(f"method must be 'linear' or 'spherical', got {method!r}")

    def between(start: Tensor, end: Tensor, count: int) -> Tensor:
        # Whole quotients, so that the last weight is 1 exactly.
        steps = [i / (count - 1) for i in range(count)]
        if method == "spherical":
            return torch.stack([interpolate_spherical(start, end, w) for w in steps])
        return torch.stack([interpolate(start, end, w, power=power) for w in steps])

    upper, lower = (between(left, right, columns) for left, right in corners)
    return between(upper, lower, rows)


def _signed_power(z: Tensor, power: float) -> Tensor:
    return z if power == 1 else z.sign() * z.abs() ** power


def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    return (1 - weight) * start + weight * end


def _with_ends(start: Tensor, end: Tensor, weight: Tensor, between: Tensor) -> Tensor:
    """The given codes bit for bit at weights 0 and 1, where powers and sines would round."""
    return torch.where(weight == 0, start, torch.where(weight == 1, end, between))


def _directions(z: Tensor) -> Tensor:
    norm = z.norm(dim=-1, keepdim=True)
    if not bool(((norm > 0) & norm.isfinite()).all()):
        raise fk.InputError("a code must be finite and not zero to have a direction")
    return z / norm
