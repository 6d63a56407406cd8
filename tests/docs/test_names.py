"""docs/names.md is complete and true: no class of an installed toolkit is missing, and every name of ours exists."""

import ast
import importlib
import inspect
import pkgutil
import re
import warnings
from functools import cache

import pytest

import flowkit as fk

from .documents import ROOT

PAGE = ROOT / "docs" / "names.md"
TOOLKITS = ("FrEIA", "nflows", "normflows", "zuko")  # flowjax is in JAX: its table cannot be compared
ABSENT = "not here"


@cache
def tables():
    """By heading, the rows as pairs of cells."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    rows = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line]
        rows[heading] = [tuple(row) for row in cells[2:]]
        assert all(len(row) == 2 for row in rows[heading]), heading
    return rows


def names_of(cell):
    return re.findall(r"`([^`]+)`", cell)


def codes_of(cell):
    """What it names of flowkit's."""
    return [name for name in names_of(cell) if name.startswith(("fk.", "flowkit_cinn."))]


def public_classes(package):
    """Every class of a package, or of a module below it, whose name and module are not private."""
    root = importlib.import_module(package)
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in pkgutil.walk_packages(root.__path__, f"{package}."):
            if any(part.startswith("_") or "test" in part for part in entry.name.split(".")):
                continue
            module = importlib.import_module(entry.name)
            own = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
            found |= {name for name in own if not name.startswith("_")}
    return found


@pytest.mark.parametrize("package", TOOLKITS)
def test_every_public_class_of_an_installed_toolkit_is_in_its_table(package):
    pytest.importorskip(package)
    listed = [name for theirs, _ in tables()[package] for name in names_of(theirs)]
    found = public_classes(package)
    assert len(found) > 40
    assert not sorted(found - set(listed)), "neither in the table nor marked as absent"
    assert not sorted(set(listed) - found), "in the table, and no class of theirs"
    assert sorted(listed) == sorted(set(listed)), "more than one row for a name"


@pytest.mark.parametrize("package", [*TOOLKITS, "flowjax"])
def test_every_row_names_what_is_here_or_says_that_nothing_is(package):
    for theirs, ours in tables()[package]:
        assert names_of(theirs)
        assert ours.startswith(ABSENT) or any(name.startswith(("fk.", "flowkit_cinn.")) for name in names_of(ours)), (
            theirs
        )


@pytest.mark.parametrize("package", [*TOOLKITS, "flowjax"])
def test_every_name_and_argument_of_ours_exists(package):
    codes = [
        code for _, ours in tables()[package] for code in names_of(ours) if code.startswith(("fk.", "flowkit_cinn."))
    ]
    assert len(codes) > 20
    for code in codes:
        check_code(code)


def check_code(code):
    """A name, or a call whose arguments the thing takes, whatever the shape that comes first."""
    for node in ast.walk(ast.parse(code, mode="eval")):
        if isinstance(node, ast.Attribute):
            thing = resolve(ast.unparse(node))
            assert thing is not None
        if isinstance(node, ast.Call):
            takes = inspect.signature(resolve(ast.unparse(node.func))).parameters
            unknown = [word.arg for word in node.keywords if word.arg not in takes]
            assert not unknown, f"{code}: {unknown}"


def resolve(path):
    head, *rest = path.split(".")
    thing = {"fk": fk}.get(head) or importlib.import_module(head)
    for name in rest:
        thing = getattr(thing, name)
    return thing


def test_settings_that_are_texts_are_taken():
    assert fk.OrthogonalLinear((3,), form="matrix_exp").condition_number() < 1 + 1e-9
    assert fk.CDF((3,), distribution="logistic", learned=True).loc.requires_grad
    assert fk.AffineCoupling((4,), split=(0, 2)).out_shapes == ((4,),)


@pytest.mark.parametrize(
    "code", ["fk.Nope", "fk.flows.nope", "fk.AffineCoupling(sides=2)", "fk.CDF(univariate=fk.Nope)"]
)
def test_a_wrong_name_is_found(code):
    with pytest.raises((AttributeError, AssertionError)):
        check_code(code)
