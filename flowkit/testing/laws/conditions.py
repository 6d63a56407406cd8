"""Conditions: each one matters, wrong ones are refused, and preparing them changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flowkit as fk
from flowkit.testing.findings import Findings
from flowkit.testing.laws.batches import as_data, as_given
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject, refuse

SAMPLES = 4


def _needs_conditions(subject: Subject) -> None:
    if not subject.original.condition_shapes:
        refuse("it takes no conditions")


@law(number=5)
def conditions_used(subject: Subject, expect: Findings) -> None:
    """Each condition changes the outputs or the log-det, in both directions."""
    _needs_conditions(subject)
    for method in ("forward", "inverse"):
        points, count = subject.points(method), subject.arity(method)
        others = (*points[:count], *subject.conditions(seed=3))
        with torch.no_grad():
            values, log_det = subject.call(subject.bijection, method, *points)
            for i in range(count, len(points)):
                if torch.equal(others[i], points[i]):
                    continue
                changed = (*points[:i], others[i], *points[i + 1 :])
                got, got_log_det = subject.call(subject.bijection, method, *changed)
                same = all(torch.equal(a, b) for a, b in zip((*got, got_log_det), (*values, log_det), strict=True))
                expect(not same, f"{method} gives the same whatever condition {i - count} is")


@law(number=5)
def condition_errors(subject: Subject, expect: Findings) -> None:
    """Through `Flow`, conditions misnamed, misshaped, of a wrong batch, missing or surplus: each its own error."""
    flow = fk.Flow(subject.bijection).to(subject.dtype).eval()
    count = subject.arity("forward")
    arguments = subject.arguments()
    x = as_data(flow, arguments[:count])
    right: dict[str, Tensor] = as_given(flow, arguments[count:]) or {}
    calls: dict[str, Any] = {"surplus": {**right, "surplus": torch.zeros(subject.rows, 1, dtype=subject.dtype)}}
    if right:
        name, value = next(iter(right.items()))
        rest = {n: c for n, c in right.items() if n != name}
        calls |= {
            "missing": rest or None,
            "misnamed": {**rest, f"{name}_misnamed": value},
            "misshaped": {
                **right,
                name: torch.cat((value, value), -1) if value.dim() > 1 else torch.stack((value, value), -1),
            },
            "wrong batch": {**right, name: torch.cat((value, value))},
        }
    messages: dict[str, str] = {}
    for what, given in calls.items():
        try:
            with torch.no_grad():
                flow(x, given=given)
        except fk.ConditionError as error:
            messages[what] = str(error)
        except Exception as error:
            expect(False, f"a {what} condition raises {type(error).__name__} ({error}), not fk.ConditionError")
        else:
            expect(False, f"a {what} condition is accepted")
    for what, message in messages.items():
        twins = [other for other in messages if other != what and messages[other] == message]
        expect(
            bool(message) and not twins,
            f"a {what} condition gives the same message as a {', '.join(twins) or 'blank'} one",
        )


@law(number=5)
def prepare(subject: Subject, expect: Findings) -> None:
    """With prepared conditions, on S x R rows, samples outermost, it gives what it gives with the plain ones."""
    _needs_conditions(subject)
    conditions = subject.conditions()
    with torch.no_grad():
        prepared = subject.bijection.prepare(*conditions)
        if prepared is None:
            refuse("prepare gives None: nothing can be prepared")
        if not expect(
            isinstance(prepared, tuple), f"prepare must return a tuple or None, got {type(prepared).__name__}"
        ):
            return
        for method in ("forward", "inverse"):
            count = subject.arity(method)
            for samples in (1, SAMPLES):
                data = subject.points(method, rows=samples * subject.rows)[:count]
                if method == "inverse":
                    data = _reachable(subject, samples, conditions)
                expanded = tuple(c.repeat(samples, *[1] * (c.dim() - 1)) for c in conditions)
                want, want_log_det = subject.call(subject.bijection, method, *data, *expanded)
                got, log_det = subject.call(subject.bijection, method, *data, fk.Prepared(prepared))  # type: ignore[arg-type]
                for a, b in zip((*got, log_det), (*want, want_log_det), strict=True):
                    expect.close(a, b, f"{method} with prepared conditions and {samples} samples a row differs")


def _reachable(subject: Subject, samples: int, conditions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Outputs at these very conditions: a bounded op's range may depend on them.
    expanded = tuple(c.repeat(samples, *[1] * (c.dim() - 1)) for c in conditions)
    return subject.call(subject.bijection, "forward", *subject.inputs(samples * subject.rows), *expanded)[0]
