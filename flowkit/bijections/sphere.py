"""The circle and the sphere: rotations by angles, cylindrical coordinates, Moebius maps of the sphere itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import HALF, Bijection, Prepared, join
from flowkit.bijections.conditioning import check_conditions, default_subnet
from flowkit.bijections.domain import check_domain
from flowkit.bijections.univariate_elementwise import Elementwise
from flowkit.domain import has_values
from flowkit.errors import ConfigError, InputError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import Shape
from flowkit.subnets import MLP, ConvNet, build_subnet
from flowkit.univariate.circular import AngleShift

NEARLY = 1e-3  # how far from 1 the length of a point on the sphere may be


def _shift_examples() -> list[Example]:
    mlp, conv = MLP(hidden=4, activation="silu"), ConvNet(hidden=3, kernel=(3, 1), activation="silu")
    return [
        Example(()),
        Example((1,), given=((2,), (1,)), subnet=mlp),
        Example((3, 2)),
        Example((2, 2, 3), given=((1, 2, 3),), subnet=conv),
    ]


@register("flowkit.circle_shift", examples=_shift_examples)
class CircleShift(Elementwise):
    """Angles rotated, each by an angle that is learned or predicted from the conditions.

    forward: y = x + t modulo 2 pi, log-det 0. inverse: x = y - t modulo 2 pi, log-det 0. Both in [-pi, pi).

    Shapes: x `(B, C, ...)` or `(B,)`, angles; log_det `(B,)`. An angle outside [-pi, pi) is taken modulo 2 pi, so that
    the way back gives the same point of the circle in that interval. It starts as the identity.

    Args:
        shape: event shape `(C, ...)`, or `()`.
        given: shapes of the conditions.
        subnet: with conditions, a recipe; by default `MLP()` for vectors and scalars, `ConvNet()` for maps.

    Raises:
        ShapeError: a condition of another spatial size; a subnet that does not fit.
        ConfigError: a subnet without conditions, or not a recipe.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, section 2.1.

    >>> y, log_det = CircleShift((3,), given=(10,))(torch.zeros(5, 3), torch.zeros(5, 10))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    volume_preserving = True
    constant_log_det = True

    def __init__(self, shape: int | Sequence[int], given: int | Sequence = (), subnet: Any = None):
        super().__init__(shape, given, AngleShift, subnet)

    def example_inputs(self, rows: int) -> Tensor:
        """Angles."""
        return math.pi * (2 * torch.rand(rows, *self.in_shapes[0]) - 1)


def _sphere(owner: str, shape: Shape, least: int) -> int:
    if not shape or shape[0] < least:
        raise ShapeError(f"{owner} needs points of {least} or more coordinates along the channels, got shape {shape}")
    return shape[0] - 1


def _points(rows: int, shape: Shape) -> Tensor:
    x = torch.randn(rows, *shape, dtype=torch.float64)  # of length 1 to float64's rounding
    return x / x.norm(dim=1, keepdim=True)


def _check_length(owner: str, x: Tensor) -> None:
    """Refuse points that are not on the unit sphere, in eager mode; NaN passes."""
    if not has_values(x):
        return
    length = x.norm(dim=1)
    wrong = (length - 1).abs() > NEARLY
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        raise InputError(f"{owner} needs points of length 1, got one of length {length[index].item():g} at {index}")


def _cylinder_examples() -> list[Example]:
    return [Example((2,)), Example((3,)), Example((5,)), Example((4, 2)), Example((3, 2, 2))]


