"""FrEIA's block of the parts that most flows are made of: coupling, global affine map, permutation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from flowkit.arguments import is_int
from flowkit.bijection import HALF, Bijection
from flowkit.bijections.coupling import AffineCoupling
from flowkit.bijections.linear import FixedRotation
from flowkit.bijections.named_couplings import GINCoupling
from flowkit.bijections.orthogonal import OrthogonalLinear
from flowkit.bijections.permutation import Permute
from flowkit.errors import ConfigError
from flowkit.registry import Example, register
from flowkit.shapes import numel
from flowkit.subnets import MLP, ConvNet

SCALES = ("softplus", "sigmoid", "exp")
MIXINGS = ("permutation", "rotation")
LARGEST = 10.0  # of the scales that "sigmoid" can give


def _examples() -> list[Example]:
    mlp, conv = MLP(hidden=6, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((5,), subnet=mlp),
        Example((2,), given=((2,), (1,)), subnet=mlp, scale="sigmoid", mixing="rotation", reverse_mixing=True),
        Example((3, 2, 2), given=((1, 2, 2),), subnet=conv, mixing="rotation", reflections=2, clamp="atan"),
        Example((3, 4), subnet=conv, volume_preserving=True, reflections=3, reverse_mixing=True),
        Example((4,), given=3, subnet=mlp, scale="exp", initial_scale=1.5, split="alternating"),
    ]


@register("flowkit.all_in_one_block", examples=_examples)
class AllInOneBlock(Bijection):
    """An affine coupling, a global affine map and a permutation of the channels in one block.

    forward: y = W (K(x, c) exp(g) + b), log-det that of the coupling K plus H W times the sum of g over channels.
    inverse: x = K^-1((W^T y - b) exp(-g), c), log-det minus that.
    With `reverse_mixing` K sees W^T x in place of x, so that a block mixes the channels there and back.

    W is a fixed random permutation or rotation, after learned reflections if wanted. g and b are learned per channel,
    and start at log `initial_scale` and 0: data-dependent initialisation is `fk.ActNorm`'s. With `volume_preserving` K
    is GIN's coupling and there is no g. The coupling starts as the identity.

    FrEIA multiplies what its subnet predicts by 0.1, and passes the larger half of an odd number of channels on
    unchanged; here the second, active part is the larger. `split` gives its parts: for 5 channels `split=(3, 4)`.

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`. State: the parts
    `coupling`, `reflections` if any and `mixing`, and `raw_scale` and `shift` `(C, 1, ...)`.

    Args:
        shape: event shape `(C, ...)`, at least two channels.
        given, subnet, clamp, limit, split: see `fk.AffineCoupling`.
        mixing: `"permutation"`, exact and nearly free, or `"rotation"` (soft), C^2 products a position.
        reflections: how many learned Householder reflections come before the permutation or rotation; 0 for none.
        reverse_mixing: undo the mixing before the coupling, too.
        scale: how exp(g) comes of the parameter a: `"softplus"`, 0.2 softplus(a / 2); `"sigmoid"`, 10 sigmoid(a - 2),
            at most 10; `"exp"`, exp(a).
        initial_scale: exp(g) at the start, positive; below 10 with `"sigmoid"`.
        volume_preserving: GIN's coupling and no global scale, so that the log-det is 0.

    Raises:
        ShapeError: fewer than two channels; a condition of another spatial size; a subnet that does not fit.
        ConfigError: an unknown name, a scale or a number of reflections out of range; see also `fk.AffineCoupling`.

    Source: Ardizzone et al., FrEIA's `AllInOneBlock`; reverse mixing: Putzky and Welling, Invert to learn to invert,
        2019; reflections: Tomczak and Welling, 2016; rotation: Ardizzone et al., 2019.

    >>> block = AllInOneBlock((4,), given=(10,), mixing="rotation")
    >>> y, log_det = block(torch.ones(5, 4), torch.zeros(5, 10))
    >>> y.shape, log_det.shape
    (torch.Size([5, 4]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        clamp: str | None = "tanh",
        limit: float = 2.0,
        split: str | Sequence[int] = "halves",
        mixing: str = "permutation",
        reflections: int = 0,
        reverse_mixing: bool = False,
        scale: str = "softplus",
        initial_scale: float = 1.0,
        volume_preserving: bool = False,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        if mixing not in MIXINGS:
            raise ConfigError(f"AllInOneBlock: mixing must be 'permutation' or 'rotation', got {mixing!r}")
        if not is_int(reflections) or reflections < 0:
            raise ConfigError(f"AllInOneBlock: reflections must be a whole number, 0 for none, got {reflections!r}")
        self.scale, start = scale, _raw_scale(scale, initial_scale)
        kind = GINCoupling if volume_preserving else AffineCoupling
        self.coupling = kind(shape, given, subnet, clamp=clamp, limit=limit, split=split)
        self.reflections = OrthogonalLinear(shape, reflections=reflections) if reflections else None
        self.mixing: Permute | FixedRotation = Permute(shape) if mixing == "permutation" else FixedRotation(shape)
        self.reverse_mixing = reverse_mixing
        per_channel = shape[:1] + (1,) * len(shape[1:])
        self.raw_scale = None if volume_preserving else nn.Parameter(torch.full(per_channel, start))
        self.shift = nn.Parameter(torch.zeros(per_channel))
        # An instance keeps promises that the class cannot make.
        self.volume_preserving = self.constant_log_det = volume_preserving

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """The coupling's part that depends on the conditions alone."""
        return self.coupling.prepare(*conditions)

    def _log_scale(self) -> Tensor | None:
        """g, `(C, 1, ...)`, float32 or wider; None where there is none."""
        if self.raw_scale is None:
            return None
        raw = self.raw_scale.float() if self.raw_scale.dtype in HALF else self.raw_scale
        if self.scale == "exp":
            return raw
        if self.scale == "sigmoid":
            return logsigmoid(raw - 2) + math.log(LARGEST)
        return (0.2 * softplus(raw / 2)).log()

    def _mix(self, x: Tensor) -> Tensor:
        return self.mixing.forward(x if self.reflections is None else self.reflections.forward(x)[0])[0]

    def _unmix(self, y: Tensor) -> Tensor:
        x = self.mixing.inverse(y)[0]
        return x if self.reflections is None else self.reflections.inverse(x)[0]

    def _add(self, log_det: Tensor, log_scale: Tensor | None) -> Tensor:
        """The coupling's log-det and the global scale's."""
        return log_det if log_scale is None else log_det + log_scale.sum() * numel(self.in_shapes[0][1:])

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(W (K(x, c) exp(g) + b), log_det)`; `given` is the conditions or one `fk.Prepared`."""
        log_scale = self._log_scale()
        y, log_det = self.coupling.forward(self._unmix(x) if self.reverse_mixing else x, *given)
        y = y + self.shift if log_scale is None else torch.addcmul(self.shift, y, log_scale.exp())
        return self._mix(y), self._add(log_det, log_scale)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """`(K^-1((W^T y - b) exp(-g), c), log_det)`."""
        log_scale = self._log_scale()
        x = self._unmix(y) - self.shift
        x, log_det = self.coupling.inverse(x if log_scale is None else x * (-log_scale).exp(), *given)
        return self._mix(x) if self.reverse_mixing else x, -self._add(-log_det, log_scale)

    def log_scales(self, x: Tensor, *given: Any) -> Tensor:
        """The coupling's log-derivatives and g, on channels one after the other."""
        x = self._unmix(x) if self.reverse_mixing else x
        log_scale, scales = self._log_scale(), self.coupling.log_scales(x, *given)
        return scales if log_scale is None else torch.cat((scales, log_scale.expand(x.shape)), 1)

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _raw_scale(scale: str, initial: float) -> float:
    """The parameter a that gives the scale `initial`."""
    if scale not in SCALES:
        raise ConfigError(f"AllInOneBlock: scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if not 0 < initial < (LARGEST if scale == "sigmoid" else math.inf):
        below = f", and below {LARGEST:g} with 'sigmoid'" if scale == "sigmoid" else " and finite"
        raise ConfigError(f"AllInOneBlock: initial_scale must be positive{below}, got {initial!r}")
    if scale == "exp":
        return math.log(initial)
    if scale == "sigmoid":
        return 2 - math.log(LARGEST / initial - 1)
    return 2 * (5 * initial + math.log(-math.expm1(-5 * initial)))
