"""Purity: arguments stay as they are, nothing is kept between calls, no random state but torch's is touched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject

METHODS = ("forward", "inverse", "inverse_only", "log_scales", "prepare")


def _calls(subject: Subject) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    for method in METHODS:
        if method == "prepare":
            if subject.original.condition_shapes:
                yield method, subject.conditions()
        else:
            yield method, subject.points("inverse" if method.startswith("inverse") else "forward")


@law(number=1)
def arguments_unchanged(subject: Subject, expect: Findings) -> None:
    """Arguments are bit-identical after every call, with and without grad."""
    for method, arguments in _calls(subject):
        for grad in (False, True):
            given = [a.clone() for a in arguments]
            with torch.set_grad_enabled(grad):
                getattr(subject.bijection, method)(*given)
            for i, (after, before) in enumerate(zip(given, arguments, strict=True)):
                if not expect.equal(after, before, f"{method} changes its argument {i}"):
                    break
                expect(after._version == 0, f"{method} writes to its argument {i}")


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors on the module and its children that are neither parameters nor buffers, by dotted name."""
    found: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if name in ("_parameters", "_buffers", "_modules", "_built_with"):
                continue
            for tensor in _tensors_in(value, depth=3):
                found[f"{prefix}.{name}".lstrip(".")] = tensor
    return found


def _tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors_in(each, depth - 1)
    elif depth and isinstance(value, dict):
        for each in value.values():
            yield from _tensors_in(each, depth - 1)


@law(number=1)
def no_hidden_state(subject: Subject, expect: Findings) -> None:
    """All state is a parameter or a buffer, a call changes none of it, and the same call twice gives the same."""
    bijection = subject.bijection
    for name in plain_tensors(bijection):
        expect(False, f"'{name}' is a tensor that is neither a parameter nor a buffer")
    before = {name: value.clone() for name, value in bijection.state_dict().items()}
    attributes = set(plain_tensors(bijection))
    for method in ("forward", "inverse"):
        points = subject.points(method)
        other = subject.points(method, seed=5)
        first, first_log_det = subject.call(bijection, method, *points)
        subject.call(bijection, method, *other)
        again, log_det = subject.call(bijection, method, *points)
        same = all(torch.equal(a, b) for a, b in zip((*first, first_log_det), (*again, log_det), strict=True))
        expect(same, f"{method} gives something else at a later call with the same arguments")
    for name in set(plain_tensors(bijection)) - attributes:
        expect(False, f"'{name}' is kept between calls")
    after = bijection.state_dict()
    expect(list(after) == list(before), "a call changes the names of the state")
    for name, value in before.items():
        expect.equal(after.get(name, value), value, f"a call in eval mode changes '{name}'")


def random_states() -> tuple[Any, Any]:
    """numpy's and Python's global random state, comparable by `==`."""
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 (it is the global state that must not move)
    return (state[0], state[1].tobytes(), *state[2:]), random.getstate()


@law(number=14)
def random_state(subject: Subject, expect: Findings) -> None:
    """Calls leave numpy's and Python's random state untouched, and torch's too unless `stochastic` is declared."""
    for method, arguments in _calls(subject):
        bijection = subject.bijection
        numpy_state, python_state = random_states()
        torch_state = torch.get_rng_state()
        getattr(bijection, method)(*arguments)
        numpy_after, python_after = random_states()
        expect(numpy_after == numpy_state, f"{method} draws from numpy's global generator")
        expect(python_after == python_state, f"{method} draws from Python's global generator")
        if not subject.original.stochastic:
            moved = not torch.equal(torch.get_rng_state(), torch_state)
            expect(not moved, f"{method} draws from torch's generator, and stochastic is not declared")
