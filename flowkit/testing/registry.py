"""The registry of laws: a law is a function with a name and a docstring, and adding one is writing one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flowkit.errors import ConfigError
from flowkit.testing.findings import Findings, NotApplicable
from flowkit.testing.subject import Subject

__all__ = ["Law", "NotApplicable", "all_laws", "law", "select_laws"]

LawFunction = Callable[[Subject, Findings], None]


@dataclass(frozen=True)
class Law:
    """A law: what it says, where it stands in the acceptance list, and the function that tries it.

    Attributes:
        name: the function's.
        theme: the module that it is written in; `laws=` and `skip=` take themes, too.
        number: its number in the acceptance list (flowkit's design, `lessons.md`).
        function: called with a `Subject` and `Findings`; it records what is wrong, or raises `NotApplicable`.
    """

    name: str
    theme: str
    number: int
    function: LawFunction

    @property
    def statement(self) -> str:
        """What the law says, in one sentence."""
        return (self.function.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


_laws: dict[str, Law] = {}


def law(*, number: int) -> Callable[[LawFunction], LawFunction]:
    """Make a function a law of the kit.

    It gets a `Subject`, whose `bijection` is a fresh copy at every access, and `Findings`: `expect(ok, text)`,
    `expect.close(got, want, text)`. It raises `NotApplicable(reason)` where it has nothing to say. Any other exception
    is a failure.

    Args:
        number: of the acceptance list.
    """

    def decorate(function: LawFunction) -> LawFunction:
        theme = function.__module__.rsplit(".", 1)[-1]
        _laws[function.__name__] = Law(function.__name__, theme, number, function)
        return function

    return decorate


def all_laws() -> dict[str, Law]:
    """Every law that is tried within this process, by name, in the order of the acceptance list."""
    package = importlib.import_module("flowkit.testing.laws")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {law.name: law for law in sorted(_laws.values(), key=lambda law: law.number)}


def select_laws(laws: Iterable[str] | None, names: Iterable[tuple[str, str]]) -> list[str]:
    """The names, of `(name, theme)` pairs, that are asked for by name or theme; all where `laws` is None.

    Raises:
        ConfigError: something asked for is neither.
    """
    pairs = list(names)
    if laws is None:
        return [name for name, _ in pairs]
    wanted = {laws} if isinstance(laws, str) else set(laws)
    unknown = wanted - {name for pair in pairs for name in pair}
    if unknown:
        raise ConfigError(f"there is no law or theme {', '.join(sorted(map(repr, unknown)))}")
    return [name for name, theme in pairs if name in wanted or theme in wanted]
