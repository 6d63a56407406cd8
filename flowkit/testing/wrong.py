"""A deliberately wrong bijection for every law: what the kit catches, and how a correct-looking op goes wrong.

Each is `Scale`, y = x exp(w), with one defect that was found in somebody's code. `WRONG` lists them, each with the laws
that it breaks: those, and no other.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, zero_log_det
from flowkit.registry import Example, register

T = TypeVar("T", bound=type[Bijection])


@dataclass(frozen=True)
class Wrong:
    """A wrong bijection, the arguments it is tried with, and the names of the laws that it breaks."""

    cls: type[Bijection]
    example: Example
    breaks: frozenset[str]


WRONG: dict[str, Wrong] = {}


def breaks(laws: str, *shapes: tuple[int, ...], **config: Any) -> Callable[[T], T]:
    """List a wrong bijection, with the laws that it breaks."""

    def decorate(cls: T) -> T:
        WRONG[cls.__name__] = Wrong(cls, Example(*(shapes or ((3,),)), **config), frozenset(laws.split()))
        return cls

    return decorate


class Scale(Bijection):
    """y = x exp(w), with an honest log-det; conditions, where there are any, shift by their mean."""

    def __init__(self, shape: tuple[int, ...], given: Any = ()) -> None:
        super().__init__(shape, given=given)
        self.w = nn.Parameter(torch.zeros(shape))

    def log_det(self, x: Tensor) -> Tensor:
        """The sum of w, for every row."""
        return self.w.sum().expand(x.shape[0])

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """The mean of every condition, `(B, 1, ...)`."""
        rows = [c.reshape(c.shape[0], *[1] * (x.dim() - 1), c[:1].numel()).mean(-1) for c in conditions if c.shape[0]]
        return sum(rows, x.new_zeros(()))

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """y and the log-det."""
        return x * self.w.exp() + self.shift(x, conditions), self.log_det(x)

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """x and minus the log-det."""
        return (y - self.shift(y, conditions)) * (-self.w).exp(), -self.log_det(y)


# ---------------------------------------------------------------------- exactness


@breaks("log_det_forward log_det_inverse")
class LogDetSign(Scale):
    """The log-det of the wrong direction, both ways, so that the two still cancel."""

    def log_det(self, x: Tensor) -> Tensor:
        """The wrong sign."""
        return -super().log_det(x)


@breaks("log_det_inverse log_det_opposite")
class InverseLogDetSign(Scale):
    """The inverse returns forward's log-det."""

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """The right x, the wrong log-det."""
        return super().inverse(y, *conditions)[0], self.log_det(y)


@breaks("log_det_forward log_det_inverse", (2, 4, 4))
class MissingFactor(Scale):
    """A scale per channel whose log-det forgets how many pixels it scales."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.w = nn.Parameter(torch.zeros(shape[0], 1, 1))


@breaks("log_det_shape empty_batch leading_dimensions data_parallel", (2, 2, 2))
class LogDetMap(Scale):
    """A log-det for each pixel: `(B, H, W)`."""

    def log_det(self, x: Tensor) -> Tensor:
        """Not summed over the pixels."""
        return self.w.sum(0).expand(x.shape[0], *self.w.shape[1:])


@breaks("round_trip")
class WrongInverse(Scale):
    """An inverse that misses a shift; its Jacobian is right."""

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Off by a thousandth."""
        x, log_det = super().inverse(y, *conditions)
        return x + 1e-3, log_det


@breaks("shapes empty_batch leading_dimensions")
class WrongShape(Scale):
    """What it gives is not what out_shapes says."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.out_shapes = ((*shape, 1),)


@breaks("inverse_only")
class WrongInverseOnly(Scale):
    """A shortcut for sampling that went out of date."""

    def inverse_only(self, *outputs_and_conditions: Tensor) -> Any:
        """Forgets the scale."""
        return outputs_and_conditions[0]


# ---------------------------------------------------------------------- gradients


@breaks("log_det_gradients")
class DeadGradient(Scale):
    """A log-det without gradient: training moves the data and never pays for it."""

    def log_det(self, x: Tensor) -> Tensor:
        """Detached."""
        return super().log_det(x).detach()


class _WrongExp(torch.autograd.Function):
    """exp with the derivative of another function."""

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        """exp(w)."""
        return w.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep what backward needs."""
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Twice what it should be."""
        return 2 * gradient * ctx.saved_tensors[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], w: Tensor) -> tuple[Tensor, Any]:
        """Rows are alike."""
        return _WrongExp.apply(w), in_dims[0]


@breaks("output_gradients")
class WrongGradient(Scale):
    """A hand-written backward that is wrong in the weights alone."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """The right y."""
        return x * _WrongExp.apply(self.w), self.log_det(x)


@breaks("parameters_used data_parallel")
class UnusedParameter(Scale):
    """A parameter that nothing depends on: DDP waits for its gradient."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.idle = nn.Parameter(torch.zeros(1))


# ---------------------------------------------------------------------- purity


@breaks("arguments_unchanged")
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


# ---------------------------------------------------------------------- precision


@breaks("dtypes")
class LogDetDtype(Bijection):
    """A log-det of the default dtype, whatever the data's: no float64 anywhere."""

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """The swap."""
        return x.flip(1), torch.zeros(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Any, Tensor]:
        """The swap."""
        return y.flip(1), torch.zeros(y.shape[0])


