"""Exactness: shapes, the inverse, and the log-det against the Jacobian."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from flowkit.bijection import Bijection, as_tuple
from flowkit.graph import InvertibleNetwork
from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject, refuse

DIRECTIONS = ("forward", "inverse")
RANK = 1e-8  # a singular value below this part of the largest is 0
LARGEST_JACOBIAN = 1024  # elements of an event: beyond that the Jacobian costs minutes


def _counts(subject: Subject) -> tuple[int, int]:
    first = subject.original
    return sum(map(math.prod, first.in_shapes)), sum(map(math.prod, first.out_shapes))


def _declared(subject: Subject, method: str) -> tuple[tuple[int, ...], ...]:
    return subject.original.out_shapes if method == "forward" else subject.original.in_shapes


@law(number=2)
def shapes(subject: Subject, expect: Findings) -> None:
    """`forward` gives out_shapes and `inverse` in_shapes, the batch in front, and as many elements as it took."""
    ins, outs = _counts(subject)
    if not subject.original.dimension_changing and not subject.original.embedded:
        expect(ins == outs, f"{ins} elements go in and {outs} come out, and dimension_changing is not declared")
    for method in DIRECTIONS:
        values, _ = subject.call(subject.bijection, method, *subject.points(method))
        want = [(subject.rows, *shape) for shape in _declared(subject, method)]
        got = [tuple(value.shape) for value in values]
        expect(got == want, f"{method} gives shapes {got}, its declaration says {want}")


@law(number=2)
def round_trip(subject: Subject, expect: Findings) -> None:
    """The inverse of forward is the data, and forward of the inverse the latent: the worst element."""
    count = subject.arity("forward")
    with torch.no_grad():
        arguments = subject.arguments()
        outputs, _ = subject.call(subject.bijection, "forward", *arguments)
        back, _ = subject.call(subject.bijection, "inverse", *outputs, *arguments[count:])
        ins, outs = _counts(subject)
        # Slicing drops a part of the data: only what adds dimensions has to give all of it back.
        if outs >= ins or subject.original.embedded:
            for i, (got, want) in enumerate(zip(back, arguments[:count], strict=True)):
                expect.close(got, want, f"inverse(forward(x)) differs from x{_which(i, count)}")
        if subject.original.dimension_changing:
            if outs >= ins or isinstance(subject.original, InvertibleNetwork):
                return  # what was added need not come back; several ops together may lose something both ways
        elif subject.original.stochastic:
            return
        points = subject.points("inverse")
        count = subject.arity("inverse")
        inputs, _ = subject.call(subject.bijection, "inverse", *points)
        again, _ = subject.call(subject.bijection, "forward", *inputs, *points[count:])
        for i, (got, want) in enumerate(zip(again, points[:count], strict=True)):
            expect.close(got, want, f"forward(inverse(y)) differs from y{_which(i, count)}")


def _which(index: int, count: int) -> str:
    return f" (tensor {index})" if count > 1 else ""


@law(number=3)
def log_det_shape(subject: Subject, expect: Findings) -> None:
    """The log-det is `(B,)` and floating, of float32 or wider, in both directions."""
    for method in DIRECTIONS:
        _, log_det = subject.call(subject.bijection, method, *subject.points(method))
        expect(
            tuple(log_det.shape) == (subject.rows,),
            f"{method}'s log-det has shape {tuple(log_det.shape)}, not ({subject.rows},)",
        )
        wide = log_det.dtype in (torch.float32, torch.float64)
        expect(wide, f"{method}'s log-det is {log_det.dtype}, not float32 or wider")


def jacobian(
    subject: Subject, bijection: Bijection, method: str, arguments: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """`(J, log_det)`: the Jacobian `(B, outputs, inputs)` by autograd, all tensors concatenated, conditions fixed."""
    count = subject.arity(method)
    data = [x.clone().requires_grad_() for x in arguments[:count]]
    values, log_det = subject.call(bijection, method, *data, *arguments[count:])
    flat = torch.cat([value.reshape(value.shape[0], math.prod(value.shape[1:])) for value in values], 1)
    if not flat.requires_grad:
        return flat.new_zeros(flat.shape[0], flat.shape[1], sum(x[0].numel() for x in data)), log_det.detach()
    size = flat.shape[1]
    seeds = torch.eye(size, dtype=flat.dtype).unsqueeze(1).expand(size, *flat.shape)
    try:  # all backward passes at once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one of them is slower under vmap
            grads = torch.autograd.grad(
                flat, data, seeds, retain_graph=True, materialize_grads=True, is_grads_batched=True
            )
    except RuntimeError:  # a hand-written backward need not know vmap
        passes = [torch.autograd.grad(flat, data, seed, retain_graph=True, materialize_grads=True) for seed in seeds]
        grads = tuple(torch.stack(each) for each in zip(*passes, strict=True))
    rows = torch.cat([g.reshape(size, flat.shape[0], math.prod(g.shape[2:])) for g in grads], 2)
    return rows.transpose(0, 1), log_det.detach()


def log_pseudo_determinant(matrix: Tensor) -> Tensor:
    """The log of the product of the singular values that are not 0, `(B,)`.

    Of a map between surfaces that is constant along their normals it is the change of area.
    """
    values = torch.linalg.svdvals(matrix)
    counted = values > RANK * values[:, :1]
    return torch.where(counted, values, 1).log().sum(1)


def _log_det_law(subject: Subject, expect: Findings, method: str) -> None:
    subject.exempt("dimension_changing", "stochastic")
    ins, outs = _counts(subject)
    if ins != outs and not subject.original.embedded:
        refuse(f"the Jacobian is {outs} x {ins}")
    if ins > LARGEST_JACOBIAN:
        refuse(f"{ins} elements: the Jacobian is tried up to {LARGEST_JACOBIAN}")
    matrix, log_det = jacobian(subject, subject.bijection, method, subject.points(method))
    if subject.original.embedded:
        want = log_pseudo_determinant(matrix.to(torch.float64))
    else:
        want = torch.linalg.slogdet(matrix.to(torch.float64)).logabsdet
    if tuple(log_det.shape) != tuple(want.shape):
        refuse(f"its log-det has shape {tuple(log_det.shape)}")
    expect.close(log_det, want, f"{method}'s log-det differs from the Jacobian's")


@law(number=2)
def log_det_forward(subject: Subject, expect: Findings) -> None:
    """Forward's log-det is log abs det of the Jacobian that autograd gives."""
    _log_det_law(subject, expect, "forward")


