"""Cases: every registered bijection with each of its examples, for pytest's `parametrize`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

from flowkit.bijection import Bijection
from flowkit.registry import Example, examples_of, plugins, registered
from flowkit.testing.check import law_names, run_laws, skipped_laws, subjects_of
from flowkit.testing.processes import PROCESS_LAWS, run_process_laws
from flowkit.testing.report import Report, Result
from flowkit.testing.subject import Subject


class Case:
    """One registered bijection with one of its examples.

    Attributes:
        name: registered.
        example: the arguments.
        id: how pytest calls it.
    """

    def __init__(self, name: str, cls: type[Bijection], example: Example, subject: Subject, batch: Batch) -> None:
        self.name, self.cls, self.example, self.subject, self._batch = name, cls, example, subject, batch
        self.id = subject.title

    def __repr__(self) -> str:
        return self.id

    def build(self) -> Bijection:
        """A new instance."""
        return self.example.build(self.cls)

    def check(
        self, laws: str | Iterable[str] | None = None, skip: Mapping[str, str] | Iterable[str] | None = None
    ) -> Report:
        """Try the laws, all by default; see `check_bijection`.

        Laws that need other processes run once for all cases of one `cases()`, at the first that asks for them.

        Raises:
            ConformanceError: laws are broken; every one is listed.
        """
        names, skipped = law_names(laws), skipped_laws(skip)
        report = run_laws(self.subject, names, skipped)
        elsewhere = [law.name for law in PROCESS_LAWS if law.name in names and law.name not in skipped]
        if elsewhere:
            found = {result.law: result for result in self._batch.results_of(self.subject)}
            report = Report((*report.results, *(found[name] for name in elsewhere)), report.notes)
        report.raise_if_failed()
        return report


class Batch:
    """The process laws of several cases, run together at the first question: starting torch costs seconds."""

    def __init__(self) -> None:
        self.subjects: list[Subject] = []
        self._results: list[list[Result]] | None = None

    def results_of(self, subject: Subject) -> list[Result]:
        """Of the process laws, for one subject of the batch."""
        if self._results is None:
            self._results = run_process_laws(self.subjects, [law.name for law in PROCESS_LAWS])
        return self._results[self.subjects.index(subject)]


def registered_bijections(prefix: str | None = None) -> dict[str, type[Bijection]]:
    """Every registered bijection by name: of one plugin, or of flowkit and all installed plugins."""
    installed = {"flowkit", *plugins()} if prefix is None else {prefix}  # not what a notebook or a test registered
    return {
        name: cls
        for name, cls in registered(prefix).items()
        if inspect.isclass(cls) and issubclass(cls, Bijection) and name.split(".")[0] in installed
    }


def cases(
    prefix: str | None = None, *, only: Callable[[str], bool] | Sequence[str] | None = None, seed: int = 0
) -> list[Case]:
    """A case for every registered bijection and each of its examples.

    One that is registered without examples gives no case; `registered_bijections` and `fk.examples_of` find it.

    Args:
        prefix: of one plugin, the part of its names before the first dot; None is flowkit and every installed plugin.
        only: names, or a function that says which names.
        seed: of weights and data.

    >>> [case.name for case in cases("flowkit", only=["flowkit.identity"])][0]
    'flowkit.identity'
    """
    batch = Batch()
    found: list[Case] = []
    for name, cls in registered_bijections(prefix).items():
        if only is not None and not (only(name) if callable(only) else name in only):
            continue
        examples = examples_of(name)
        subjects = subjects_of(cls, None, {"seed": seed}) if examples else []
        for example, subject in zip(examples, subjects, strict=True):
            batch.subjects.append(subject)
            found.append(Case(name, cls, example, subject, batch))
    return found
