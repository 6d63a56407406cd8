"""What every pytest session loads, and what a plugin's author gets in three lines."""

import subprocess
import sys

import flowkit as fk
from flowkit.testing import cases
from flowkit.testing.pytest_plugin import pytest_make_parametrize_id
from flowkit.testing.wrong import Scale


def test_loading_it_imports_neither_torch_nor_hypothesis():
    code = (
        "import sys, flowkit.testing.pytest_plugin as p; assert not {'torch', 'hypothesis', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fixture_is_the_whole_kit(conformance):
    assert conformance(Scale((3,)), laws="exactness").ok


def test_cases_have_readable_names():
    case = cases("flowkit", only=["flowkit.identity"])[0]
    assert pytest_make_parametrize_id(None, case, "case") == case.id
    assert case.id.startswith("flowkit.identity(")
    assert pytest_make_parametrize_id(None, fk, "case") is None


PLUGIN = """
import flowkit as fk
from flowkit.testing.wrong import Scale, WrongInverse


@fk.register("acme.good", examples=lambda: [fk.Example((3,))])
class Good(Scale):
    pass


@fk.register("acme.bad", examples=lambda: [fk.Example((3,)), fk.Example((2, 2, 2))])
class Bad(WrongInverse):
    pass
"""
TEST = """
import acme_parts
import flowkit.testing, pytest


@pytest.mark.parametrize("case", flowkit.testing.cases("acme"))
def test_conformance(case):
    case.check(laws=("exactness", "spawn"))
"""


def test_three_lines_test_a_plugin(tmp_path):
    (tmp_path / "acme_parts.py").write_text(PLUGIN)
    (tmp_path / "test_acme.py").write_text(TEST)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "test_acme.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "test_conformance[acme.good((3,))] PASSED" in run.stdout, run.stdout
    assert "test_conformance[acme.bad((2, 2, 2))] FAILED" in run.stdout
    assert "round_trip: inverse(forward(x)) differs from x" in run.stdout
