"""`check_bijection`: what it takes, what it leaves alone, what it says."""

import copy

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.testing import Report, all_laws, cases, check_bijection, law
from flowkit.testing import registry as law_registry
from flowkit.testing.wrong import InverseLogDetSign, Scale, WrongInverse

FAST = ("exactness", "gradients", "purity", "conditions", "construction", "state")


def scale():
    return Scale((3,))


def test_an_instance_passes_and_stays_as_it_is():
    bijection = Scale((3,)).train()
    state = copy.deepcopy(bijection.state_dict())
    report = check_bijection(bijection, laws=FAST)
    assert report.ok
    assert not report.failed
    assert bijection.training
    assert all(torch.equal(value, state[name]) for name, value in bijection.state_dict().items())
    assert set(bijection.__dict__) == set(Scale((3,)).__dict__)


def test_laws_that_an_instance_cannot_answer_are_skipped_with_the_reason():
    report = check_bijection(Scale((3,)), laws=("construction", "processes", "graph_file", "prepare"))
    assert report.passed == ["spawn", "data_parallel"]
    assert report.skipped == {
        **dict.fromkeys(
            ("construction_reproducible", "construction_quiet", "construction_on_meta", "construction_dtype"),
            "only an instance is given; pass a factory, a class or a registered name",
        ),
        "prepare": "it takes no conditions",
        "graph_file": "its class is not registered, so a file cannot hold it",
        "state_names": (
            "another process cannot build it: its class or factory cannot be imported, or only an instance is given"
        ),
        "file_in_another_process": "its class is not registered, so a file cannot hold it",
    }


def test_a_class_that_cannot_be_imported_is_skipped_not_failed():
    class Local(Scale):
        pass

    report = check_bijection(lambda: Local((3,)), laws=("processes", "pickling", "construction"))
    assert set(report.skipped) == {"pickling", "state_names", "file_in_another_process", "spawn", "data_parallel"}
    assert report.ok


def test_a_factory_is_tried_on_construction():
    report = check_bijection(scale, laws=("construction", "state_names"))
    assert set(report.passed) == {
        "construction_reproducible",
        "construction_quiet",
        "construction_on_meta",
        "construction_dtype",
        "state_names",
    }


def test_a_registered_name_and_its_class_are_tried_with_every_example():
    by_name = check_bijection("flowkit.identity", laws="exactness")
    by_class = check_bijection(fk.Identity, laws="exactness")
    subjects = {result.subject for result in by_name}
    assert len(subjects) == len(fk.examples_of("flowkit.identity"))
    assert subjects == {result.subject for result in by_class}
    one = check_bijection("flowkit.identity", example=fk.Example((7,)), laws="round_trip")
    assert [result.subject for result in one] == ["flowkit.identity((7,))"]


def test_one_error_lists_every_failure_with_law_figure_and_tolerance():
    class Both(InverseLogDetSign, WrongInverse):
        pass

    with pytest.raises(fk.ConformanceError) as raised:
        check_bijection(Both((3,)), laws="exactness")
    text = str(raised.value)
    assert text.startswith("3 laws are broken:")
    for name in ("round_trip", "log_det_inverse", "log_det_opposite"):
        assert f"\n  {name}: " in text
    assert "tolerance 1e-09" in text
    assert "inverse(forward(x)) differs from x: 0.00" in text


def test_without_raising_the_report_is_returned():
    report = check_bijection(WrongInverse((3,)), laws="exactness", raises=False)
    assert isinstance(report, Report)
    assert report.failed == ["round_trip"]
    assert not report.ok
    assert report["round_trip"].figure > report["round_trip"].tolerance == 1e-9


