"""Construction: reproducible from torch's seed alone, on the meta device too, and quiet."""

from __future__ import annotations

import contextlib
import io

import torch

from flowkit.testing.findings import Findings
from flowkit.testing.laws.purity import random_states
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject, isolated, refuse


@law(number=14)
def construction_reproducible(subject: Subject, expect: Findings) -> None:
    """`torch.manual_seed` alone reproduces construction: the same state, name by name."""
    first, second = subject.new().state_dict(), subject.new().state_dict()
    if expect(list(first) == list(second), "two constructions name their state differently"):
        for name, value in first.items():
            expect.equal(second[name], value, f"two constructions under one seed differ in '{name}'")


@law(number=14)
def construction_quiet(subject: Subject, expect: Findings) -> None:
    """Constructing leaves numpy's and Python's random state untouched, and prints nothing."""
    numpy_state, python_state = random_states()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        subject.new()
    numpy_after, python_after = random_states()
    expect(numpy_after == numpy_state, "constructing draws from numpy's global generator")
    expect(python_after == python_state, "constructing draws from Python's global generator")
    expect(not printed.getvalue(), "constructing prints")


@law(number=14)
def construction_on_meta(subject: Subject, expect: Findings) -> None:
    """Constructing on the meta device works, gives the same shapes, and draws no random numbers."""
    build = subject.build
    if build is None:
        refuse("only an instance is given; pass a factory, a class or a registered name")
    with isolated(subject.seed, subject.dtype):
        before = torch.get_rng_state()
        with torch.device("meta"):
            bijection = build()
        untouched = torch.equal(torch.get_rng_state(), before)
    expect(untouched, "constructing on the meta device draws from torch's generator")
    original = subject.original
    for name in ("in_shapes", "out_shapes", "condition_shapes"):
        got, want = getattr(bijection, name), getattr(original, name)
        expect(got == want, f"{name} is {got} on the meta device, {want} off it")
    got_shapes = {n: tuple(t.shape) for n, t in bijection.state_dict().items()}
    want_shapes = {n: tuple(t.shape) for n, t in original.state_dict().items()}
    expect(got_shapes == want_shapes, "the state has other names or shapes on the meta device")


@law(number=14)
def construction_dtype(subject: Subject, expect: Findings) -> None:
    """Constructing under a float32 default gives float32 numbers, under float64 float64 ones."""
    for dtype in (torch.float32, torch.float64):
        for name, tensor in subject.new(dtype).state_dict().items():
            if tensor.is_floating_point():
                expect(tensor.dtype == dtype, f"'{name}' is {tensor.dtype} under a default of {dtype}")