@register("flowkit.sphere_to_cylinder", examples=_cylinder_examples)
class SphereToCylinder(Bijection):
    """The unit sphere S^D in R^(D+1) unrolled to a cylinder: an angle, and D - 1 heights, along channels.

    With r_i the length of (x_0, ..., x_i):
    forward: y = (atan2(x_1, x_0), x_2 / r_2, ..., x_D / r_D), the heights h_i = x_i / r_i;
        log-det minus the sum over i from 2 to D of (i - 2) / 2 log(1 - h_i^2).
    inverse: x_i = h_i times the product of sqrt(1 - h_j^2) over j > i, (x_0, x_1) = (cos, sin) of the angle times the
        product over all j; log-det the sum of (i - 2) / 2 log(1 - h_i^2).

    Log-dets and densities are with respect to the sphere's area: D coordinates stand for D + 1 (`embedded`), exactly.
    For D = 2 the log-det is 0 (Archimedes): a uniform cylinder is a uniform sphere. Any map of [-pi, pi) x
    (-1, 1)^(D-1) in between makes a flow on the sphere.

    Where the chart is singular: at r_1 = 0, on S^2 the two poles, the angle is not defined (it is put to 0) and
    gradients are infinite; the set has no area. A density that a flow makes of it is continuous across the seam of the
    angle if its maps are (`fk.Moebius`, `fk.CircleShift`, `fk.PeriodicNet`), and at a pole only if it there does not
    depend on the angle, which couplings do not ensure.

    Shapes: x `(B, D + 1, ...)` of length 1 along channels, y `(B, D, ...)`, log_det `(B,)`.

    Args:
        shape: event shape `(D + 1, ...)`, at least two channels.
        check: in eager mode, refuse points whose length differs from 1 by 0.001, and heights outside of [-1, 1];
            smaller differences are projected out.

    Raises:
        ShapeError: fewer than two channels.
        InputError: a point off the sphere, with its place.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, section 2.3.1.

    >>> y, log_det = SphereToCylinder((3,))(torch.tensor([[0.0, 0.8, 0.6]]))
    >>> [round(value, 4) for value in y[0].tolist()], abs(log_det.item())
    ([1.5708, 0.6], 0.0)
    """

    embedded = True

    def __init__(self, shape: int | Sequence[int], check: bool = True):
        super().__init__(shape)
        shape = self.in_shapes[0]
        self.dim = _sphere("SphereToCylinder", shape, 2)
        self.out_shapes = ((self.dim, *shape[1:]),)
        self.check = check
        # An instance knows its dimension: on S^1 and S^2 areas are kept.
        self.volume_preserving = self.constant_log_det = self.dim <= 2
        powers = torch.arange(self.dim - 1, dtype=torch.get_default_dtype()) / 2  # (i - 2) / 2
        self.register_buffer("powers", powers.view(-1, *[1] * (len(shape) - 1)), persistent=False)
        self.powers: Tensor

    def _total(self, log_narrow: Tensor) -> Tensor:
        """The sum of (i - 2) / 2 log(1 - h_i^2)."""
        return (self.powers * log_narrow).flatten(1).sum(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, log_det)`."""
        if self.check:
            _check_length("SphereToCylinder", x)
        squares = x.square().cumsum(1).clamp_min(torch.finfo(x.dtype).tiny)  # at a pole the height is then 0 or 1
        angle = torch.atan2(x[:, 1:2], x[:, 0:1])
        heights = x[:, 2:] * squares[:, 2:].rsqrt()
        log_squares = squares[:, 1:].log()
        return torch.cat((angle, heights), 1), -self._total(log_squares[:, :-1] - log_squares[:, 1:])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(x, log_det)`."""
        angle, heights = y[:, :1], y[:, 1:]
        if self.check:
            check_domain("SphereToCylinder's inverse", heights, -1 - NEARLY, 1 + NEARLY)
        narrow = ((1 - heights) * (1 + heights)).clamp_min(torch.finfo(y.dtype).tiny)
        log_narrow = narrow.log()
        # The product of sqrt(1 - h_j^2) over j above i, from the last backwards.
        above = (log_narrow.flip(1).cumsum(1).flip(1) / 2).exp()
        one = torch.ones_like(angle)
        radii = torch.cat((above, one), 1)
        x = torch.cat((radii[:, :1] * angle.cos(), radii[:, :1] * angle.sin(), heights * radii[:, 1:]), 1)
        return x, self._total(log_narrow)

    def example_inputs(self, rows: int) -> Tensor:
        """Points of the sphere."""
        return _points(rows, self.in_shapes[0])

    def extra_repr(self) -> str:
        """The shapes."""
        return f"{self.in_shapes[0]} -> {self.out_shapes[0]}"


def _moebius_examples() -> list[Example]:
    mlp = MLP(hidden=4, activation="silu")
    return [Example((2,)), Example((3,)), Example((5,), radius=0.5), Example((3,), given=((2,), (1,)), subnet=mlp)]


@register("flowkit.sphere_moebius", examples=_moebius_examples)
class SphereMoebius(Bijection):
    """A Moebius transformation of the sphere S^D in R^(D+1): points flow away from w, a point within the ball.

    forward: y = (1 - |w|^2) / |x - w|^2 (x - w) - w, log-det D log((1 - |w|^2) / |x - w|^2).
    inverse: the same with -w.

    Log-dets and densities are with respect to the sphere's area (`embedded`). It is smooth on all of the sphere: there
    is no chart. Composed with rotations (`fk.OrthogonalLinear`, whose log-det is 0) such maps are a group, so a stack
    of them is one of them; what makes it expressive is what stands between, or a condition. w = r v / sqrt(1 + |v|^2),
    with v a parameter, or predicted from the conditions `(B, C')`; v = 0 at the start, the identity.

    Shapes: x `(B, D + 1)` of length 1, log_det `(B,)`. The length of x is divided out.

    Args:
        shape: event shape `(D + 1,)`, at least two.
        given: shapes of the conditions, vectors.
        subnet: with conditions, a recipe, by default `MLP()`.
        radius: r, above 0 and below 1; the scale is between (1 - r) / (1 + r) and its inverse.
        check: in eager mode, refuse points whose length differs from 1 by 0.001.

    Raises:
        ShapeError: data or a condition that is no vector; a subnet that does not fit.
        ConfigError: a radius out of range; a subnet without conditions or not a recipe.
        InputError: a point off the sphere, with its place.

    Source: Rezende et al., Normalizing flows on tori and spheres, 2020, equation 4.

    >>> SphereMoebius((3,))(torch.tensor([[0.0, 0.8, 0.6]]))[1].item()
    0.0
    """

    embedded = True

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        radius: float = 0.95,
        check: bool = True,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        self.dim = _sphere("SphereMoebius", shape, 2)
        if len(shape) != 1:
            raise ShapeError(f"SphereMoebius needs vectors (D + 1,), got shape {shape}")
        if not 0 < radius < 1:
            raise ConfigError(f"SphereMoebius: radius must be above 0 and below 1, got {radius!r}")
        channels = check_conditions("SphereMoebius", shape, self.condition_shapes)
        if subnet is not None and not self.condition_shapes:
            raise ConfigError(f"SphereMoebius: a subnet needs conditions to predict from, got {subnet!r} and none")
        self.radius, self.check = radius, check
        self.subnet: nn.Module | None = None
        if self.condition_shapes:
            recipe = default_subnet(shape) if subnet is None else subnet
            self.subnet = build_subnet(recipe, (channels,), (), shape[0])
        else:
            self.direction = nn.Parameter(torch.zeros(shape))

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """w for the rows of the conditions."""
        return (self._centre(conditions),) if conditions else None

    def _centre(self, given: tuple) -> Tensor:
        """w, `(D + 1,)`, or with conditions `(R, D + 1)`."""
        if given and isinstance(given[0], Prepared):
            return given[0][0]
        v = self.direction if self.subnet is None else self.subnet(join(given))
        v = v.float() if v.dtype in HALF else v
        return self.radius * v * (1 + v.square().sum(-1, keepdim=True)).rsqrt()

    def _move(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.check:
            _check_length("SphereMoebius", x)
        rows = w.shape[0] if w.dim() > 1 else 1
        by_row = x if rows in (1, x.shape[0]) else x.unflatten(0, (x.shape[0] // rows if rows else 0, rows))
        difference = by_row / by_row.norm(dim=-1, keepdim=True) - w
        scale = (1 - w.square().sum(-1)) / difference.square().sum(-1)
        y = scale.unsqueeze(-1) * difference - w
        return y.reshape(x.shape), self.dim * scale.log().reshape(x.shape[:1])

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(y, log_det)`; `given` is the conditions or one `fk.Prepared`."""
        return self._move(x, self._centre(given))

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x, log_det)`."""
        return self._move(y, -self._centre(given))

    def example_inputs(self, rows: int) -> Tensor:
        """Points of the sphere."""
        return _points(rows, self.in_shapes[0])

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])
