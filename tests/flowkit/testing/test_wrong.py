"""For every law a bijection that breaks it, and no law breaks on what does not break it."""

import pytest
import torch

import flowkit as fk
from flowkit.testing.check import law_names, run_law, skipped_laws, subjects_of
from flowkit.testing.processes import PROCESS_LAWS, run_process_laws
from flowkit.testing.registry import all_laws
from flowkit.testing.subject import Subject
from flowkit.testing.wrong import WRONG, Scale

COMPILED = {"compile_forward", "compile_inverse", "export_forward", "export_inverse"}
COMPILED_TOO = {
    "LogDetSign",
    "HiddenState",
}  # compiling costs a second each; the laws on it are tried where they may break


@pytest.fixture(scope="module")
def elsewhere():
    """The process laws on every wrong bijection, by name: one pair of processes."""
    subjects = [subjects_of(wrong.cls, wrong.example, {})[0] for wrong in WRONG.values()]
    found = run_process_laws(subjects, [law.name for law in PROCESS_LAWS])
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.filterwarnings("ignore")  # wrong bijections may warn, too
@pytest.mark.parametrize("name", WRONG)
def test_each_breaks_the_laws_it_should_and_no_other(name, elsewhere, capsys):
    wrong = WRONG[name]
    (subject,) = subjects_of(wrong.cls, wrong.example, {})
    compiled = wrong.breaks & COMPILED or name in COMPILED_TOO
    laws = [law for law in all_laws().values() if compiled or law.name not in COMPILED]
    results = [run_law(law, subject) for law in laws] + elsewhere[name]
    assert {result.law for result in results if result.status == "failed"} == wrong.breaks, "\n".join(
        f"{result.law}: {result.details}" for result in results if result.status == "failed"
    )
    assert all(result.findings for result in results if result.status == "failed")


def test_every_law_is_broken_by_something():
    broken = set().union(*(wrong.breaks for wrong in WRONG.values()))
    assert set(law_names()) - broken == {"condition_errors"}  # a flow refuses those for every bijection: see below


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_defect_is_described(wrong):
    assert wrong.cls.__doc__
    assert set(law_names(wrong.breaks)) == wrong.breaks


class _Permissive:
    """A flow that takes what it gets."""

    def __init__(self, bijection):
        self.bijection = bijection
        self.input_shapes = {"x": bijection.in_shapes[0]}
        self.condition_shapes = {f"c{i}": shape for i, shape in enumerate(bijection.condition_shapes)}

    def to(self, dtype):
        return self

    def eval(self):
        return self

    def __call__(self, x, given=None):
        raise ValueError("something is wrong")


def test_condition_errors_wants_flowkits_own_errors(monkeypatch):
    monkeypatch.setattr(fk, "Flow", _Permissive)
    subject = Subject("scale", build=lambda: Scale((3,), given=((2,),)))
    result = run_law(all_laws()["condition_errors"], subject)
    assert result.status == "failed"
    assert [f.text.split(" condition")[0] for f in result.findings] == [
        "a surplus",
        "a missing",
        "a misnamed",
        "a misshaped",
        "a wrong batch",
    ]


def test_condition_errors_wants_a_message_for_each(monkeypatch):
    class Monotonous(_Permissive):
        def __call__(self, x, given=None):
            raise fk.ConditionError("bad conditions")

    monkeypatch.setattr(fk, "Flow", Monotonous)
    result = run_law(all_laws()["condition_errors"], Subject("scale", build=lambda: Scale((3,), given=((2,),))))
    assert len(result.findings) == 5


def test_condition_errors_wants_a_refusal(monkeypatch):
    class Silent(_Permissive):
        def __call__(self, x, given=None):
            return x, x.sum(1)

    monkeypatch.setattr(fk, "Flow", Silent)
    result = run_law(all_laws()["condition_errors"], Subject("scale", build=lambda: Scale((3,), given=((2,),))))
    assert [f.text.split(" is accepted")[0] for f in result.findings][:2] == [
        "a surplus condition",
        "a missing condition",
    ]


class Raises(Scale):
    """Fails as a whole."""

    def inverse(self, y, *conditions):
        raise ZeroDivisionError("not today")


def test_an_exception_is_a_failure_of_each_law_that_meets_it_and_ends_nothing():
    subject = Subject("raises", build=lambda: Raises((3,)))
    results = {law.name: run_law(law, subject) for law in all_laws().values() if law.theme == "exactness"}
    assert results["round_trip"].details == "raises ZeroDivisionError: not today"
    assert results["log_det_forward"].status == "passed"


def test_skipped_laws_take_themes_and_reasons():
    assert skipped_laws({"autocast_float16": "no half here"}) == {"autocast_float16": "no half here"}
    assert set(skipped_laws("compiling")) == COMPILED | {"functional_transforms"}
    with pytest.raises(fk.ConfigError, match="no law or theme 'speed'"):
        skipped_laws(["speed"])


def test_the_kit_restores_the_default_dtype_and_the_random_state():
    state = torch.get_rng_state()
    run_law(all_laws()["round_trip"], Subject("scale", build=lambda: Scale((3,))))
    assert torch.get_default_dtype() == torch.float64
    assert torch.equal(torch.get_rng_state(), state)
