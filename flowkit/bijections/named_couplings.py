"""Couplings by the names of the field: additive (NICE), volume-preserving (GIN), Glow's, and with splines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch  # noqa: F401 - doctests
from torch import Tensor

from flowkit.bijection import zero_log_det
from flowkit.bijections.coupling import Coupling
from flowkit.errors import ConfigError
from flowkit.registry import Example, register
from flowkit.subnets import MLP, ConvNet
from flowkit.univariate import Additive, RationalQuadraticSpline, SigmoidAffine, VolumePreservingAffine


class VolumePreservingCoupling(Coupling):
    """A coupling whose univariate map keeps the volume of each part: its log-det is 0, and nothing is summed."""

    constant_log_det = True
    volume_preserving = True

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(y, 0)`."""
        return self.partition.join(self._transform(x, given, inverse=False)[0]), zero_log_det(x)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(x, 0)`."""
        return self.inverse_only(y, *given), zero_log_det(y)


def _additive_examples() -> list[Example]:
    mlp, conv = MLP(hidden=6, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((5,), subnet=mlp, active="first"),
        Example((3,), given=(4,), subnet=mlp, two_sided=True),
        Example((1, 3, 2), given=((1, 3, 2),), subnet=conv, split="checkerboard"),
        Example((3, 4), subnet=conv, split=(0,)),
    ]


@register("flowkit.additive_coupling", examples=_additive_examples)
class AdditiveCoupling(VolumePreservingCoupling):
    """NICE's additive coupling: y2 = x2 + t(x1, c), y1 = x1; its volume never changes.

    forward: y2 = x2 + t(x1, c), log-det 0. inverse: x2 = y2 - t(y1, c), log-det 0.

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`.

    Args:
        shape, given, subnet, two_sided, active, split: see `fk.Coupling`.

    Raises:
        ShapeError, ConfigError: see `fk.Coupling`.

    Source: Dinh et al., NICE: Non-linear independent components estimation, 2015.

    >>> y, log_det = AdditiveCoupling((4,), given=(2,))(torch.ones(5, 4), torch.zeros(5, 2))
    >>> y.shape, log_det.tolist()
    (torch.Size([5, 4]), [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        two_sided: bool = False,
        active: str = "second",
        split: str | Sequence[int] = "halves",
    ):
        super().__init__(shape, given, subnet, Additive, two_sided=two_sided, active=active, split=split)


def _gin_examples() -> list[Example]:
    mlp, conv = MLP(hidden=6, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((5,), subnet=mlp, two_sided=True),
        Example((4,), given=(3,), subnet=mlp, clamp="atan", limit=1.0, split="alternating"),
        Example((3, 2, 2), given=((1, 2, 2),), subnet=conv, clamp="softsign"),
        Example((4, 3), subnet=conv),
    ]


@register("flowkit.gin_coupling", examples=_gin_examples)
class GINCoupling(VolumePreservingCoupling):
    """GIN's volume-preserving affine coupling: the log-scales of each half sum to 0.

    forward: y2 = x2 exp(s) + t, s = clamp(r) - mean of clamp(r) over the half, log-det 0.
    inverse: x2 = (y2 - t) exp(-s), log-det 0.

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`.

    Args:
        shape, given, subnet, two_sided, active: see `fk.Coupling`.
        clamp, limit: see `fk.Affine`.
        split: as `fk.Coupling`'s, but for a checkerboard, whose gaps would take part in the mean.

    Raises:
        ShapeError, ConfigError: see `fk.Coupling`; a checkerboard.

    Source: Sorrenson et al., Disentanglement by nonlinear ICA with general incompressible-flow networks (GIN), 2020.

    >>> y, log_det = GINCoupling((6,))(torch.ones(2, 6))
    >>> y.shape, log_det.tolist()
    (torch.Size([2, 6]), [0.0, 0.0])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        clamp: str | None = "tanh",
        limit: float = 2.0,
        two_sided: bool = False,
        active: str = "second",
        split: str | Sequence[int] = "halves",
    ):
        if split == "checkerboard":
            raise ConfigError("GINCoupling: split='checkerboard' leaves gaps in the mean log-scale; use another split")
        affine = VolumePreservingAffine.recipe(clamp=clamp, limit=limit)
        super().__init__(shape, given, subnet, affine, two_sided=two_sided, active=active, split=split)


def _glow_examples() -> list[Example]:
    mlp, conv = MLP(hidden=6, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((5,), subnet=mlp, two_sided=True),
        Example((2,), given=((2,), (1,)), subnet=mlp, min_scale=0.0, active="first"),
        Example((3, 2, 2), given=((1, 2, 2),), subnet=conv),
        Example((1, 4), subnet=conv, split="checkerboard", two_sided=True),
    ]


@register("flowkit.glow_coupling", examples=_glow_examples)
class GlowCoupling(Coupling):
    """Glow's affine coupling: the scale of the second half is a sigmoid, predicted together with the shift.

    forward: y1 = x1, y2 = x2 exp(s) + t with exp(s) = sigmoid(r(x1, c) + 2) + m, t = t(x1, c), log-det the sum of s.
    inverse: x1 = y1, x2 = (y2 - t) exp(-s), log-det minus that. Two-sided as `fk.Coupling`.

    It starts by scaling the half by sigmoid(2) + m = 0.88 + m, not as the identity: use `fk.AffineCoupling` for that.
    FrEIA's `GLOWCouplingBlock`, which has no sigmoid, is `fk.AffineCoupling(two_sided=True, clamp="atan", limit=1.0)`.

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`.

    Args:
        shape, given, subnet, two_sided, active, split: see `fk.Coupling`.
        min_scale: m, see `fk.SigmoidAffine`.

    Raises:
        ShapeError, ConfigError: see `fk.Coupling` and `fk.SigmoidAffine`.

    Source: Kingma and Dhariwal, Glow, 2018, table 1, and the sigmoid of its code, without its order of shift and scale.

    >>> y, log_det = GlowCoupling((4,), min_scale=0.0)(torch.ones(5, 4))
    >>> [round(value, 2) for value in y[0].tolist()], log_det.shape
    ([1.0, 1.0, 0.88, 0.88], torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        min_scale: float = 1e-3,
        two_sided: bool = False,
        active: str = "second",
        split: str | Sequence[int] = "halves",
    ):
        affine = SigmoidAffine.recipe(min_scale=min_scale)
        super().__init__(shape, given, subnet, affine, two_sided=two_sided, active=active, split=split)


def _spline_examples() -> list[Example]:
    mlp, conv = MLP(hidden=6, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((5,), subnet=mlp, bins=3, active="first"),
        Example((3,), given=((2,), (1,)), subnet=mlp, bins=4, two_sided=True),
        Example((2,), subnet=mlp, bins=2),
        Example((3, 4), given=((1, 4),), subnet=conv, bins=2, split=(1,)),
        Example((1, 3, 2), subnet=conv, bins=3, split="checkerboard"),
    ]


@register("flowkit.spline_coupling", examples=_spline_examples)
class SplineCoupling(Coupling):
    """The coupling of neural spline flows: a rational-quadratic spline on [-bound, bound], the identity outside.

    forward: y1 = x1, y2 = f(x2; p(x1, c)), log-det the sum of log f'. inverse: x2 = f^-1(y2; p(y1, c)), log-det minus
    that. f is `fk.RationalQuadraticSpline`, where the formulas are. It starts as the identity.

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`.

    Args:
        shape, given, subnet, two_sided, active, split: see `fk.Coupling`.
        bins, bound, min_bin, min_derivative: see `fk.RationalQuadraticSpline`.

    Raises:
        ShapeError, ConfigError: see `fk.Coupling` and `fk.RationalQuadraticSpline`.

    Source: Durkan et al., Neural spline flows, 2019.

    >>> coupling = SplineCoupling((4,), given=(10,), subnet=MLP(hidden=(32, 32)), bins=8)
    >>> y, log_det = coupling(torch.ones(5, 4), torch.zeros(5, 10))
    >>> torch.allclose(y, torch.ones(5, 4), atol=1e-5), log_det.shape
    (True, torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        bins: int = 8,
        bound: float = 3.0,
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
        two_sided: bool = False,
        active: str = "second",
        split: str | Sequence[int] = "halves",
    ):
        spline = RationalQuadraticSpline.recipe(bins=bins, bound=bound, min_bin=min_bin, min_derivative=min_derivative)
        super().__init__(shape, given, subnet, spline, two_sided=two_sided, active=active, split=split)
