"""Batches from tar shards that are read front to back, by WebDataset: for data that fit neither memory nor a disk."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from flowkit.errors import ConfigError, FlowkitError, InputError, StorageError
from flowkit.training.loading import SPARE_BATCHES, leave_interrupts_to_the_main_process, process_place
from flowkit.training.noise import generator_for
from flowkit.training.tars import Entries, list_shards, samples_of_shard, webdataset_package

SPLITS = ("items", "shards")
BLOCK = 1000  # samples that are shuffled among each other
MOST_FAILURES = 100  # samples in a row that `decode` leaves out, before the shards are given up

Place = tuple[int, int]  # (pass, samples of it that were used)


class Run(Protocol):
    """What a stream needs of a `FlowModule`."""

    items_seen: int
    position: Callable[[int], Any] | None
    positions: list[Any] | None


def streamed_batches(
    shards: str | Path | Sequence[str | Path],
    run: Run,
    *,
    decode: Callable[[Entries, int], Any],
    batch_size: int,
    steps: int,
    split: str = "items",
    shuffle: int = BLOCK,
    seed: int = 0,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> ShardBatches:
    """Batches of the samples in tar shards, pass after pass, each sample once a pass over all processes and workers.

    Files of one name are one sample, as WebDataset has it: `a/7.jpg` and `a/7.json` become
    `{"__key__": "a/7", "jpg": bytes, "json": bytes}`. The shards' order is another in every pass, and blocks of
    `shuffle` samples are shuffled; both depend on (seed, pass) alone. A resumed run goes on at its next sample: the
    shards of the pass at hand are read again up to there, and not decoded.

    Args:
        shards: files, a glob of files, addresses or commands (`pipe:cat a.tar`, `https:...`) in braces notation
            (`train-{00..09}.tar`), or a list of them. Addresses and commands are opened by `webdataset.gopen`, which
            runs what a `pipe:` says: take them from nobody that you would not let run commands.
        run: the `FlowModule` that is trained.
        decode: (a sample's entries, the number of the item in the run) -> an item, or None for a sample that cannot be
            used: the next one of its block that can takes its place. What is random in it should depend on the number
            (`generator_for`), so that it does not depend on processes and restarts.
        batch_size: of all processes together.
        steps: of the whole run.
        split: "items": item i of a batch belongs to process i % processes, every worker reads all shards, and decodes
            only its own items; so processes and workers change no number, and a run may be resumed with others.
            "shards": every worker reads shards of its own, so each is read once a pass; batches then depend on the
            number of processes and workers, and a run is resumed with as many as before. A worker that is through
            begins its next pass while others are in theirs, so the shards should be of one size, and a multiple of the
            workers. Where there are fewer shards than workers, it is "items".
        shuffle: how many samples are held at a time to be shuffled; 0 for the order in which they lie there.
        seed: of the order.
        workers: processes that read ahead, for each process of the run.
        collate: items -> batch.

    Raises:
        ConfigError: values out of range, or, when the run begins, one that cannot go on at its place in the shards.
        InputError: while it is read, a shard that is missing, damaged or cut short, or one without usable samples.
        MissingDependencyError: webdataset is not installed.

    Example:
        >>> import io, tarfile, tempfile
        >>> from types import SimpleNamespace
        >>> path = f"{tempfile.mkdtemp()}/numbers.tar"
        >>> with tarfile.open(path, "w") as shard:
        ...     for number in range(4):
        ...         entry = tarfile.TarInfo(f"{number}.txt")
        ...         entry.size = 1
        ...         shard.addfile(entry, io.BytesIO(str(number).encode()))
        >>> def decode(entries, number):
        ...     return int(entries["txt"])
        >>> run = SimpleNamespace(items_seen=0, position=None, positions=None)
        >>> [b.tolist() for b in streamed_batches(path, run, decode=decode, batch_size=2, steps=3, shuffle=0)]
        [[0, 1], [2, 3], [0, 1]]
    """
    if batch_size < 1 or steps < 1 or shuffle < 0 or workers < 0 or split not in SPLITS:
        raise ConfigError(
            f"a stream of shards needs a batch size and steps of at least 1, shuffle and workers of at least 0 and a "
            f"split of {' or '.join(SPLITS)}, got {batch_size}, {steps}, {shuffle}, {workers} and {split!r}"
        )
    webdataset_package()
    names = list_shards(shards)
    return ShardBatches(names, run, decode, batch_size, steps, split, shuffle, seed, workers, collate)


@dataclass(frozen=True)
class _Plan:
    """What one process reads, from where its run is to its end."""

    shards: tuple[str, ...]
    decode: Callable[[Entries, int], Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    batches: int
    shuffle: int
    seed: int
    rank: int
    world: int
    workers: int
    by_shards: bool
    first: int
    turn: int  # whose turn it is, of the places
    places: tuple[Place, ...]


class ShardBatches:
    """See `streamed_batches`. Iterated over, it begins where the run is."""

    def __init__(
        self,
        shards: tuple[str, ...],
        run: Run,
        decode: Callable[[Entries, int], Any],
        batch_size: int,
        steps: int,
        split: str,
        shuffle: int,
        seed: int,
        workers: int,
        collate: Callable[[list[Any]], Any],
    ):
        self.shards, self.run, self.decode, self.collate = shards, run, decode, collate
        self.batch_size, self.steps, self.split = batch_size, steps, split
        self.shuffle, self.seed, self.workers = shuffle, seed, workers
        self._plan: _Plan | None = None
        self._base: tuple[int, int, list[Place]] = (0, 0, [])  # batches, turn, places: then, and what came since
        self._since: deque[Place] = deque()

    def __len__(self) -> int:
        return self.steps + SPARE_BATCHES

    def __iter__(self) -> Iterator[Any]:
        plan = self._plan = self._planned()
        self.run.position = self._position
        self._base, self._since = (0, plan.turn, list(plan.places)), deque()
        loader = DataLoader(
            _Reader(plan),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=leave_interrupts_to_the_main_process if self.workers else None,
            generator=torch.Generator().manual_seed(self.seed),
            multiprocessing_context=_start_method(plan) if self.workers else None,
        )
        for found in loader:
            if isinstance(found, FlowkitError):  # not raised in the worker, which would wrap it in its traceback
                raise found
            batch, place = found
            self._since.append(place)
            if len(self._since) > SPARE_BATCHES:  # more than anybody reads ahead
                self._base = _moved_on(*self._base, self._since.popleft())
            yield batch

    def _by_shards(self, world: int) -> bool:
        return self.split == "shards" and len(self.shards) >= world * max(1, self.workers)

    def _settings(self, world: int) -> dict[str, Any]:
        """What must be as it was for a run to go on."""
        by_shards = self._by_shards(world)
        same = {
            "the split": "shards" if by_shards else "items",
            "the number of shards": len(self.shards),
            "the hash of the shards' names": hashlib.sha256("\n".join(self.shards).encode()).hexdigest()[:12],
            "shuffle": self.shuffle,
            "the seed": self.seed,
        }
        if by_shards:
            same |= {"the number of processes": world, "the number of workers": self.workers}
        return same

    def _planned(self) -> _Plan:
        rank, world = process_place()
        if self.batch_size % world:
            raise ConfigError(f"a batch size of {self.batch_size} cannot be shared out evenly over {world} processes")
        workers, by_shards, first = max(1, self.workers), self._by_shards(world), self.run.items_seen
        places, turn = [(0, 0)] * (workers if by_shards else 1), 0
        if first:
            kept = self._position(first) if self._plan is not None else (self.run.positions or [None])[0]
            if kept is None:
                raise ConfigError(
                    f"the run has used {first} items, and it is not known where in these shards it is: only a run that "
                    f"streamed shards before can go on with them"
                )
            for what, now in self._settings(world).items():
                if kept["settings"].get(what) != now:
                    raise ConfigError(
                        f"the run cannot go on at its place in the shards: {what} was {kept['settings'].get(what)}, "
                        f"and is {now}"
                    )
            own = kept if self._plan is not None or not by_shards else (self.run.positions or [])[rank]
            places, turn = [(int(a), int(b)) for a, b in own["places"]], int(own["turn"])
        left = max(0, -(-(self.batch_size * self.steps - first) // self.batch_size))
        return _Plan(
            self.shards, self.decode, self.collate, self.batch_size, left, self.shuffle, self.seed,
            rank, world, workers, by_shards, first, turn, tuple(places),
        )  # fmt: skip

    def _position(self, items_seen: int) -> dict[str, Any]:
        """Where this process is in its shards after so many items: plain data, for a checkpoint."""
        plan = self._plan
        if plan is None:
            raise StorageError("a stream of shards has a place when it has begun")
        batches, turn, places = self._base
        places = list(places)
        for place in itertools.islice(self._since, (items_seen - plan.first) // self.batch_size - batches):
            batches, turn, places = _moved_on(batches, turn, places, place)
        return {"settings": self._settings(plan.world), "turn": turn, "places": [list(place) for place in places]}


def _moved_on(batches: int, turn: int, places: list[Place], place: Place) -> tuple[int, int, list[Place]]:
    """After one more batch, read by whose turn it was, up to `place`."""
    places = [place if number == turn else before for number, before in enumerate(places)]
    return batches + 1, (turn + 1) % len(places), places


class _Reader(IterableDataset):
    """The batches of one worker of one process, each with the place behind it."""

    def __init__(self, plan: _Plan):
        self.plan = plan

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        try:
            yield from (self._of_its_shards(worker) if self.plan.by_shards else self._of_all_shards(worker))
        except FlowkitError as error:
            yield error

    def _of_all_shards(self, worker: int) -> Iterator[Any]:
        plan = self.plan
        samples = _samples(plan, plan.places[0], 0, 1)
        for batch in range(plan.batches):
            rows, place = [], plan.places[0]
            for row in range(plan.batch_size):
                block, order, here, place = next(samples)
                if batch % plan.workers == worker and row % plan.world == plan.rank:
                    rows.append(_item(plan, block, order, here, plan.first + batch * plan.batch_size + row))
            if batch % plan.workers == worker:
                yield plan.collate(rows), place

    def _of_its_shards(self, worker: int) -> Iterator[Any]:
        plan = self.plan
        slot = (plan.turn + worker) % plan.workers  # after a restart the first worker does what is next
        samples = _samples(plan, plan.places[slot], plan.rank * plan.workers + slot, plan.world * plan.workers)
        for batch in range(worker, plan.batches, plan.workers):
            rows, place = [], plan.places[slot]
            first = plan.first + batch * plan.batch_size + plan.rank
            for number in range(first, first + plan.batch_size, plan.world)[: plan.batch_size // plan.world]:
                block, order, here, place = next(samples)
                rows.append(_item(plan, block, order, here, number))
            yield plan.collate(rows), place


def _samples(plan: _Plan, start: Place, slot: int, slots: int) -> Iterator[tuple[list[Entries], list[int], int, Place]]:
    """The samples of every `slots`-th shard, without end: the block each is in, the block's order, where in it it is,
    and the place behind it.
    """
    passes, used = start
    while True:
        read = 0
        shards = [plan.shards[i] for i in _order(len(plan.shards), plan, "shards", passes)[slot::slots]]
        files = itertools.chain.from_iterable(map(samples_of_shard, shards))
        for number in itertools.count():
            block = list(itertools.islice(files, max(1, plan.shuffle)))
            if not block:
                break
            order = _order(len(block), plan, f"block {slot} of {slots} in pass {passes}", number)
            for here in range(max(0, used - read), len(block)):
                yield block, order, here, (passes, read + here + 1)
            read += len(block)
        if not read or used > read:
            found = f"hold {read} samples, and the run had used {used} of them" if read else "hold no samples"
            raise InputError(f"the shards '{shards[0]}' to '{shards[-1]}' {found}")
        passes, used = passes + 1, 0


def _order(count: int, plan: _Plan, purpose: str, number: int) -> list[int]:
    if not plan.shuffle:
        return list(range(count))
    return torch.randperm(count, generator=generator_for(plan.seed, purpose, number)).tolist()


def _item(plan: _Plan, block: list[Entries], order: list[int], here: int, number: int) -> Any:
    tried = min(MOST_FAILURES, len(block))
    for step in range(tried):
        item = plan.decode(block[order[(here + step) % len(block)]], number)
        if item is not None:
            return item
    first = block[order[here]]
    raise InputError(
        f"{tried} samples in a row cannot be used, from '{first['__key__']}' of the shard '{first['__url__']}' on"
    )


def _as_it_is(found: Any) -> Any:
    return found


def _start_method(plan: Any) -> str | None:
    """How workers start: from a server without threads where several processes train, else as PyTorch does.

    A process group has threads of its own, and a process forked while one of them holds a lock can wait for it forever:
    it was seen with two gloo processes of two workers each. What cannot be pickled is forked all the
    same, and so is everything where the script has no `if __name__ == "__main__":`, for a worker would run it again.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if "forkserver" not in torch.multiprocessing.get_all_start_methods():
        return None
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None or not _has_guard(script):
        return None
    try:
        pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return "forkserver"


def _has_guard(script: str) -> bool:
    try:
        return "__main__" in Path(script).read_text(errors="replace")
    except OSError:
        return False
