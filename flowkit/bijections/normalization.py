"""Normalisation layers that are bijections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from flowkit.bijection import Bijection
from flowkit.collectives import several_processes, sum_over_processes
from flowkit.errors import ConfigError, InputError
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
        count, total = over_processes(count, values.sum(dims))
        if count == 0:
            return
        mean = total / count
        centred = values - mean.view(self.location.shape)
        # The mean's own rounding error shows in the centred values: without this a constant channel seems to vary.
        rest, squares = over_processes(centred.sum(dims), centred.square().sum(dims))
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


def _standard_examples() -> list[Example]:
    numbers = Example((3,), loc=[0.5, -2.0, 3.0], scale=[2.0, 0.1, 5.0])
    return [Example(()), Example((3,)), numbers, Example((1, 4), loc=1.5, scale=4), Example((2, 2, 3))]


@register("flowkit.standardize", examples=_standard_examples)
class Standardize(ActNorm):
    """Per channel y = (x - m) exp(s) with fixed numbers: data in its own units, brought to mean 0 and deviation 1.

    forward: y = (x - m) exp(s), log-det the sum of s over the event (H W times the sum over channels).
    inverse: x = y exp(-s) + m, log-det minus that.

    It is `fk.ActNorm` that learns nothing: m and exp(-s) are `loc` and `scale`, or, where neither is given, the mean
    and the standard deviation of the first data, see `flow.initialize`. As part of the flow it is saved with it, and
    log-likelihoods are those of the data as it came.

    Shapes: x `(B, C, ...)` or `(B,)`, log_det `(B,)`. State: the buffers `location` and `log_scale` `(C, 1, ...)`, and
    the boolean buffer `initialized`.

    Args:
        shape: event shape `(C, ...)`, or `()`.
        loc: m, a number or one for each channel; 0 where only the scale is given.
        scale: what x - m is divided by, positive, a number or one for each channel; 1 where only loc is given.

    Raises:
        ConfigError: numbers that are not finite, of another count, or a scale that is not positive.

    Source: FrEIA's and nflows' fixed affine maps (`PointwiseAffineTransform`).

    >>> Standardize((2,), loc=[1.0, 10.0], scale=[2.0, 4.0])(torch.tensor([[3.0, 30.0]]))[0].tolist()
    [[1.0, 5.0]]
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        loc: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
    ):
        super().__init__(shape)
        log_scale = -self._given("scale", 1.0 if scale is None else scale).log()
        location = self._given("loc", 0.0 if loc is None else loc)
        del self.location, self.log_scale  # the parameters that ActNorm learns
        self.register_buffer("location", location)
        self.register_buffer("log_scale", log_scale)
        if loc is not None or scale is not None:
            self.needs_initialization = False  # an instance keeps a promise that the class does not make
            self.initialized.fill_(True)

    def _given(self, name: str, numbers: float | Sequence[float]) -> Tensor:
        """Finite numbers as `(C, 1, ...)`, positive for a scale."""
        value = torch.as_tensor(numbers, dtype=torch.get_default_dtype(), device=self.location.device)
        shape = self.location.shape
        fits = value.dim() == 0 or value.shape == shape[:1]
        positive = "positive and finite" if name == "scale" else "finite"
        if not fits:
            raise ConfigError(f"Standardize: {name} must be a number or {numel(tuple(shape))} of them, got {numbers!r}")
        if not value.is_meta and not bool((value.isfinite() & ((value > 0) | (name == "loc"))).all()):
            raise ConfigError(f"Standardize: {name} must be {positive}, got {numbers!r}")
        return (value if value.dim() == 0 else value.view(shape)).expand(shape).clone()


def _batch_norm_examples() -> list[Example]:
    return [
        Example(()),
        Example((3,)),
        Example((1, 4), affine=False),
        Example((2, 2, 3), momentum=0.5, synchronized=True),
    ]


