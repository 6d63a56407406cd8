"""Wrong numbers: exactness, gradients, precision, batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection
from flowkit.testing.wrong.scale import Scale, breaks

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


@breaks("log_det_shape empty_batch leading_dimensions data_parallel frugal_gradients", (2, 2, 2))
class LogDetMap(Scale):
    """A log-det for each pixel: `(B, H, W)`."""

    def log_det(self, x: Tensor) -> Tensor:
        """Not summed over the pixels."""
        return self.w.sum(0).expand(x.shape[0], *self.w.shape[1:])


@breaks("round_trip frugal_gradients")
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


@breaks("output_gradients second_derivatives")
class WrongGradient(Scale):
    """A hand-written backward that is wrong in the weights alone."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """The right y."""
        return x * _WrongExp.apply(self.w), self.log_det(x)


class _ExpOnce(_WrongExp):
    """exp with its derivative, which is taken for a constant."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Right, and detached."""
        return gradient * ctx.saved_tensors[0].detach()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], w: Tensor) -> tuple[Tensor, Any]:
        """Rows are alike."""
        return _ExpOnce.apply(w), in_dims[0]


@breaks("second_derivatives")
class WrongSecondDerivative(Scale):
    """A hand-written backward that is right once: penalties on gradients train on another figure than they show."""

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Any, Tensor]:
        """The right y."""
        return x * _ExpOnce.apply(self.w), self.log_det(x)


@breaks("parameters_used data_parallel")
class UnusedParameter(Scale):
    """A parameter that nothing depends on: DDP waits for its gradient."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.idle = nn.Parameter(torch.zeros(1))


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
        return (
            super().log_det(x).to(torch.promote_types(self.w.dtype, torch.bfloat16))
            if _autocast_is(torch.float16)
            else super().log_det(x)
        )


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


@breaks("frugal_gradients")
class WrongUndo(Scale):
    """Its fused step of reverse mode forgets the log-det's share in the gradient of w."""

    def undo(self, outputs: Any, conditions: Any, grad_outputs: Any, grad_log_det: Tensor, tape: Any) -> Any:
        """x and its gradient, and a gradient of w that is short of the log-det's."""
        grad = grad_outputs[0]
        tape.add(self, "w", (grad * outputs[0]).sum(0))
        return [outputs[0] * (-self.w).exp()], [grad * self.w.exp()]