@law(number=2)
def log_det_inverse(subject: Subject, expect: Findings) -> None:
    """The inverse's log-det is log abs det of its own Jacobian."""
    _log_det_law(subject, expect, "inverse")


@law(number=3)
def log_det_opposite(subject: Subject, expect: Findings) -> None:
    """Forward's log-det is minus the inverse's at the matching point."""
    ins, outs = _counts(subject)
    if not subject.original.dimension_changing:
        subject.exempt("stochastic")
    elif isinstance(subject.original, InvertibleNetwork):
        subject.exempt("dimension_changing")
    with torch.no_grad():
        if outs < ins and not subject.original.embedded:  # slicing draws in its inverse: the point is what that gives
            points = subject.points("inverse")
            inputs, inverse = subject.call(subject.bijection, "inverse", *points)
            _, forward = subject.call(subject.bijection, "forward", *inputs, *points[subject.arity("inverse") :])
            expect.close(inverse, -forward, "the inverse's log-det is not minus forward's")
            return
        arguments = subject.arguments()
        outputs, forward = subject.call(subject.bijection, "forward", *arguments)
        _, inverse = subject.call(subject.bijection, "inverse", *outputs, *arguments[subject.arity("forward") :])
    expect.close(inverse, -forward, "the inverse's log-det is not minus forward's")


@law(number=2)
def inverse_only(subject: Subject, expect: Findings) -> None:
    """`inverse_only` gives what `inverse` gives, without the log-det."""
    points = subject.points("inverse")
    with torch.no_grad():
        want, _ = subject.call(subject.bijection, "inverse", *points)
        if subject.original.stochastic:
            torch.manual_seed(subject.seed)
        got = as_tuple(subject.bijection.inverse_only(*points))
    if expect(len(got) == len(want), f"inverse_only gives {len(got)} tensors, inverse {len(want)}"):
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            expect.close(a, b, f"inverse_only differs from inverse{_which(i, len(want))}")
