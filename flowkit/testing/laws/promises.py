"""Promises: the class attributes that a bijection declares, and data-dependent initialisation."""

from __future__ import annotations

import torch

from flowkit.bijection import Bijection
from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject, refuse

DIRECTIONS = ("forward", "inverse")


@law(number=2)
def constant_log_det(subject: Subject, expect: Findings) -> None:
    """A log-det that is promised to be constant depends on neither data nor conditions."""
    if not subject.original.constant_log_det:
        refuse("constant_log_det is not promised")
    for method in DIRECTIONS:
        with torch.no_grad():
            _, first = subject.call(subject.bijection, method, *subject.points(method))
            _, other = subject.call(subject.bijection, method, *subject.points(method, seed=3))
        reference = first.flatten()[:1]
        expect.close(
            torch.cat((first.flatten(), other.flatten())),
            reference.expand(first.numel() + other.numel()),
            f"{method}'s log-det varies",
        )


@law(number=2)
def volume_preserving(subject: Subject, expect: Findings) -> None:
    """A log-det that is promised to be zero is."""
    if not subject.original.volume_preserving:
        refuse("volume_preserving is not promised")
    for method in DIRECTIONS:
        _, log_det = subject.call(subject.bijection, method, *subject.points(method))
        expect.close(log_det, torch.zeros_like(log_det), f"{method}'s log-det is not zero")


@law(number=2)
def views(subject: Subject, expect: Findings) -> None:
    """A pure re-indexing, where promised, gives the very elements that it took, and its transpose is its inverse."""
    if not subject.original.views:
        refuse("views is not promised")
    count = subject.arity("forward")
    data = [x.requires_grad_() for x in subject.inputs()]
    outputs, log_det = subject.call(subject.bijection, "forward", *data, *subject.conditions())
    expect(not bool(log_det.any()), "a re-indexing has log-det zero")
    before = torch.cat([x.detach().reshape(subject.rows, -1) for x in data], 1)
    after = torch.cat([y.detach().reshape(subject.rows, -1) for y in outputs], 1)
    expect.equal(after.sort(1).values, before.sort(1).values, "the outputs are not the inputs' elements, each once")
    if not all(y.requires_grad for y in outputs):
        expect(False, "an output has no gradient")
        return
    cotangents = tuple(torch.randn_like(y) for y in outputs)
    transposed = torch.autograd.grad(outputs, data, cotangents)
    inverted, _ = subject.call(subject.bijection, "inverse", *cotangents, *subject.conditions())
    expect(len(inverted) == count, f"inverse gives {len(inverted)} tensors for {count} inputs")
    for a, b in zip(transposed, inverted, strict=False):
        expect.equal(a, b, "the transpose is not the inverse")


def _needs(subject: Subject) -> Bijection:
    if not subject.original.needs_initialization:
        refuse("it needs no initialisation")
    return subject.bijection


def _uninitialized(subject: Subject) -> Bijection:
    bijection = _needs(subject)
    flag = getattr(bijection, "initialized", None)
    if isinstance(flag, torch.Tensor):
        flag.fill_(False)
    return bijection


@law(number=12)
def initialization_flag(subject: Subject, expect: Findings) -> None:
    """A boolean buffer `initialized` is saved, false until `initialize`, and unmoved by forward and inverse."""
    bijection = _uninitialized(subject)
    flag = dict(bijection.named_buffers()).get("initialized")
    if not expect(flag is not None and flag.dtype == torch.bool, "there is no boolean buffer 'initialized'"):
        return
    expect("initialized" in bijection.state_dict(), "the buffer 'initialized' is not in the state_dict")
    points = subject.points("inverse")
    values, log_det = subject.call(bijection, "inverse", *points)
    expect(all(bool(v.isfinite().all()) for v in (*values, log_det)), "inverse before initialize is not finite")
    bijection.train()
    subject.call(bijection, "forward", *subject.points("forward"))
    expect(not bool(bijection.initialized), "a call marks it as initialised; only initialize may")
    bijection.initialize(*subject.arguments(rows=8))
    expect(bool(bijection.initialized), "initialize does not mark it as initialised")


@law(number=12)
def initialization_data(subject: Subject, expect: Findings) -> None:
    """Initialising from a batch of one, or from a constant channel, gives finite numbers that still invert."""
    _needs(subject)
    count = subject.arity("forward")
    one = subject.arguments(rows=1)
    many = subject.arguments(rows=8)
    constant = tuple(torch.full_like(x, 2.0) for x in many[:count])
    for what, arguments in (("a batch of one", one), ("a constant channel", (*constant, *many[count:]))):
        bijection = _uninitialized(subject)
        bijection.initialize(*arguments)
        with torch.no_grad():
            outputs, log_det = subject.call(bijection, "forward", *many)
            back, _ = subject.call(bijection, "inverse", *outputs, *many[count:])
        finite = all(bool(v.isfinite().all()) for v in (*outputs, log_det, *back))
        if expect(finite, f"after initialising from {what} the numbers are not finite"):
            for a, b in zip(back, many[:count], strict=True):
                # Scales of about 1/eps are legitimate here, and cost their digits.
                expect.close(
                    a, b, f"after initialising from {what} the round trip differs", max(1e-6, subject.tolerance)
                )


@law(number=12)
def initialization_loaded(subject: Subject, expect: Findings) -> None:
    """What is initialised and loaded is initialised: same numbers, and training does not initialise it again."""
    trained = _uninitialized(subject)
    trained.initialize(*subject.arguments(rows=8, seed=2))
    other = _uninitialized(subject)
    other.load_state_dict(trained.state_dict())
    other.train()
    expect(bool(getattr(other, "initialized", False)), "the flag is not in the state")
    points = subject.arguments(seed=4)
    want, want_log_det = subject.call(trained, "forward", *points)
    subject.call(other, "forward", *subject.arguments(seed=5))
    got, log_det = subject.call(other, "forward", *points)
    for a, b in zip((*got, log_det), (*want, want_log_det), strict=True):
        expect.close(a, b, "loaded and then trained, it gives something else")
