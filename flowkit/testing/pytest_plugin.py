"""Pytest's part of the conformance kit: readable names for cases, and the fixture `conformance`.

Loaded in every pytest session of everybody who has flowkit installed: it imports neither torch nor hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A conformance case goes by its bijection and example."""
    kind = type(val)
    return str(vars(val)["id"]) if (kind.__module__, kind.__name__) == ("flowkit.testing.case", "Case") else None


@pytest.fixture
def conformance() -> Callable[..., Any]:
    """`flowkit.testing.check_bijection`: `conformance(Scale((3,)))` raises an error that lists every broken law."""
    from flowkit.testing.check import check_bijection

    return check_bijection
