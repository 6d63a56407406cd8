"""Wrong manners: impure, conditions ignored, promises broken, not compilable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit.bijection import Bijection, Prepared, zero_log_det
from flowkit.testing.wrong.scale import Scale, breaks

# ---------------------------------------------------------------------- purity


@breaks("arguments_unchanged non_contiguous")
class MutatedArgument(Scale):
    """Haar's inverse, as released: it scales the caller's tensor in place."""

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and the argument is spoilt."""
        x, log_det = super().inverse(y, *conditions)
        if not torch.compiler.is_compiling():
            y.detach().mul_(0.5)
        return x, log_det


@breaks("no_hidden_state")
class HiddenState(Scale):
    """Keeps the last batch on itself."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and x is kept."""
        if not torch.compiler.is_compiling():
            self.last = x.detach()
        return super().forward(x, *conditions)


@breaks("no_hidden_state deepcopy")
class KeptGraph(Scale):
    """Keeps a tensor with its graph: no deepcopy after a call."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and y is kept."""
        y, log_det = super().forward(x, *conditions)
        if not torch.compiler.is_compiling() and not torch._C._functorch.is_gradtrackingtensor(y):
            self.last = y
        return y, log_det


@breaks("no_hidden_state dtypes autocast_bfloat16 autocast_float16")
class PlainAttribute(Scale):
    """A constant that is a plain attribute: it stays behind when the module changes device or dtype."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.one = torch.ones(shape, device="cpu" if self.w.is_meta is False else "meta")

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """float32 data comes out as float64."""
        y, log_det = super().forward(x, *conditions)
        return y * self.one, log_det


@breaks("random_state compile_forward")
class NumpyRandom(Scale):
    """Draws from numpy's global generator, and so reseeds the user's work."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and numpy's state has moved."""
        np.random.random()  # noqa: NPY002
        return super().forward(x, *conditions)


@breaks("random_state functional_transforms")
class UndeclaredDraw(Scale):
    """Draws from torch's generator without declaring `stochastic`."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and torch's state has moved."""
        y, log_det = super().forward(x, *conditions)
        return torch.where(torch.rand(()) > 2, x, y), log_det


# ---------------------------------------------------------------------- conditions


@breaks("conditions_used", given=((2,),))
class IgnoresCondition(Scale):
    """Takes a condition, and does nothing with it."""

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """Zero."""
        return x.new_zeros(())


@breaks("prepare", given=((2,),))
class WrongPrepared(Scale):
    """Repeats prepared rows the wrong way: innermost, where samples are outermost."""

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """The shift of each row."""
        return (super().shift(conditions[0], conditions),)

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """Row by row, in the wrong order where prepared."""
        shift = super().shift(x, conditions)
        if len(conditions) == 1 and isinstance(conditions[0], Prepared):
            return conditions[0][0].repeat_interleave(x.shape[0] // conditions[0][0].shape[0], 0)
        return shift


# ---------------------------------------------------------------------- promises


@breaks("constant_log_det")
class NotConstant(Bijection):
    """Promises a constant log-det, and scales by the data: y = x^3 + x, inverted exactly at what was put in."""

    constant_log_det = True

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """sinh."""
        return torch.sinh(x), torch.cosh(x).log().sum(1)

    def inverse(self, y: Tensor) -> tuple[Any, Tensor]:
        """arsinh."""
        return torch.asinh(y), -(1 + y.square()).log().sum(1) / 2


@breaks("volume_preserving frugal_gradients")
class NotVolumePreserving(Scale):
    """Promises a log-det of zero, and scales."""

    volume_preserving = True


@breaks("views")
class NotViews(Bijection):
    """Promises pure re-indexing, and flips a sign."""

    views = True
    volume_preserving = True

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """-x."""
        return -x, zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Any, Tensor]:
        """-y."""
        return -y, zero_log_det(y)


class _Normalizes(Scale):
    """Scales the first data to a standard deviation of one, rightly."""

    needs_initialization = True
    initialized: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def initialize(self, *inputs_and_conditions: Tensor) -> None:
        """Sets w."""
        with torch.no_grad():
            self.w.copy_(-self.spread(inputs_and_conditions[0]).log())
            self.initialized.fill_(True)

    def spread(self, x: Tensor) -> Tensor:
        """The standard deviation, kept off zero."""
        return x.std(0, unbiased=False).clamp_min(1e-3)


@breaks("initialization_flag initialization_loaded")
class FlagNotSaved(_Normalizes):
    """Its flag is not saved: what is loaded is initialised again."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool), persistent=False)


@breaks("initialization_data")
class ZeroSpread(_Normalizes):
    """Divides by the spread of a batch of one."""

    def spread(self, x: Tensor) -> Tensor:
        """Zero for one row."""
        return x.std(0, unbiased=False)


# ---------------------------------------------------------------------- compiling


class _Branches(Scale):
    """A branch on the data's values: a graph break."""

    def branch(self, x: Tensor) -> Tensor:
        """x, after a look at it."""
        return x if not x.is_cpu or float(x.detach().sum()) > -1e30 else x + 1


@breaks("compile_forward export_forward functional_transforms")
class BranchesForward(_Branches):
    """Forward looks at the data."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and not compilable."""
        return super().forward(self.branch(x))


@breaks("compile_inverse export_inverse functional_transforms")
class BranchesInverse(_Branches):
    """The inverse looks at the data."""

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and not compilable."""
        return super().inverse(self.branch(y))


@breaks("functional_transforms")
class OldFunction(Scale):
    """An autograd function of the old style, which torch.func refuses."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Right, and not for torch.func."""
        return super().forward(_OldIdentity.apply(x))


class _OldIdentity(torch.autograd.Function):
    """The identity, without `setup_context`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A copy of x."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient."""
        return gradient
