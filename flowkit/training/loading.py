"""Batches in an order that belongs to the run, so that a resumed run goes on at its next item."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from flowkit.errors import ConfigError, FlowkitError
from flowkit.training.noise import generator_for

SPARE_BATCHES = 8  # Lightning's batch counter and its step counter may differ by one around a restart


class CountsItems(Protocol):
    """What knows how many items the run has used: a `FlowModule`."""

    items_seen: int


class NextItems(Sampler[list[int]]):
    """A batch sampler that begins at `run.items_seen`, and shares each batch out over the processes.

    Args:
        run: the `FlowModule`, whose count of items is in its checkpoints.
        items: how many the data set has.
        batch_size: of all processes together.
        steps: batches in the whole run.
        shuffle: each pass over the data set in another random order, which depends on (seed, pass) alone. Without it
            item i of the run is item i of the data set.
        seed: of the order.

    Raises:
        ConfigError: a batch size below 1, an empty data set, or too few items for the steps without `shuffle`.
    """

    def __init__(
        self, run: CountsItems, items: int, *, batch_size: int, steps: int, shuffle: bool = True, seed: int = 0
    ):
        if batch_size < 1 or steps < 1 or items < 1:
            raise ConfigError(
                f"at least one item, one step and a batch size of 1 are needed, "
                f"got {items} items, {steps} steps and a batch size of {batch_size}"
            )
        if not shuffle and items < batch_size * steps:
            raise ConfigError(
                f"{steps} steps of {batch_size} need {batch_size * steps} items, the data set has {items}"
            )
        self.run, self.items, self.batch_size, self.steps = run, items, batch_size, steps
        self.shuffle, self.seed = shuffle, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.steps + SPARE_BATCHES

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = process_place()
        if self.batch_size % world:
            raise ConfigError(f"a batch size of {self.batch_size} cannot be shared out evenly over {world} processes")
        for first in range(self.run.items_seen, self.batch_size * self.steps, self.batch_size):
            yield [self._item(number) for number in range(first + rank, first + self.batch_size, world)]

    def _item(self, number: int) -> int:
        if not self.shuffle:
            return number
        passes, place = divmod(number, self.items)
        if self._order[0] != passes:
            generator = generator_for(self.seed, "order", passes)
            self._order = passes, torch.randperm(self.items, generator=generator).tolist()
        return self._order[1][place]


def batches(
    dataset: Dataset,
    run: CountsItems,
    *,
    batch_size: int,
    steps: int,
    shuffle: bool = True,
    seed: int = 0,
    workers: int = 0,
    **options: Any,
) -> DataLoader:
    """A data loader over `NextItems`; `options` are DataLoader's.

    Args:
        dataset: map-style, with a length.
        run: the `FlowModule` that is trained.
        batch_size: of all processes together.
        steps: of the whole run.
        shuffle: as in `NextItems`.
        seed: of the order.
        workers: processes that read ahead; they change no number.
    """
    items = len(dataset)  # type: ignore[arg-type]  # a map-style data set has a length
    sampler = NextItems(run, items, batch_size=batch_size, steps=steps, shuffle=shuffle, seed=seed)
    # A generator of its own: the loader's draw must not shift the random numbers of a resumed run.
    return _Loader(
        _Telling(dataset) if workers else dataset,
        batch_sampler=sampler,
        collate_fn=_Collate(options.pop("collate_fn", None) or default_collate),
        num_workers=workers,
        worker_init_fn=leave_interrupts_to_the_main_process if workers else None,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
        **options,
    )


class _Telling(Dataset):
    """A data set whose errors are items: raised in a worker, they would come wrapped in the worker's traceback."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        try:
            if hasattr(self.dataset, "__getitems__"):
                return list(self.dataset.__getitems__(numbers))
            return [self.dataset[number] for number in numbers]
        except FlowkitError as error:
            return [error]


class _Collate:
    """A batch of items; an error as it is."""

    def __init__(self, collate: Callable[[list[Any]], Any]):
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        return items[0] if isinstance(items[0], FlowkitError) else self.collate(items)


class _Loader(DataLoader):
    """A data loader that raises the errors among its batches."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, FlowkitError):
                raise batch
            yield batch


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """What a data loader's worker does first: Ctrl-C is answered after the step at hand, for which it is needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def process_place() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
