"""Laws that need other processes: names, files and pickles elsewhere, and DDP. One pair serves many subjects.

Starting torch costs seconds, so `run_process_laws` takes all subjects at once: two workers start, both run DDP, and the
first also builds, unpickles and loads what this process wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowkit as fk
from flowkit.bijection import as_tuple, event_sum
from flowkit.testing.findings import Findings, NotApplicable
from flowkit.testing.laws.state import SAME, flow_numbers, save_or_refuse
from flowkit.testing.report import Result, Status
from flowkit.testing.subject import Origin, Subject, importable, isolated, refuse

TIMEOUT = 600  # seconds that a worker may take for all subjects; torch starts within ten
DDP_ROWS = 4  # two a process


@dataclass
class Job:
    """What the workers do for one subject; everything in it can be pickled. None: the law does not apply."""

    seed: int
    stochastic: bool = False
    origin: Origin | None = None
    pickled: bytes | None = None
    arguments: tuple[Tensor, ...] = ()
    count: int = 0
    file: str | None = None
    ddp: bool = False
    ddp_arguments: tuple[Tensor, ...] = ()


@dataclass
class Answer:
    """What a worker found for one subject: a value by law, or the text of an error."""

    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class ProcessLaw:
    """A law whose work is done elsewhere: `plan` fills the job here, `judge` compares here."""

    name: str
    number: int

    def plan(self, subject: Subject, job: Job, folder: Path) -> None:
        """Fill in what the worker needs, or raise `NotApplicable`."""
        raise NotImplementedError

    def judge(self, subject: Subject, value: Any, expect: Findings) -> None:
        """Compare the worker's value with this process's."""
        raise NotImplementedError


class StateNames(ProcessLaw):
    """State names are equal across processes with different allocation history."""

    name, number = "state_names", 6

    def plan(self, subject: Subject, job: Job, folder: Path) -> None:
        """The worker builds it anew."""
        if subject.origin is None:
            refuse(
                "another process cannot build it: its class or factory cannot be imported, or only an instance is given"
            )
        try:
            pickle.dumps(subject.origin)
        except Exception as error:
            refuse(f"its arguments cannot be sent to another process: {error}")
        job.origin = subject.origin

    def judge(self, subject: Subject, value: Any, expect: Findings) -> None:
        """Same names, same order."""
        here = list(subject.original.state_dict())
        expect(value == here, f"another process names the state {_shortened(value)}, this one {_shortened(here)}")


class Spawned(ProcessLaw):
    """A pickle gives the same numbers in a process that starts afresh, as a spawned worker does."""

    name, number = "spawn", 7

    def plan(self, subject: Subject, job: Job, folder: Path) -> None:
        """The pickle and the data."""
        if not importable(type(subject.original)):
            refuse("its class cannot be imported by name")
        job.pickled = pickle.dumps(subject.bijection)
        job.arguments, job.count = subject.arguments(), subject.arity("forward")

    def judge(self, subject: Subject, value: Any, expect: Findings) -> None:
        """Same numbers in both directions."""
        arguments, count = subject.arguments(), subject.arity("forward")
        with torch.no_grad():
            outputs, log_det = subject.call(subject.bijection, "forward", *arguments)
            back, inverse_log_det = subject.call(subject.bijection, "inverse", *outputs, *arguments[count:])
        for got, want in zip(value, (*outputs, log_det, *back, inverse_log_det), strict=True):
            expect.close(got, want, "a spawned process gives something else", SAME)


class FileElsewhere(ProcessLaw):
    """A file loaded in another process gives the same numbers."""

    name, number = "file_in_another_process", 6

    def plan(self, subject: Subject, job: Job, folder: Path) -> None:
        """The file, written here."""
        if not subject.writable:
            refuse("its class is not registered, so a file cannot hold it")
        if not importable(type(subject.original)):
            refuse("its class cannot be imported by name")
        path = folder / f"{len(list(folder.iterdir()))}.safetensors"
        save_or_refuse(subject, fk.Flow(subject.bijection).to(subject.dtype).eval(), path)
        job.file, job.pickled = str(path), pickle.dumps(subject.bijection)
        job.arguments, job.count = subject.arguments(), subject.arity("forward")

    def judge(self, subject: Subject, value: Any, expect: Findings) -> None:
        """Same numbers through the flow."""
        arguments, count = subject.arguments(), subject.arity("forward")
        flow = fk.Flow(subject.bijection).to(subject.dtype).eval()
        if subject.original.stochastic:
            torch.manual_seed(subject.seed)
        for got, want in zip(value, flow_numbers(flow, arguments[:count], arguments[count:]), strict=True):
            expect.close(got, want, "the file gives something else in another process", SAME)


class DataParallel(ProcessLaw):
    """DDP on two gloo processes, without looking for unused parameters, gives the gradients of the whole batch."""

    name, number = "data_parallel", 8

    def plan(self, subject: Subject, job: Job, folder: Path) -> None:
        """The pickle and twice as many rows."""
        if not importable(type(subject.original)):
            refuse("its class cannot be imported by name")
        if not any(p.requires_grad for p in subject.original.parameters()):
            refuse("it has no parameters")
        subject.exempt("stochastic")
        job.pickled = pickle.dumps(subject.bijection)
        job.ddp, job.count = True, subject.arity("forward")
        job.ddp_arguments = subject.arguments(rows=DDP_ROWS)

    def judge(self, subject: Subject, value: Any, expect: Findings) -> None:
        """Same gradients."""
        want = gradients(subject.bijection, subject.arguments(rows=DDP_ROWS))
        if expect(list(value) == list(want), "DDP gives gradients for other parameters"):
            for name, gradient in want.items():
                expect.close(
                    value[name], gradient, f"DDP gives another gradient of '{name}'", max(1e-9, subject.tolerance)
                )


PROCESS_LAWS: tuple[ProcessLaw, ...] = (StateNames(), FileElsewhere(), Spawned(), DataParallel())
THEME = "processes"


def loss_of(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
    """Half the squared outputs minus the log-det: a likelihood, so every parameter has a gradient."""
    output, log_det = module(*arguments)
    values = as_tuple(output)
    total = sum((event_sum(v.square()) / 2 for v in values), -log_det)
    return torch.as_tensor(total).mean()


def gradients(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Of the loss, for every parameter, by name."""
    module.zero_grad()
    loss_of(module, arguments).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def run_process_laws(subjects: Sequence[Subject], names: Sequence[str]) -> list[list[Result]]:
    """The results of these process laws for each subject; two processes at most, whatever the number of subjects."""
    laws = [law for law in PROCESS_LAWS if law.name in names]
    results: list[dict[str, Result]] = [{} for _ in subjects]
    with tempfile.TemporaryDirectory(prefix="flowkit-conformance-") as name:
        folder = Path(name)
        files = folder / "files"
        files.mkdir()
        jobs = [Job(subject.seed) for subject in subjects]
        for subject, found, job in zip(subjects, results, jobs, strict=True):
            with isolated(subject.seed):
                for law in laws:
                    with _recording(law, subject, found, planning=True):
                        job.stochastic = subject.original.stochastic
                        law.plan(subject, job, files)
        waiting = any(law.name not in found for found in results for law in laws)
        answers, problem = _work(jobs, folder) if waiting else ([Answer() for _ in jobs], "")
        for subject, found, answer in zip(subjects, results, answers, strict=True):
            with isolated(subject.seed):
                for law in laws:
                    if law.name not in found:
                        with _recording(law, subject, found) as expect:
                            _judge(law, subject, answer, problem, expect)
    return [[found[law.name] for law in laws] for found in results]


