"""The contract of a bijection, on one page: everything else in flowkit is built on this class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowkit.shapes import Shape, as_shape, as_shapes

if TYPE_CHECKING:
    from flowkit.tape import Tape

Output = Tensor | tuple[Tensor, ...]
COMPILED = ("inverse", "inverse_only", "compiled_undo", "uncompiled")  # attributes that come of `fk.compile`
HALF = (torch.float16, torch.bfloat16)
EVENT_DIMS: tuple[tuple[int, ...], ...] = ((), (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))  # by a batch's rank


class Bijection(nn.Module):
    """An invertible map with a tractable log-determinant: the reversible op.

    Implementing one
    ----------------
    1. `__init__(self, *in_shapes, given=(), **config)`: event shapes of the inputs, shapes of the conditions, plain
       configuration. Call `super().__init__(*in_shapes, given=given)`, refuse what does not fit with a
       `fk.ShapeError`, and set `self.out_shapes` when it differs from the inputs'. Leave `given` out of the
       signature when the op takes no conditions. Height and width are read here and nowhere else.
    2. `forward(self, *inputs, *conditions) -> (output or tuple of outputs, log_det)`, data to latent.
    3. `inverse(self, *outputs, *conditions) -> (input or tuple of inputs, log_det)`, latent to data.
       Both work on exactly one batch dimension; `log_det` is the log of the absolute Jacobian determinant of the map
       just applied, `(B,)`, float32 or wider.
    4. All state is a parameter or a buffer. Arguments are never mutated, nothing is kept between calls, random
       numbers come from torch's generator alone.
    5. Promises are the class attributes below; the conformance kit checks each one.
    6. `@fk.register("prefix.name", examples=...)` makes it writable to files and tests it:
       `flowkit.testing.check_bijection`, or `flowkit check prefix.name`. Where the data or conditions are not any
       numbers, `example_inputs(self, rows)` and `example_conditions(self, rows)` draw some that are right.

    Attributes: `in_shapes`, `out_shapes`, `condition_shapes`, tuples of event shapes without the batch.
    """

    constant_log_det: bool = False  # the log-det depends on neither the data nor the conditions
    volume_preserving: bool = False  # the log-det is zero
    views: bool = False  # pure re-indexing: its transpose is its inverse
    needs_initialization: bool = False  # has `initialize` and a boolean buffer `initialized`
    stochastic: bool = False  # forward draws from torch's generator; its log-det may be an estimate or bound
    iterative: bool = False  # the inverse is found by iteration, to `tolerance`
    tolerance: float = 0.0
    slow_inverse: bool = False  # the inverse takes many passes, as an autoregressive map's: reverse mode avoids it
    adaptive: bool = False  # the number of steps depends on the data: not for full-graph compile or export
    dimension_changing: bool = False  # not a bijection in the strict sense: the likelihood is a bound
    inexact: str = ""  # with the above or `stochastic`: what `log_prob` then is, for `flow.exact` to say
    embedded: bool = False  # on a surface in more coordinates, whose area is the measure; constant along the normals
    integer_conditions: bool = False  # takes integer labels as they are

    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    condition_shapes: tuple[Shape, ...]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # Reverse mode enters by forward(..., carriers=...); an author's own forward never sees it.
        if "forward" in cls.__dict__:
            cls.forward = _with_carriers(cls.__dict__["forward"])  # type: ignore[method-assign]

    def __init__(self, *in_shapes: int | Sequence[int], given: int | Sequence = ()):
        super().__init__()
        self.in_shapes = self.out_shapes = tuple(as_shape(shape) for shape in in_shapes)
        self.condition_shapes = as_shapes(given)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in COMPILED}  # what is compiled is not copied

    # `Any` twice, so that a subclass may name its own arguments.
    def forward(self, *inputs_and_conditions: Any, **_: Any) -> tuple[Output, Tensor]:
        """Data to latent: `(output, log_det)`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, *outputs_and_conditions: Any, **_: Any) -> tuple[Output, Tensor]:
        """Latent to data: `(input, log_det)`, the log-det of the inverse map."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def inverse_only(self, *outputs_and_conditions: Any, **_: Any) -> Output:
        """The inverse without its log-det, for sampling; override where the log-det is costly."""
        return self.inverse(*outputs_and_conditions)[0]

    def prepare(self, *conditions: Any, **_: Any) -> tuple | None:
        """The part of the work that depends on the conditions alone, done once for many samples; None for no such part.

        `forward` and `inverse` then get one `fk.Prepared` in place of the conditions, while the data has S x R rows,
        samples outermost, for R rows of conditions: add with `fk.add_rows`.
        """
        return None

    def undo(
        self,
        outputs: Sequence[Tensor],
        conditions: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        grad_log_det: Tensor,
        tape: Tape,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
        """Reverse mode's step, fused: `(inputs, their gradients)`; None for the default.

        The default inverts without gradients, then runs `forward` with them: 5/3 of a plain step's work where
        sharing the subnet's run needs 4/3. Called without gradients; subnets are run through `tape.run`, which
        collects the gradients of conditions and parameters, and `tape.add` takes those found in closed form.
        """
        return None

    def initialize(self, *inputs_and_conditions: Any, **_: Any) -> None:
        """Set parameters from the first data; called by `flow.initialize` where `needs_initialization`."""

    def log_scales(self, *inputs_and_conditions: Any, **_: Any) -> Tensor | None:
        """The log-scales applied to this data, for `flow.trace`; None where the op has none."""
        return None


def _with_carriers(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, carriers: tuple | None = None) -> Any:
        if carriers is None:
            return forward(self, *args)
        from flowkit.backprop import step

        return step(self, args, carriers)

    return wrapped


class Prepared(tuple):
    """What `prepare` returned, passed to `forward` and `inverse` in place of the conditions."""

    __slots__ = ()


def add_rows(h: Tensor, prepared: Tensor) -> Tensor:
    """`h + prepared` where h has S x R rows, samples outermost, and `prepared` R: by view, nothing is expanded.

    Where no gradients are wanted, h is overwritten: pass what you have just computed.

    >>> add_rows(torch.zeros(4, 1), torch.tensor([[1.0], [2.0]])).flatten().tolist()
    [1.0, 2.0, 1.0, 2.0]
    """
    rows = prepared.shape[0]
    if h.dtype == prepared.dtype and may_overwrite():
        by_sample = h if h.shape[0] == rows or not rows else h.unflatten(0, (-1, rows))
        by_sample.add_(prepared)
        return h
    if h.shape[0] == rows:
        return h + prepared
    samples = h.shape[0] // rows if rows else 0
    return (h.unflatten(0, (samples, rows)) + prepared).flatten(0, 1)


def join(conditions: Sequence[Tensor]) -> Tensor | None:
    """The conditions concatenated on channels, `(B, C, ...)`; one alone is not copied, none is None."""
    if len(conditions) > 1:
        return torch.cat(tuple(conditions), 1)
    return conditions[0] if conditions else None


def may_overwrite() -> bool:
    """Whether an intermediate that nobody else holds may be overwritten: nothing is recorded, traced or transformed."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def as_tuple(output: Output) -> tuple[Tensor, ...]:
    """One tensor or several, as a tuple."""
    return output if isinstance(output, tuple) else (output,)


def event_sum(values: Tensor) -> Tensor:
    """Sum over every dimension but the batch, `(B, ...)` to `(B,)`, in float32 or wider."""
    dims = EVENT_DIMS[values.dim()] if values.dim() < len(EVENT_DIMS) else tuple(range(1, values.dim()))
    if values.dtype in HALF:
        values = values.float()
    return values.sum(dims) if dims else values


def zero_log_det(x: Tensor) -> Tensor:
    """The log-det of a volume-preserving map on the batch x: zeros `(B,)`, float32 or wider."""
    return x.new_zeros(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
