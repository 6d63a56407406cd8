"""The other process of `flowkit.testing.processes`: `python -m flowkit.testing.worker FOLDER RANK WORLD`."""

from __future__ import annotations

import datetime
import functools
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

GLOO_TIMEOUT = datetime.timedelta(seconds=60)


def main(folder: Path, rank: int, world: int) -> None:
    """Do every job of the folder, and leave the answers there after each, so that a crash loses only what follows."""
    sys.path[:] = json.loads((folder / "path.json").read_text())
    import torch

    from flowkit.testing.processes import Answer, Job

    history = [object() for _ in range(100_000 + 37 * rank)]  # an allocation history of its own
    torch.set_num_threads(1)
    jobs: list[Job] = pickle.loads((folder / "jobs.pickle").read_bytes())
    answers = [Answer() for _ in jobs]
    target = folder / f"answers-{rank}.pickle"
    if rank == 0:
        for job, answer in zip(jobs, answers, strict=True):
            for law, step in _steps(job).items():
                _try(answer, law, step)
            target.write_bytes(pickle.dumps(answers))
    if world > 1:
        _data_parallel(folder, rank, world, jobs, answers)
    if rank == 0:
        target.write_bytes(pickle.dumps(answers))
    del history


def _try(answer: Any, law: str, step: Callable[[], Any]) -> None:
    try:
        answer.values[law] = step()
    except Exception as error:
        answer.errors[law] = f"in another process it raises {type(error).__name__}: {error}"


def _steps(job: Any) -> dict[str, Callable[[], Any]]:
    import torch

    import flowkit as fk
    from flowkit.bijection import as_tuple
    from flowkit.testing.laws.state import flow_numbers

    def names() -> list[str]:
        torch.manual_seed(job.seed + 1)
        return list(job.origin.build().state_dict())

    def numbers() -> list[torch.Tensor]:
        bijection = pickle.loads(job.pickled)
        torch.manual_seed(job.seed)
        with torch.no_grad():
            output, log_det = bijection(*job.arguments)
            if job.stochastic:
                torch.manual_seed(job.seed)
            back, inverse = bijection.inverse(*(y.clone() for y in as_tuple(output)), *job.arguments[job.count :])
        return [*as_tuple(output), log_det, *as_tuple(back), inverse]

    def loaded() -> list[torch.Tensor]:
        pickle.loads(job.pickled)  # imports the modules that register its parts, as whoever loads the file has to
        flow = fk.load(job.file)
        torch.manual_seed(job.seed)
        return list(flow_numbers(flow, job.arguments[: job.count], job.arguments[job.count :]))

    steps: dict[str, Callable[[], Any]] = {}
    if job.origin is not None:
        steps["state_names"] = names
    if job.file is not None:
        steps["file_in_another_process"] = loaded
    if job.pickled is not None and job.arguments:
        steps["spawn"] = numbers
    return steps


def _data_parallel(folder: Path, rank: int, world: int, jobs: list[Any], answers: list[Any]) -> None:
    import torch

    store = torch.distributed.FileStore(str(folder / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=GLOO_TIMEOUT)
    try:
        for job, answer in zip(jobs, answers, strict=True):
            if job.ddp:
                _try(answer, "data_parallel", functools.partial(_reduced, job, rank, world))
    finally:
        torch.distributed.destroy_process_group()


def _reduced(job: Any, rank: int, world: int) -> Any:
    import torch

    from flowkit.testing.processes import gradients

    module = torch.nn.parallel.DistributedDataParallel(pickle.loads(job.pickled), find_unused_parameters=False)
    mine = tuple(a.chunk(world)[rank] for a in job.ddp_arguments)
    for _ in range(2):  # an unused parameter shows at the second step
        reduced = gradients(module, mine)
    return {name.removeprefix("module."): value for name, value in reduced.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