def _judge(law: ProcessLaw, subject: Subject, answer: Answer, problem: str, expect: Findings) -> None:
    if law.name in answer.values:
        law.judge(subject, answer.values[law.name], expect)
    else:
        expect(False, answer.errors.get(law.name) or f"the other process ended without an answer: {problem}")


@contextlib.contextmanager
def _recording(
    law: ProcessLaw, subject: Subject, found: dict[str, Result], planning: bool = False
) -> Iterator[Findings]:
    # A law that is planned has no result yet; one that is refused or broken has.
    expect = Findings(SAME)
    try:
        yield expect
    except NotApplicable as reason:
        found[law.name] = Result(law.name, "skipped", subject.title, reason=str(reason))
        return
    except Exception as error:
        expect(False, f"raises {type(error).__name__}: {error}")
    if expect.broken or not planning:
        figure, tolerance = expect.worst or (None, None)
        status: Status = "failed" if expect.broken else "passed"
        found[law.name] = Result(law.name, status, subject.title, tuple(expect.broken), "", figure, tolerance)


def _work(jobs: list[Job], folder: Path) -> tuple[list[Answer], str]:
    """The workers' answers, merged, and what a worker said that died."""
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    (folder / "path.json").write_text(json.dumps(sys.path))
    # One thread each: the kit runs beside other tests, and sums in one order.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "flowkit.testing.worker", str(folder)]
    ranks = (0, 1) if any(job.ddp for job in jobs) else (0,)
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(len(ranks))], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in ranks
    ]
    said: list[str] = []
    for worker in workers:
        try:
            output, _ = worker.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            for each in workers:
                each.kill()
            output, _ = worker.communicate()
        said.append(output.decode(errors="replace").strip()[-600:])
    merged = [Answer() for _ in jobs]
    for rank in ranks:
        path = folder / f"answers-{rank}.pickle"
        if path.exists():
            for answer, more in zip(merged, pickle.loads(path.read_bytes()), strict=False):
                answer.values |= more.values
                answer.errors |= more.errors
    return merged, "; ".join(filter(None, said)) or "no message"


def _shortened(names: list[str]) -> str:
    return str(names if len(names) < 5 else [*names[:4], "..."])
