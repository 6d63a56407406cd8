"""What the conformance kit found: plain data, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flowkit.errors import ConformanceError

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One thing that a law found: what was compared, the worst figure, and the tolerance that it was judged by."""

    text: str
    figure: float | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        if self.figure is None:
            return self.text
        return f"{self.text}: {self.figure:.3g}, tolerance {self.tolerance:.3g}"


@dataclass(frozen=True)
class Result:
    """What became of one law on one subject.

    Attributes:
        law: its name.
        status: passed, failed or skipped.
        subject: what it was tried on.
        findings: for a failed law, each thing that is wrong.
        reason: for a skipped law, why.
        figure: the worst figure measured; None where the law measures none.
        tolerance: what that figure was judged by.
    """

    law: str
    status: Status
    subject: str = ""
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    figure: float | None = None
    tolerance: float | None = None

    @property
    def details(self) -> str:
        """One line: the findings, the reason, or the figure."""
        if self.status == "failed":
            return "; ".join(map(str, self.findings))
        if self.status == "skipped":
            return self.reason
        return "" if self.figure is None else f"{self.figure:.2g} <= {self.tolerance:.2g}"


@dataclass(frozen=True)
class Report:
    """Every law's result, on one subject or several; `str(report)` is a table, `report.ok` whether nothing failed."""

    results: tuple[Result, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failed

    @property
    def passed(self) -> list[str]:
        """Names of the laws that passed."""
        return [r.law for r in self.results if r.status == "passed"]

    @property
    def failed(self) -> list[str]:
        """Names of the laws that failed."""
        return [r.law for r in self.results if r.status == "failed"]

    @property
    def skipped(self) -> dict[str, str]:
        """Names of the laws that were not tried, each with the reason."""
        return {r.law: r.reason for r in self.results if r.status == "skipped"}

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __getitem__(self, law: str) -> Result:
        return next(result for result in self.results if result.law == law)

    def __str__(self) -> str:
        lines: list[str] = []
        width = max((len(r.law) for r in self.results), default=0)
        subject = None
        for result in self.results:
            if result.subject != subject:
                subject = result.subject
                lines.append(subject)
            lines.append(f"  {result.law:{width}}  {result.status:7}  {result.details}".rstrip())
        lines += [f"note: {note}" for note in self.notes]
        counts = (f"{len(part)} {word}" for part, word in self._parts())
        return "\n".join([*lines, ", ".join(counts)])

    def _parts(self) -> tuple[tuple[Sequence[str], str], ...]:
        return (self.passed, "passed"), (self.failed, "failed"), (list(self.skipped), "skipped")

    def raise_if_failed(self) -> None:
        """Raise one error that lists every failure.

        Raises:
            ConformanceError: at least one law failed.
        """
        broken = [result for result in self.results if result.status == "failed"]
        if broken:
            lines = [
                f"  {r.law}: {finding}" + (f"  [{r.subject}]" if r.subject else "")
                for r in broken
                for finding in r.findings
            ]
            count = len(broken)
            raise ConformanceError("\n".join([f"{count} {'law is' if count == 1 else 'laws are'} broken:", *lines]))

    @classmethod
    def merge(cls, reports: Sequence[Report]) -> Report:
        """The results of several reports as one."""
        notes = dict.fromkeys(note for report in reports for note in report.notes)
        return cls(tuple(result for report in reports for result in report.results), tuple(notes))
