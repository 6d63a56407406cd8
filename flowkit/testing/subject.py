"""What a law is tried on: one bijection with random weights, and data that fits it."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, as_tuple
from flowkit.errors import InputError
from flowkit.registry import Example, examples_of, lookup
from flowkit.testing.findings import NotApplicable

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # |err| <= tolerance (1 + |ref|), the worst element
REDRAW = 0.5  # log-scales of a few tenths: far from the identity, and not so far that float64 runs out of digits
ROWS = 3

Draw = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Origin:
    """Where a subject's bijection comes from, so that another process can build it again.

    Attributes:
        module: that holds the class or factory.
        qualname: its name there; empty where it is found by the registered name.
        name: the registered name, or None.
        example: the arguments; None for a factory without arguments.
        index: which of the registered examples this is; None where it is not one.
    """

    module: str
    qualname: str = ""
    name: str | None = None
    example: Example | None = None
    index: int | None = None

    def build(self) -> Bijection:
        """A new instance."""
        target: Any = importlib.import_module(self.module)
        if self.name is not None:
            target = lookup(self.name)
        else:
            for part in self.qualname.split("."):
                target = getattr(target, part)
        if self.index is not None and self.name is not None:
            return examples_of(self.name)[self.index].build(target)
        return target() if self.example is None else self.example.build(target)


def importable(thing: Any) -> bool:
    """Whether another process finds this class or function by its module and name."""
    module, qualname = getattr(thing, "__module__", "__main__"), getattr(thing, "__qualname__", "<locals>")
    if module == "__main__" or "<" in qualname:
        return False
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return found is thing


class Subject:
    """One bijection under test.

    Args:
        title: how reports call it.
        build: makes it; None where only an instance is given.
        instance: copied, never touched; None where it is built.
        origin: how another process builds it; None where it cannot.
        writable: whether a file can hold it, its class being registered.
        dtype: that numbers are judged in.
        seed: of weights and data.
        rows: the batch.
        tolerance: None is 1e-9 in float64, 1e-4 in float32.
        inputs: draws that many rows of data; by default the bijection's own `example_inputs(rows)`, else normal.
        conditions: draws the conditions; by default `example_conditions(rows)`, else normal.
    """

    def __init__(
        self,
        title: str,
        *,
        build: Callable[[], Bijection] | None = None,
        instance: Bijection | None = None,
        origin: Origin | None = None,
        writable: bool = False,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        rows: int = ROWS,
        tolerance: float | None = None,
        inputs: Draw | None = None,
        conditions: Draw | None = None,
    ) -> None:
        self.title, self.build, self.origin, self.writable = title, build, origin, writable
        self.dtype, self.seed, self.rows = dtype, seed, rows
        self._instance, self._tolerance, self._draw_inputs, self._draw_conditions = (
            instance,
            tolerance,
            inputs,
            conditions,
        )
        self.notes: list[str] = []

    # ------------------------------------------------------------------ the bijection

    @functools.cached_property
    def original(self) -> Bijection:
        """The bijection as it was built or given; not to be called or changed."""
        return self._instance if self._instance is not None else self.new()

    def new(self, dtype: torch.dtype | None = None) -> Bijection:
        """A newly built one, its constants computed in `dtype`; not applicable where only an instance is given."""
        if self.build is None:
            raise NotApplicable("only an instance is given; pass a factory, a class or a registered name")
        with isolated(self.seed, dtype or self.dtype):
            return self.build()

    @functools.cached_property
    def _redrawn(self) -> Bijection:
        source = self.original
        try:
            bijection = copy.deepcopy(source)
        except Exception:  # the law on deepcopy says so; the other laws can still speak on a new one
            if self.build is None:
                raise
            bijection = self.new()
        return self.prepared(bijection)

    def prepared(self, bijection: Bijection) -> Bijection:
        """That bijection in eval mode and this subject's dtype, with its weights redrawn."""
        bijection.to(self.dtype).eval()
        redraw_weights(bijection, self.seed)
        return bijection

    @property
    def bijection(self) -> Bijection:
        """A fresh copy, in eval mode, with random weights: the same at every access."""
        try:
            return copy.deepcopy(self._redrawn)
        except Exception:
            if self.build is None:
                raise
            return self.prepared(self.new())

    @functools.cached_property
    def tolerance(self) -> float:
        """Numbers are judged by |err| <= tolerance (1 + |ref|)."""
        declared = self.original.tolerance if self.original.iterative else 0.0
        if self._tolerance is not None:
            return max(self._tolerance, declared)
        usual = TOLERANCES.get(self.dtype, 1e-2)
        coarse = [b.dtype for b in self.original.buffers() if b.is_floating_point() and b.dtype != self.dtype]
        if self._instance is not None and coarse:
            usual = max(usual, *(TOLERANCES.get(dtype, 1e-2) for dtype in coarse))
            self.notes.append(
                f"constants of the instance are {coarse[0]}, so it is judged at {usual:g}; a factory is judged at 1e-9"
            )
        return max(usual, declared)

    # ------------------------------------------------------------------ data

    def inputs(self, rows: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Data `(rows, *shape)` for each input; some rows are wide, so that tails are reached."""
        rows = self.rows if rows is None else rows
        draw = self._draw_inputs or getattr(self.original, "example_inputs", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 7919 * (seed + 1))
            if draw is not None:
                return tuple(self._cast(x) for x in as_tuple(draw(rows)))
            drawn = [torch.randn(rows, *shape, dtype=torch.float64) for shape in self.original.in_shapes]
        for x in drawn:
            x[2::3] *= 3
        return tuple(self._cast(x) for x in drawn)

    def conditions(self, rows: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """A tensor `(rows, *shape)` for each condition: normal, or labels 0 and 1 where integers are taken."""
        rows = self.rows if rows is None else rows
        draw = self._draw_conditions or getattr(self.original, "example_conditions", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 104729 * (seed + 1))
            if draw is not None:
                return tuple(self._cast(c) for c in as_tuple(draw(rows)))
            return tuple(
                torch.randint(0, 2, (rows, *shape))
                if integer
                else self._cast(torch.randn(rows, *shape, dtype=torch.float64))
                for shape, integer in zip(self.original.condition_shapes, self._integer_conditions(), strict=True)
            )

    def _integer_conditions(self) -> list[bool]:
        wires = getattr(getattr(self.original, "graph", None), "conditions", None)
        if wires is not None:
            return [wire.dtype is not None and not wire.dtype.is_floating_point for wire in wires]
        return [self.original.integer_conditions] * len(self.original.condition_shapes)

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value

    def arguments(self, rows: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs, then conditions."""
        return (*self.inputs(rows, seed), *self.conditions(rows, seed))

    def call(self, bijection: nn.Module, method: str, *arguments: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """`forward` or `inverse` as `(tensors, log_det)`; what a stochastic one draws is the same at every call.

        It gets copies of the arguments: one that spoils them breaks the law on that, not every law that looks again.
        """
        return self.call_with(bijection, method, *(a.clone() if isinstance(a, Tensor) else a for a in arguments))

    def call_with(self, bijection: nn.Module, method: str, *arguments: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """`call` with these very tensors, strides and all."""
        if self.original.stochastic:
            torch.manual_seed(self.seed)
        value = (bijection if method == "forward" else getattr(bijection, method))(*arguments)
        if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[1], Tensor):
            raise InputError(f"{method} must return (output or tuple of outputs, log_det), got {type(value).__name__}")
        return as_tuple(value[0]), value[1]

    def points(self, method: str, rows: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Arguments of `forward`, or of `inverse`: the outputs at other data, then the conditions."""
        arguments = self.arguments(rows, seed)
        if method == "forward":
            return arguments
        arguments = (*self.inputs(rows, seed + 1), *arguments[self.arity("forward") :])
        with torch.no_grad():
            outputs, _ = self.call(self.bijection, "forward", *arguments)
        return (*(y.detach().clone() for y in outputs), *arguments[self.arity("forward") :])

    def arity(self, method: str) -> int:
        """How many data tensors the method takes, before the conditions."""
        return len(self.original.in_shapes if method == "forward" else self.original.out_shapes)

    def exempt(self, *promises: str) -> None:
        """Not applicable to a bijection that declares one of these."""
        for promise in promises:
            if getattr(self.original, promise):
                refuse(f"exempt: {promise}")


def refuse(reason: str) -> NoReturn:
    """Skip the law."""
    raise NotApplicable(reason)


class Direction(nn.Module):
    """One direction of a bijection as a module of its own, for what only knows `forward`: compile, export, DDP."""

    def __init__(self, bijection: Bijection, method: str) -> None:
        super().__init__()
        self.bijection, self.inverting = bijection, method == "inverse"

    def forward(self, *arguments: Tensor) -> tuple[Any, Tensor]:
        """The bijection's forward or inverse."""
        return self.bijection.inverse(*arguments) if self.inverting else self.bijection(*arguments)


def redraw_weights(module: nn.Module, seed: int) -> None:
    """Move every floating parameter away from where it starts; identity starts prove nothing.

    Added to what is there, so that a well-conditioned start stays so; matrices are scaled by their fan-in.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                fan_in = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 1
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((REDRAW / math.sqrt(fan_in)) * noise.to(parameter))


@contextlib.contextmanager
def isolated(seed: int, default_dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """torch's random state seeded and the default dtype set for a while; the caller's are restored.

    Laws run under a float32 default whatever they judge in, because that is what users have: a constant that is made
    in a call without a dtype then shows.
    """
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(default_dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