@register("flowkit.batch_norm", examples=_batch_norm_examples)
class BatchNorm(Bijection):
    """Per channel y = (x - m) exp(s) / sqrt(v + eps) + b, m and v the mean and variance of the batch, or of its past.

    forward: y as above, log-det H W times the sum over channels of s - log(v + eps) / 2.
    inverse, in eval mode alone: x = (y - b) exp(-s) sqrt(v + eps) + m, log-det minus that.

    In training mode forward takes m and v from the batch, over rows and positions (v the biased variance), and moves
    the running statistics by `momentum` towards them (there the unbiased variance): that is `torch.nn.BatchNorm2d`. Its
    gradient flows through m and v. The log-det is that of the affine map just applied, m and v held fixed, as in the
    paper; a row's output depends on the other rows, so log-probabilities in training mode are not a density. `inverse`
    refuses in training mode: the batch whose statistics would undo the map is not known.
    In eval mode m and v are the running statistics, and it is an ordinary bijection with a constant log-det. An empty
    batch changes nothing, in both modes. It starts as the identity but for eps: 1 / sqrt(1 + eps).

    Where several processes train, `synchronized` makes m and v those of all their rows, so that they do what one
    process does with the whole batch, in values and gradients; all must then call forward in training mode equally
    often, in eager mode. Without it each takes the statistics of its own rows, as `torch.nn.BatchNorm2d` does, and the
    running ones part, but where torch's DDP copies those of the first process to all. `flowkit.training.fit`
    synchronises every BatchNorm while it runs. `fk.ActNorm` works for small batches, too, and means the same in both
    modes.

    Shapes: x `(B, C, ...)` or `(B,)`, log_det `(B,)`. State: the parameters `log_scale` and `shift`, where affine, and
    the buffers `running_mean` and `running_var`, all `(C, 1, ...)`.

    Args:
        shape: event shape `(C, ...)`, or `()`.
        eps: added to v, above 0.
        momentum: the weight of a new batch in the running statistics, above 0 and at most 1.
        affine: learn s and b; without they are 0.
        synchronized: in training mode take m and v over all processes of torch.distributed, where there are several.

    Raises:
        ConfigError: eps or momentum out of range.
        InputError: in training mode, a single value for a channel, or a call of `inverse`.

    Source: Dinh et al., Density estimation using Real NVP, 2017, section 3.7 and appendix E; Ioffe and Szegedy, Batch
        normalization, 2015.

    >>> norm = BatchNorm((2,))
    >>> norm(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))[0].round(decimals=3).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> norm.eval()(torch.zeros(1, 2))[1].shape
    torch.Size([1])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        synchronized: bool = False,
    ):
        super().__init__(shape)
        shape = self.in_shapes[0]
        if not 0 < eps < float("inf"):
            raise ConfigError(f"BatchNorm: eps must be positive and finite, got {eps!r}")
        if not 0 < momentum <= 1:
            raise ConfigError(f"BatchNorm: momentum must be above 0 and at most 1, got {momentum!r}")
        self.eps, self.momentum = float(eps), float(momentum)
        self.synchronized = self.over_processes = bool(synchronized)  # the latter is what training may switch
        per_channel = shape[:1] + (1,) * len(shape[1:])
        self.log_scale = nn.Parameter(torch.zeros(per_channel)) if affine else None
        self.shift = nn.Parameter(torch.zeros(per_channel)) if affine else None
        self.register_buffer("running_mean", torch.zeros(per_channel))
        self.register_buffer("running_var", torch.ones(per_channel))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """m and v; in training mode those of x, which the running ones then move towards."""
        if not self.training:
            return self.running_mean, self.running_var
        count = x.shape[0] * numel(self.in_shapes[0][1:])
        together = self.over_processes and several_processes()
        if together:  # a process may have no rows: it takes part nevertheless
            count = int(sum_over_processes(torch.tensor(count, device=x.device)))
        if count == 0:
            return self.running_mean, self.running_var
        if count == 1:
            raise InputError(
                "BatchNorm needs more than one value for each channel in training mode, got a batch of one: "
                "call eval() or use fk.ActNorm"
            )
        dims = (0, *range(2, x.dim()))
        total = sum_over_processes if together else _unchanged
        mean = (total(x.sum(dims)) / count).view(self.running_mean.shape)
        variance = (total((x - mean).square().sum(dims)) / count).view(self.running_var.shape)
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * (count / (count - 1)), self.momentum)
        return mean, variance

    def _log_scale(self, variance: Tensor) -> Tensor:
        log_scale = -0.5 * (variance + self.eps).log()
        return log_scale if self.log_scale is None else log_scale + self.log_scale

    def _log_det(self, log_scale: Tensor, batch: int) -> Tensor:
        return (log_scale.sum() * numel(self.in_shapes[0][1:])).expand(batch)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`((x - m) exp(s) / sqrt(v + eps) + b, log_det)`."""
        mean, variance = self._statistics(x)
        log_scale = self._log_scale(variance)
        y = (x - mean) * log_scale.exp()
        return y if self.shift is None else y + self.shift, self._log_det(log_scale, x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`((y - b) exp(-s) sqrt(v + eps) + m, log_det)`, with the running statistics."""
        if self.training:
            raise InputError(
                "BatchNorm has no inverse in training mode, where the statistics are those of another batch: "
                "call eval() first"
            )
        log_scale = self._log_scale(self.running_var)
        centred = y if self.shift is None else y - self.shift
        return torch.addcmul(self.running_mean, centred, (-log_scale).exp()), -self._log_det(log_scale, y.shape[0])

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _scale_examples() -> list[Example]:
    return [Example(()), Example((3,)), Example((1, 4)), Example((2, 2, 3))]


@register("flowkit.learned_scale", examples=_scale_examples)
class LearnedScale(Bijection):
    """y = x exp(s), with a learned s for every element, where `fk.ElementwiseAffine` has one for every channel.

    forward: y = x exp(s), log-det the sum of s. inverse: x = y exp(-s), log-det minus that.

    Nothing bounds s: exp overflows float32 beyond 88. It starts as the identity. NICE ends with it.

    Shapes: x `(B, *shape)`, log_det `(B,)`. State: the parameter `log_scale`, of the event's shape.

    Args:
        shape: event shape, or `()`.

    Source: Dinh et al., NICE, 2015, section 3.3; FrEIA's `LearnedElementwiseScaling`, whose inverse has the log-det's
        sign wrong in version 0.2.

    >>> LearnedScale((2, 3))(torch.ones(5, 2, 3))[1].tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    constant_log_det = True

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape)
        self.log_scale = nn.Parameter(torch.zeros(self.in_shapes[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x exp(s), log_det)`."""
        return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y exp(-s), log_det)`."""
        return y * (-self.log_scale).exp(), -self.log_scale.sum().expand(y.shape[0])

    def log_scales(self, x: Tensor) -> Tensor:
        """s, in x's shape."""
        return self.log_scale.expand(x.shape)

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])


def _unchanged(value: Tensor) -> Tensor:
    return value


def over_processes(*sums: Tensor) -> tuple[Tensor, ...]:
    """Sums over all processes, where there are several."""
    if distributed.is_available() and distributed.is_initialized():
        for each in sums:
            distributed.all_reduce(each)
    return sums
