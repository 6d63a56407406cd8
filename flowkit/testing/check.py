"""`check_bijection`: every law, on an instance, a factory, or something registered."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from flowkit.bijection import Bijection
from flowkit.errors import ConfigError, RegistryError
from flowkit.registry import Example, examples_of, lookup, name_of
from flowkit.testing.findings import Findings, NotApplicable
from flowkit.testing.processes import PROCESS_LAWS, THEME, run_process_laws
from flowkit.testing.registry import Law, all_laws, select_laws
from flowkit.testing.report import Finding, Report, Result, Status
from flowkit.testing.subject import Draw, Origin, Subject, importable, isolated

LONGEST_TITLE = 100


def check_bijection(
    bijection: Bijection | type[Bijection] | Callable[[], Bijection] | str,
    *,
    example: Example | None = None,
    dtype: torch.dtype = torch.float64,
    laws: str | Iterable[str] | None = None,
    skip: Mapping[str, str] | Iterable[str] | None = None,
    seed: int = 0,
    rows: int = 3,
    tolerance: float | None = None,
    inputs: Draw | None = None,
    conditions: Draw | None = None,
    raises: bool = True,
) -> Report:
    """Try every law of the acceptance list, and report all failures at once.

    The weights are redrawn, random and not at the identity, on a copy: the caller's instance stays as it is. Iterative,
    stochastic, adaptive and dimension-changing bijections are judged as they declare. A bijection whose domain is not
    all numbers has `example_inputs(rows)`, and `example_conditions(rows)`, or gets `inputs` and `conditions` here.

    Args:
        bijection: an instance; a factory without arguments, which is tried on construction too; a registered class or
            its name, tried with each of its examples; or any class, with `example`.
        example: the arguments of a class.
        dtype: that numbers are judged in.
        laws: names or themes of the laws to try; all by default.
        skip: names or themes to leave out; as a dictionary, each with its reason.
        seed: of weights and data.
        rows: the batch.
        tolerance: of |err| <= tolerance (1 + |ref|); by default 1e-9 in float64, 1e-4 in float32, or what an iterative
            one declares.
        inputs: `inputs(rows)` draws a tuple of data.
        conditions: `conditions(rows)` draws a tuple of conditions.
        raises: False returns the report even if laws are broken.

    Returns:
        Laws passed, failed, and skipped with their reasons; `str(report)` is a table.

    Raises:
        ConformanceError: laws are broken; every one is listed with its name, the figure and the tolerance.
        ConfigError: what is given is no bijection, or has no examples.

    >>> import flowkit as fk
    >>> check_bijection(fk.Identity((3,)), laws="exactness").ok
    True
    """
    options = {
        "dtype": dtype,
        "seed": seed,
        "rows": rows,
        "tolerance": tolerance,
        "inputs": inputs,
        "conditions": conditions,
    }
    subjects = subjects_of(bijection, example, options)
    names = law_names(laws)
    skipped = skipped_laws(skip)
    process_names = [law.name for law in PROCESS_LAWS if law.name in names and law.name not in skipped]
    reports = [run_laws(subject, names, skipped) for subject in subjects]
    elsewhere = run_process_laws(subjects, process_names) if process_names else [[] for _ in subjects]
    report = Report.merge([
        Report((*each.results, *more), each.notes) for each, more in zip(reports, elsewhere, strict=True)
    ])  # fmt: skip
    if raises:
        report.raise_if_failed()
    return report


def law_names(laws: str | Iterable[str] | None = None) -> list[str]:
    """The names of the laws asked for, within this process and in others."""
    pairs = [(law.name, law.theme) for law in all_laws().values()] + [(law.name, THEME) for law in PROCESS_LAWS]
    return select_laws(laws, pairs)


def skipped_laws(skip: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """Law names to leave out, each with its reason, from names and themes."""
    if not skip:
        return {}
    reasons = (
        skip if isinstance(skip, Mapping) else dict.fromkeys([skip] if isinstance(skip, str) else skip, "left out")
    )
    return {name: reason for asked, reason in reasons.items() for name in law_names([asked])}


def run_laws(subject: Subject, names: Iterable[str], skipped: Mapping[str, str]) -> Report:
    """The laws of these names that are tried within this process, on one subject."""
    known, wanted = all_laws(), set(names)
    results = [
        Result(name, "skipped", subject.title, reason=skipped[name]) if name in skipped else run_law(law, subject)
        for name, law in known.items()
        if name in wanted
    ]
    process = {law.name for law in PROCESS_LAWS}
    results += [
        Result(name, "skipped", subject.title, reason=skipped[name])
        for name in names
        if name in process and name in skipped
    ]
    return Report(tuple(results), tuple(f"{subject.title}: {note}" for note in dict.fromkeys(subject.notes)))


def run_law(law: Law, subject: Subject) -> Result:
    """One law on one subject, in a random state and under a default dtype of its own."""
    expect = Findings(0.0)
    with isolated(subject.seed):
        try:
            expect.tolerance = subject.tolerance
            law.function(subject, expect)
        except NotApplicable as reason:
            if not expect.broken:
                return Result(law.name, "skipped", subject.title, reason=str(reason))
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            expect.broken.append(Finding(f"raises {type(error).__name__}: {text}"))
    figure, tolerance = expect.worst or (None, None)
    status: Status = "failed" if expect.broken else "passed"
    return Result(law.name, status, subject.title, tuple(expect.broken), "", figure, tolerance)


def subjects_of(target: Any, example: Example | None, options: Mapping[str, Any]) -> list[Subject]:
    """What is given as subjects: one, or one for each example of what is registered.

    Raises:
        ConfigError: it is no bijection, or has no examples.
    """
    if isinstance(target, str):
        name, target = target, lookup(target)
        if not (inspect.isclass(target) and issubclass(target, Bijection)):
            raise ConfigError(f"'{name}' is no bijection, so the laws have nothing to say about it")
    if isinstance(target, Bijection):
        writable = name_of(target) is not None
        return [Subject(f"{type(target).__name__} (an instance)", instance=target, writable=writable, **options)]
    if not callable(target):
        raise ConfigError(
            f"a bijection, a factory, a class or a registered name is needed, got {type(target).__name__}"
        )
    if inspect.isclass(target) and issubclass(target, Bijection):
        return _of_class(target, example, options)
    if example is not None:
        raise ConfigError("an example goes with a class or a registered name, a factory takes no arguments")
    title = getattr(target, "__qualname__", type(target).__name__)
    origin = Origin(target.__module__, target.__qualname__) if importable(target) else None
    subject = Subject(f"{title}()", build=target, origin=origin, **options)
    with isolated(subject.seed, subject.dtype):
        built = target()
    if not isinstance(built, Bijection):
        raise ConfigError(f"the factory {title} must return a fk.Bijection, got {type(built).__name__}")
    subject.writable = name_of(built) is not None
    return [subject]


def _of_class(cls: type[Bijection], example: Example | None, options: Mapping[str, Any]) -> list[Subject]:
    name = name_of(cls)
    if example is None and name is None:
        raise ConfigError(
            f"{cls.__name__} is not registered: pass example=fk.Example(shape, ...), an instance or a factory"
        )
    try:
        examples = [example] if example is not None else examples_of(name or "")
    except RegistryError:
        examples = []
    if not examples:
        raise ConfigError(f"'{name}' is registered without examples: pass examples= to fk.register, or example= here")
    subjects = []
    for index, each in enumerate(examples):
        # A registered example is made anew for each building: it may hold an instance, for `fk.Inverse` say.
        registered = example is None and name is not None
        build = (
            functools.partial(_build_registered, name or "", index)
            if registered
            else functools.partial(each.build, cls)
        )
        origin = None
        if importable(cls):
            origin = (
                Origin(cls.__module__, name=name, index=index)
                if registered
                else Origin(cls.__module__, cls.__qualname__, example=each)
            )
        subjects.append(
            Subject(
                _title(name or cls.__name__, each), build=build, origin=origin, writable=name is not None, **options
            )
        )
    return subjects


def _build_registered(name: str, index: int) -> Bijection:
    return examples_of(name)[index].build(lookup(name))


def _title(name: str, example: Example) -> str:
    arguments = re.sub(r"\s+", " ", repr(example).removeprefix("Example"))
    return name + (arguments if len(arguments) <= LONGEST_TITLE else f"{arguments[:LONGEST_TITLE]}...")
