"""Two-dimensional targets that flows are judged by the eye on, cut off at the edge of the picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

EDGE = 3.1  # below pi, so that a flow of angles holds them too


def moons(count: int, generator: Generator) -> Tensor:
    """Two interleaving half circles."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.5 * torch.stack((x, y), -1) + 0.12 * torch.randn(count, 2, generator=generator)


def rings(count: int, generator: Generator) -> Tensor:
    """Three concentric circles, as likely as they are long."""
    which = torch.multinomial(torch.tensor([1.0, 2.0, 3.0]), count, replacement=True, generator=generator)
    radius = 0.75 * (which + 1) + 0.07 * torch.randn(count, generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return radius[:, None] * torch.stack((angle.cos(), angle.sin()), -1)


def checkerboard(count: int, generator: Generator) -> Tensor:
    """The dark squares of a board of four by four: a density that jumps."""
    column = torch.randint(4, (count,), generator=generator)
    row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
    within = torch.rand(count, 2, generator=generator)
    return 1.2 * (torch.stack((column, row), -1) + within - 2)


def spirals(count: int, generator: Generator) -> Tensor:
    """Two arms that wind one and a half times around the centre."""
    angle = 3 * math.pi * torch.rand(count, generator=generator).sqrt()
    arm = 2 * torch.randint(2, (count,), generator=generator) - 1
    point = torch.stack((angle.cos(), angle.sin()), -1) * (arm * angle / (1.25 * math.pi))[:, None]
    return point + 0.07 * torch.randn(count, 2, generator=generator)


def pinwheel(count: int, generator: Generator) -> Tensor:
    """Five blades: normal clouds, twisted the more the further out."""
    blade = 2 * math.pi / 5 * torch.randint(5, (count,), generator=generator)
    noise = torch.randn(count, 2, generator=generator)
    along, across = 1.3 + 0.35 * noise[:, 0], 0.12 * noise[:, 1]
    turn = blade + 0.7 * along.exp().clamp(max=20) / math.e
    return torch.stack((along * turn.cos() - across * turn.sin(), along * turn.sin() + across * turn.cos()), -1)


def eight_gaussians(count: int, generator: Generator) -> Tensor:
    """Eight normals on a circle: modes that no bridge connects."""
    angle = math.pi / 4 * torch.randint(8, (count,), generator=generator)
    centre = 2.1 * torch.stack((angle.cos(), angle.sin()), -1)
    return centre + 0.2 * torch.randn(count, 2, generator=generator)


TARGETS: dict[str, Callable[[int, Generator], Tensor]] = {
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "pinwheel": pinwheel,
    "eight-gaussians": eight_gaussians,
}


def sample(name: str, count: int, generator: Generator) -> Tensor:
    """Points `(N, 2)` of a target, all within the picture: what falls outside, a few in a thousand, is drawn anew."""
    points = TARGETS[name](count, generator)
    while len(outside := (points.abs() >= EDGE).any(1).nonzero().flatten()):
        points[outside] = TARGETS[name](len(outside), generator)
    return points
