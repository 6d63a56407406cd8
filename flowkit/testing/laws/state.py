"""State: pickle, deepcopy, state_dict and files, within this process; `flowkit.testing.processes` has the rest."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import flowkit as fk
from flowkit.bijection import Bijection
from flowkit.testing.findings import Findings
from flowkit.testing.laws.batches import as_data, as_given
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject, importable, isolated, refuse

# Not bit for bit: tensors lie elsewhere in memory, and matrix products choose their kernels by alignment.
SAME = 1e-12


def _called(subject: Subject) -> Bijection:
    bijection = subject.bijection
    points = subject.points("forward")
    subject.call(bijection, "forward", *points)
    subject.call(bijection, "inverse", *subject.points("inverse"))
    return bijection


def _same(subject: Subject, expect: Findings, copied: Bijection, original: Bijection, text: str) -> None:
    for method in ("forward", "inverse"):
        points = subject.points(method)
        with torch.no_grad():
            want, want_log_det = subject.call(original, method, *points)
            got, log_det = subject.call(copied, method, *points)
        for a, b in zip((*got, log_det), (*want, want_log_det), strict=True):
            expect.close(a, b, f"{text}: {method} gives something else", SAME)


@law(number=7)
def deepcopy(subject: Subject, expect: Findings) -> None:
    """A deepcopy after calls, with grad, works, gives the same numbers, and shares nothing."""
    original = _called(subject)
    copied = copy.deepcopy(original)
    _same(subject, expect, copied, original, "a deepcopy")
    kept = {tensor.untyped_storage().data_ptr() for tensor in original.state_dict().values() if tensor.numel()}
    for name, tensor in copied.state_dict().items():
        expect(
            tensor.untyped_storage().data_ptr() not in kept or not tensor.numel(),
            f"a deepcopy shares '{name}' with the original",
        )


@law(number=7)
def pickling(subject: Subject, expect: Findings) -> None:
    """A pickle after calls, with grad, works and gives the same numbers."""
    if not importable(type(subject.original)):
        refuse("its class cannot be imported by name")
    original = _called(subject)
    _same(subject, expect, pickle.loads(pickle.dumps(original)), original, "a pickle")


@law(number=7)
def state_dict(subject: Subject, expect: Findings) -> None:
    """The state_dict, loaded strictly into one whose weights differ, gives the same numbers."""
    original, other = subject.bijection, subject.bijection
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(-1.7).add_(0.3)
    if subject.build is not None:
        # Its random constants differ, too, unless the state holds them.
        with isolated(subject.seed + 1, subject.dtype):
            other = subject.build().to(subject.dtype).eval()
    other.load_state_dict(original.state_dict(), strict=True)
    _same(subject, expect, other, original, "a state_dict")


def flow_numbers(flow: fk.Flow, inputs: tuple[Tensor, ...], conditions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """z, log-det, and x from z, as a flow gives them."""
    with torch.no_grad():
        given = as_given(flow, conditions)
        z, log_det = flow(as_data(flow, inputs), given=given)
        x, _ = flow.inverse(z, given=given)
    return (z, log_det, *(x.values() if isinstance(x, dict) else (x,)))


def save_or_refuse(subject: Subject, flow: fk.Flow, path: Path) -> None:
    """Save it; an instance or a factory may hold what has no written form, a registered example may not."""
    try:
        fk.save(flow, path)
    except fk.StorageError as error:
        if subject.origin is not None and subject.origin.name is not None:
            raise
        refuse(f"a file cannot hold it: {error}")


@law(number=7)
def graph_file(subject: Subject, expect: Findings) -> None:
    """`fk.save` and `fk.load` of `Flow(bijection)` give the same numbers."""
    if not subject.writable:
        refuse("its class is not registered, so a file cannot hold it")
    flow = fk.Flow(subject.bijection).to(subject.dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        save_or_refuse(subject, flow, path)
        torch.manual_seed(subject.seed + 1)
        loaded = fk.load(path)
    count = subject.arity("forward")
    arguments = subject.arguments()
    if subject.original.stochastic:
        torch.manual_seed(subject.seed)
    want = flow_numbers(flow, arguments[:count], arguments[count:])
    if subject.original.stochastic:
        torch.manual_seed(subject.seed)
    got = flow_numbers(loaded, arguments[:count], arguments[count:])
    for a, b in zip(got, want, strict=True):
        expect.close(a, b, "a file gives something else", SAME)
    state = loaded.state_dict()
    expect(list(state) == list(flow.state_dict()), "a file changes the names of the state")
    for name, value in flow.state_dict().items():
        expect.equal(state.get(name, value), value, f"a file changes '{name}'")
    expect(not loaded.training, "a loaded flow is not in eval mode")
