"""Every registered bijection, flowkit's and the installed plugins', with every example, through every law."""

import pytest
from hypothesis import given, settings

import flowkit as fk
from flowkit.testing import cases, strategies
from flowkit.testing.case import registered_bijections
from flowkit.testing.check import run_law
from flowkit.testing.registry import all_laws

CASES = cases()
LONG = "compile_forward", "compile_inverse", "export_forward", "export_inverse"
EVERY = 3  # compiling takes a second a law: every third case, and all of them in the long profile


@pytest.mark.parametrize("name", registered_bijections())
def test_every_registered_bijection_has_examples(name):
    assert fk.examples_of(name), f"'{name}' is registered without examples=: nothing tests it"


@pytest.mark.parametrize("case", CASES)
def test_laws(case):
    case.check(skip=[*LONG, "processes"])


def _compiled():
    counts = {}
    for case in CASES:
        counts[case.name] = counts.get(case.name, 0) + 1
        if counts[case.name] % EVERY == 1 or settings().max_examples > 200:
            yield case


@pytest.mark.parametrize("case", CASES)
def test_compiles_and_exports(case):
    if case not in list(_compiled()):
        pytest.skip("compiled in the long profile")
    case.check(laws=LONG)


@pytest.mark.parametrize("case", CASES)
def test_in_other_processes(case):
    """One pair of processes serves all cases."""
    case.check(laws="processes")


@given(strategies.bijections())
def test_exact_at_every_size_or_refused(subject):
    """Other weights, batches and sizes than the examples': ranks 1 to 4, odd channels, one channel."""
    try:
        _ = subject.original
    except fk.FlowkitError:
        return  # refused, as flowkit refuses: any other error is a fault
    for name in ("shapes", "round_trip", "log_det_shape", "log_det_forward", "log_det_inverse", "log_det_opposite"):
        result = run_law(all_laws()[name], subject)
        assert result.status != "failed", f"{subject.title}: {name}: {result.details}"
