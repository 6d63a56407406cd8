"""The conformance kit: every law that a bijection must obey, for flowkit's own parts and everybody's plugins.

In a shell, `flowkit check acme.scale --import my_module`. In a test,

    import pytest, flowkit.testing

    @pytest.mark.parametrize("case", flowkit.testing.cases("acme"))
    def test_conformance(case):
        case.check()

or, for one bijection, `flowkit.testing.check_bijection(Scale((3,)))`. `flowkit.testing.strategies` holds hypothesis
strategies for shapes, registered bijections and random graphs; `flowkit.testing.wrong` a wrong bijection for every law.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Names are loaded at first use: flowkit's pytest plugin lives in this package, and every pytest session imports it.
_MODULES = {
    "flowkit.testing.case": ("Case", "cases"),
    "flowkit.testing.check": ("check_bijection",),
    "flowkit.testing.registry": ("Law", "NotApplicable", "all_laws", "law"),
    "flowkit.testing.report": ("Report", "Result"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = ("command", "strategies", "wrong")

__all__ = ["Case", "Law", "NotApplicable", "Report", "Result", "all_laws", "cases", "check_bijection", "law"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"flowkit.testing.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'flowkit.testing' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})


if TYPE_CHECKING:
    from flowkit.testing.case import Case, cases
    from flowkit.testing.check import check_bijection
    from flowkit.testing.registry import Law, NotApplicable, all_laws, law
    from flowkit.testing.report import Report, Result