def test_the_report_is_a_table():
    report = check_bijection(Scale((3,)), laws=("round_trip", "prepare"), skip={"prepare": "not here"})
    lines = str(report).splitlines()
    assert lines[0] == "Scale (an instance)"
    assert lines[1].split()[:2] == ["round_trip", "passed"]
    assert lines[1].endswith("<= 1e-09")
    assert lines[2].split(maxsplit=2) == ["prepare", "skipped", "not here"]
    assert lines[-1] == "1 passed, 0 failed, 1 skipped"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (3, {}, "a bijection, a factory, a class or a registered name is needed, got int"),
        (nn.Linear, {}, "must return a fk.Bijection|missing"),
        (Scale, {}, "Scale is not registered: pass example="),
        (scale, {"example": fk.Example((3,))}, "a factory takes no arguments"),
        ("flowkit.mlp", {}, "'flowkit.mlp' is no bijection"),
        (Scale((3,)), {"laws": "rond_trip"}, "there is no law or theme 'rond_trip'"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_sentence(target, options, message):
    with pytest.raises((fk.ConfigError, TypeError), match=message):
        check_bijection(target, **options)


def test_an_unknown_name_is_refused():
    with pytest.raises(fk.RegistryError, match=r"'nobody\.scale' is not registered"):
        check_bijection("nobody.scale")


class HalfOpen(fk.Bijection):
    """log x: its data must be positive."""

    def forward(self, x):
        return x.log(), -x.log().sum(1)

    def inverse(self, y):
        return y.exp(), y.sum(1)

    def example_inputs(self, rows):
        return (torch.rand(rows, *self.in_shapes[0]) + 0.5,)


def test_a_domain_is_respected():
    assert check_bijection(HalfOpen((3,)), laws=("exactness", "gradients")).ok
    assert check_bijection(fk.Inverse(HalfOpen((3,))), laws="round_trip").ok
    with pytest.raises(fk.ConformanceError):
        check_bijection(HalfOpen((3,)), laws="round_trip", inputs=lambda rows: (-torch.rand(rows, 3),))


class Bisected(fk.Bijection):
    """sinh, inverted to three digits."""

    iterative = True
    tolerance = 1e-3

    def forward(self, x):
        return torch.sinh(x), torch.cosh(x).log().sum(1)

    def inverse(self, y):
        x = torch.asinh(y) + 2e-4
        return x, -torch.cosh(x).log().sum(1)


def test_an_iterative_one_is_judged_by_its_tolerance():
    report = check_bijection(Bisected((3,)), laws="exactness")
    assert report["round_trip"].tolerance == 1e-3
    strict = type("Strict", (Bisected,), {"iterative": False})
    assert "round_trip" in check_bijection(strict((3,)), laws="exactness", raises=False).failed


class Dequantize(fk.Bijection):
    """Adds uniform noise to integers: stochastic, and more dimensions than there were."""

    stochastic = dimension_changing = True

    def forward(self, x):
        return x + torch.rand_like(x), torch.zeros(x.shape[0], dtype=x.dtype)

    def inverse(self, y):
        return y.floor(), torch.zeros(y.shape[0], dtype=y.dtype)

    def example_inputs(self, rows):
        return (torch.randint(0, 9, (rows, *self.in_shapes[0])).double(),)


def test_what_stochastic_and_dimension_changing_are_exempt_from_is_said():
    report = check_bijection(Dequantize((3,)), laws=("exactness", "purity", "batches"))
    assert report.skipped["log_det_forward"] == "exempt: dimension_changing"
    assert report.skipped["rows_alone"] == "exempt: stochastic"
    assert {"round_trip", "random_state", "no_hidden_state"} <= set(report.passed)


class Adaptive(Scale):
    """Looks at its data, and says so."""

    adaptive = True

    def forward(self, x):
        for _ in range(int(x.detach().abs().max()) % 2):
            x = x + 0
        return super().forward(x)


def test_what_adaptive_is_exempt_from_is_said():
    report = check_bijection(Adaptive((3,)), laws="compiling")
    assert set(report.skipped.values()) == {"exempt: adaptive"}
    assert len(report.skipped) == 5


def test_constants_of_a_float32_instance_are_judged_as_such():
    torch.set_default_dtype(torch.float32)
    report = check_bijection(_Turned((4,)), laws="exactness")
    assert report["round_trip"].tolerance == 1e-4
    assert "float32" in report.notes[0]
    assert check_bijection(lambda: _Turned((4,)), laws="exactness")["round_trip"].tolerance == 1e-9


class _Turned(fk.Bijection):
    """A rotation, held in the default dtype."""

    def __init__(self, shape):
        super().__init__(shape)
        self.register_buffer("q", torch.linalg.qr(torch.randn(*shape, *shape)).Q)

    def forward(self, x):
        return x @ self.q, torch.zeros(x.shape[0], dtype=x.dtype)

    def inverse(self, y):
        return y @ self.q.T, torch.zeros(y.shape[0], dtype=y.dtype)


def test_float32_may_be_asked_for():
    report = check_bijection(scale, dtype=torch.float32, laws="exactness")
    assert report["round_trip"].tolerance == 1e-4


def test_a_law_is_a_function():
    try:

        @law(number=99)
        def never_three(subject, expect):
            """Three is no shape."""
            expect(subject.original.in_shapes != ((3,),), "it is three")

        assert all_laws()["never_three"].statement == "Three is no shape."
        assert check_bijection(scale, laws="never_three", raises=False)["never_three"].details == "it is three"
    finally:
        law_registry._laws.pop("never_three")


def test_every_law_says_what_it_says_and_where_it_stands():
    numbers = set()
    for each in all_laws().values():
        assert each.statement.endswith((".", ").")), each.name
        numbers.add(each.number)
    # 6 and 8 need other processes; 13 is the splines'.
    assert numbers == {1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 14, 15}


def test_cases_run_the_process_laws_together_and_once(monkeypatch):
    calls = []

    def counted(subjects, names):
        calls.append(len(subjects))
        return [[] for _ in subjects]

    monkeypatch.setattr("flowkit.testing.case.run_process_laws", counted)
    found = cases("flowkit", only=["flowkit.identity", "flowkit.flatten"])
    for case in found:
        assert case._batch.results_of(case.subject) == []
    assert calls == [len(found)]
    assert {case.name for case in found} == {"flowkit.identity", "flowkit.flatten"}
