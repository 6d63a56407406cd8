"""Every registered bijection, in the configurations that it is tested with, with random weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten

import torch
from torch import Tensor

import flowkit as fk
from flowkit.cli.groups import unknown
from flowkit.cli.output import console
from flowkit.registry import Example
from flowkit.testing.subject import Subject, redraw_weights


@dataclass(frozen=True)
class Case:
    """A bijection with random weights in float64 and eval mode, and data for it.

    Attributes:
        name: what it is registered as.
        detail: its arguments.
        subject: the conformance kit's, for data.
        bijection: in float64.
    """

    name: str
    detail: str
    subject: Subject
    bijection: fk.Bijection

    def to(self, dtype: torch.dtype) -> fk.Bijection:
        """A copy in this dtype, of the same weights."""
        return copy.deepcopy(self.bijection).to(dtype)

    @property
    def has_domain(self) -> bool:
        """Whether it takes only some data, which must not be scaled."""
        return hasattr(self.bijection, "example_inputs")

    def data(
        self, rows: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Inputs, standard normal times `scale`, and conditions, `(rows, ...)`."""
        conditions = self.subject.conditions(rows)
        generator = torch.Generator().manual_seed(self.subject.seed + 1)
        if self.has_domain:
            inputs = self.subject.inputs(rows)
        else:
            shapes = self.bijection.in_shapes
            inputs = tuple(scale * torch.randn(rows, *s, generator=generator, dtype=torch.float64) for s in shapes)
        return tuple(i.to(dtype) for i in inputs), tuple(
            c.to(dtype) if c.is_floating_point() else c for c in conditions
        )


def bijections(only: Sequence[str] = ()) -> dict[str, type[fk.Bijection]]:
    """The registered bijections that keep the number of dimensions, by name.

    Raises:
        click.UsageError: a name in `only` is none of them.
    """
    found = {
        name: thing
        for name, thing in fk.registered().items()
        if inspect.isclass(thing)
        and issubclass(thing, fk.Bijection)
        and not thing.dimension_changing
        and fk.examples_of(name)
    }
    for name in only:
        if name not in found:
            raise unknown("bijection", name, found)
    return {name: thing for name, thing in found.items() if not only or name in only}


def cases(only: Sequence[str], seed: int, most: int) -> Iterator[Case]:
    """At most `most` configurations of each; one that needs a package that is not installed is left out, and said so.

    Raises:
        MissingDependencyError: it is one of `only`.
    """
    for name, cls in bijections(only).items():
        for example in fk.examples_of(name)[:most]:
            try:
                case = make(name, cls, example, seed)
            except fk.MissingDependencyError as error:
                if only:
                    raise
                console(error=True).print(f"left out: {name}: {error}", soft_wrap=True)
            else:
                yield case


def make(name: str, cls: type[fk.Bijection], example: Example, seed: int) -> Case:
    """One case, built in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bijection = example.build(cls).double().eval()
    finally:
        torch.set_default_dtype(before)
    redraw_weights(bijection, seed)
    detail = shorten(repr(example).removeprefix("Example(").removesuffix(")"), 80, placeholder=" ...")
    return Case(name, detail, Subject(name, instance=bijection, seed=seed), bijection)
