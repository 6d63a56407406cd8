"""JSON as flowkit's files hold it: no key twice, no NaN, no infinity, no nesting without end, no absurd number."""

from __future__ import annotations

import json
import math
from typing import Any

from flowkit.errors import StorageError

DEEPEST = 200  # lists and dictionaries inside one another; a nested network takes six
LARGEST = 2**63 - 1  # of an integer: no size, count or seed is beyond what torch can count


def parse(text: str | bytes, what: str) -> Any:
    """The value that the text holds; `what` is its name in a refusal's sentence.

    Raises:
        StorageError: no JSON, a key twice in one dictionary, NaN or infinity, nested too deeply, an absurd integer.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise StorageError(f"{what} is nested more than {DEEPEST} deep") from None
    except StorageError as error:
        raise StorageError(f"{what} {error}") from None
    except ValueError as error:  # a JSONDecodeError, a UnicodeDecodeError, or an integer of too many digits
        raise StorageError(f"{what} is no JSON ({in_one_line(str(error), 100)})") from None
    check(value, what)
    return value


def check(value: Any, what: str) -> None:
    """Refuse what is nested too deeply, or holds an integer that no flow needs.

    Raises:
        StorageError: where it is so.
    """
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if depth > DEEPEST:
            raise StorageError(f"{what} is nested more than {DEEPEST} deep")
        if isinstance(each, dict):
            waiting += [(inner, depth + 1) for inner in each.values()]
        elif isinstance(each, list | tuple):
            waiting += [(inner, depth + 1) for inner in each]
        elif isinstance(each, int) and abs(each) > LARGEST:
            raise StorageError(f"{what} holds an integer beyond {LARGEST}, which no flow needs: {shown(each)}")


def shown(value: Any, longest: int = 60) -> str:
    """A value from a file as a sentence may hold it: one line, printable, not long.

    >>> shown("a" * 100, 10), shown("a\\nb")
    ("'aaaaaa...", "'a\\\\nb'")
    """
    if isinstance(value, int) and abs(value) > 10**18:
        return f"one of {value.bit_length()} bits"
    return in_one_line(repr(value), longest)


def in_one_line(text: str, longest: int = 400) -> str:
    """The text without line breaks and control characters, cut where it is too long."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise StorageError(f"has the key {shown(twice)} twice in one dictionary")
    return made


def _refuse(constant: str) -> Any:
    raise StorageError(f"holds {constant}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StorageError(f"holds the number {in_one_line(text, 20)}, which no float can be")
    return value