class _HalfLogDet(Scale):
    """A log-det that went through a matrix product, and so through autocast."""

    def log_det(self, x: Tensor) -> Tensor:
        """Half precision under autocast."""
        return (x.new_ones(x.shape[0], self.w.numel()) @ self.w.reshape(-1, 1)).squeeze(1)


@breaks("autocast_bfloat16 autocast_float16")
class HalfLogDet(_HalfLogDet):
    """A half-precision log-det under any autocast."""


@breaks("autocast_bfloat16")
class BFloat16LogDet(_HalfLogDet):
    """Guards its log-det against float16 alone."""

    def log_det(self, x: Tensor) -> Tensor:
        """Half precision under bfloat16 autocast."""
        return super().log_det(x).to(torch.promote_types(self.w.dtype, torch.bfloat16)) if _autocast_is(torch.float16) else super().log_det(x)


@breaks("autocast_float16")
class Float16LogDet(_HalfLogDet):
    """Guards its log-det against bfloat16 alone."""

    def log_det(self, x: Tensor) -> Tensor:
        """Half precision under float16 autocast."""
        return super().log_det(x).to(self.w.dtype) if _autocast_is(torch.bfloat16) else super().log_det(x)


def _autocast_is(dtype: torch.dtype) -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype


@breaks("channels_last non_contiguous", (2, 2, 3))
class NeedsContiguous(Scale):
    """`view` where `reshape` is meant."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Refuses tensors of other strides."""
        y, log_det = super().forward(x.view(x.shape[0], self.w.numel()).view(x.shape))
        return y, log_det


@breaks("channels_last", (2, 2, 3))
class ChannelsLast(Scale):
    """Takes the memory format for the shape."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Wrong for channels_last images."""
        y, log_det = super().forward(x)
        if torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return y, log_det
        return y.flip(1), log_det


# ---------------------------------------------------------------------- batches


@breaks("empty_batch leading_dimensions")
class EmptyBatch(Scale):
    """Cannot tell -1 from a batch of no rows."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Refuses an empty batch."""
        return super().forward(x.reshape(x.shape[0], -1).reshape(x.shape))


@breaks("rows_alone")
class Squeezes(Scale):
    """Takes a batch of one for no batch."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Drops a batch of one."""
        return x.squeeze(0) * self.w.exp(), self.log_det(x)


@breaks("non_contiguous")
class Strides(Scale):
    """Takes tensors of other strides for something else."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Wrong for strided data."""
        y, log_det = super().forward(x)
        return (y if torch.compiler.is_compiling() or x.is_contiguous() else y + 1), log_det


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
        from flowkit.bijection import Prepared

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


@breaks("volume_preserving")
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

    needs_initialization: ClassVar[bool] = True
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
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        """A copy of x."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """The gradient."""
        return gradient


# ---------------------------------------------------------------------- state


@breaks("pickling spawn data_parallel")
class HoldsLambda(Scale):
    """A lambda as an attribute: no pickle."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.activation = lambda x: x


@breaks("spawn data_parallel")
class ReadsItsProcess(Scale):
    """Leaves a part of its state with the process that made it."""

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """Another number in another process."""
        return x.new_full((), float(os.getpid() % 1000))


@breaks("state_dict graph_file file_in_another_process")
@register("wrong.forgets_constant")
class ForgetsConstant(Scale):
    """A random constant that is not in the state_dict."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer("offset", torch.randn(shape), persistent=False)

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Shifted by the constant."""
        y, log_det = super().forward(x)
        return y + self.offset, log_det

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """Shifted back."""
        return super().inverse(y - self.offset)


@breaks("file_in_another_process")
@register("wrong.process_constant")
class ProcessConstant(ForgetsConstant):
    """A constant made from the process it was built in."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.offset.fill_(os.getpid() % 1000 + 1)


@breaks("state_names state_dict construction_reproducible construction_on_meta graph_file file_in_another_process")
@register("wrong.id_names")
class IdNames(Scale):
    """A parameter named by `id()`: the name depends on what was allocated before."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.name = f"v_{id(self)}"
        self.register_parameter(self.name, nn.Parameter(torch.zeros(shape)))

    def shift(self, x: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """The parameter of that name."""
        return self._parameters[self.name]  # type: ignore[return-value]


# ---------------------------------------------------------------------- construction


@breaks("construction_quiet construction_reproducible construction_on_meta state_dict state_names")
class NumpyConstruction(Scale):
    """A constant from numpy's global generator: torch's seed does not reproduce it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer(f"offset_{np.random.randint(1 << 30)}", torch.zeros(shape))  # noqa: NPY002


@breaks("construction_quiet")
class Prints(Scale):
    """Prints when constructed, and shuffles with Python's generator."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        random.random()
        print("constructed")  # noqa: T201


@breaks("construction_reproducible")
class CountsInstances(Scale):
    """Its start depends on how many there were before."""

    count: ClassVar[int] = 0

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        CountsInstances.count += 1
        nn.init.constant_(self.w, CountsInstances.count)


@breaks("construction_on_meta")
class NotOnMeta(Scale):
    """Looks at its own weights while it is constructed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if float(self.w.detach().sum()) > 1:
            self.w.data.zero_()


@breaks("construction_dtype")
class FixedDtype(Scale):
    """A constant of a fixed dtype, whatever the default."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
