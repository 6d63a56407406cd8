"""Checkpoints that are whole or not there, and a run that ends cleanly when it is interrupted."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowkit._version import __version__
from flowkit.errors import NonFiniteError, StorageError
from flowkit.training._lightning import TorchCheckpointIO, pl
from flowkit.training.processes import any_process

SAVE_EVERY_SECONDS = 30.0
CHECKPOINT_FORMAT = 1


class KeepLastState(pl.Callback):
    """Keeps the last state of a run in one file, replaced atomically: an earlier one survives a failed write.

    It is written every `seconds`, at the end, after a step that was refused because it is not finite, and on Ctrl-C,
    which ends the run after the step at hand. (A second Ctrl-C ends it at once.)

    Args:
        path: of the checkpoint; None to keep none, and only listen to Ctrl-C.
        seconds: between two writes; None for the end alone.

    Attributes:
        interrupted: whether Ctrl-C ended the run.
    """

    def __init__(self, path: str | Path | None, *, seconds: float | None = SAVE_EVERY_SECONDS):
        self.path, self.seconds = None if path is None else Path(path), seconds
        self.interrupted = False
        self._saved_at, self._stops = 0.0, False
        self._trainer: pl.Trainer | None = None
        self._before: Any = None
        self._listens_for_itself = False

    def listen(self) -> None:
        """Takes Ctrl-C, where this is the main thread; `fit` does so before Lightning begins."""
        if self._before is None and threading.current_thread() is threading.main_thread():
            self.interrupted = False
            self._before = signal.signal(signal.SIGINT, self._interrupt)

    def release(self) -> None:
        """Gives Ctrl-C back to whom it belonged."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        if self._trainer is not None and self._trainer.world_size == 1:
            self._trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to Ctrl-C from here on, and answers one that came before."""
        self._saved_at, self._trainer = time.monotonic(), trainer
        if self._before is None:
            self._listens_for_itself = True
            self.listen()
        [self._stops] = any_process(self.interrupted, device=pl_module.device)
        trainer.should_stop = trainer.should_stop or self._stops

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves now and then. Between two steps, where all counters agree; and all processes at the same step."""
        due = self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds
        due, self._stops = any_process(due, self.interrupted, device=pl_module.device)
        if due:
            self._save(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends all processes after the same step, where one of them heard Ctrl-C before it."""
        if trainer.world_size > 1 and self._stops:
            self.interrupted = trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end, or the state at Ctrl-C."""
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves the last good state where the step was refused; in other failures the last written one stands."""
        self._end()
        if isinstance(exception, NonFiniteError):
            self._save(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives Ctrl-C back."""
        self._end()

    def _end(self) -> None:
        self._trainer = None
        if self._listens_for_itself:
            self._listens_for_itself = False
            self.release()

    def _save(self, trainer: pl.Trainer) -> None:
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        writer, usual = _Writer(), trainer.strategy.checkpoint_io
        reason: str | None = None
        try:
            trainer.strategy.checkpoint_io = writer
            trainer.save_checkpoint(temporary)
            reason = writer.reason
            if trainer.is_global_zero and reason is None:
                os.replace(temporary, self.path)
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            trainer.strategy.checkpoint_io = usual
            if trainer.is_global_zero and temporary.exists():
                temporary.unlink()
        [failed] = any_process(reason is not None, device=trainer.strategy.root_device)
        if failed:
            raise StorageError(
                f"the checkpoint '{self.path}' cannot be written ({reason or 'in another process'}); the one written "
                f"before is kept"
            )
        self._saved_at = time.monotonic()


class _Writer(TorchCheckpointIO):
    """Writes a checkpoint to a file; what goes wrong is kept for later, for other processes wait at a barrier."""

    reason: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Straight to its place: Lightning's own makes a copy in memory, and one where temporary files lie."""
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            # and hides the reason behind it
            told = next((e for e in (error, error.__context__, error.__cause__) if isinstance(e, OSError)), error)
            self.reason = getattr(told, "strerror", None) or str(told).partition("\n")[0]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint, as a dictionary on the CPU; tensors and plain data alone, so no code runs.

    Raises:
        StorageError: missing, damaged, or not a checkpoint of a `FlowModule`.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise StorageError(f"the checkpoint '{path}' does not exist") from error
    except OSError as error:
        raise StorageError(f"the checkpoint '{path}' cannot be read: {error.strerror or error}") from error
    with file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except (
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
            KeyError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            raise StorageError(f"the checkpoint '{path}' is damaged, or is no checkpoint") from error
    if not isinstance(checkpoint, dict) or "flowkit_training" not in checkpoint or "state_dict" not in checkpoint:
        raise StorageError(f"'{path}' is no checkpoint of flowkit's training")
    if missing := {"losses", "items_seen", "random_states"} - checkpoint["flowkit_training"].keys():
        raise StorageError(f"the checkpoint '{path}' is of another version of flowkit: it lacks {sorted(missing)}")
    kept = checkpoint["flowkit_training"]
    if kept.get("format", CHECKPOINT_FORMAT) > CHECKPOINT_FORMAT:
        raise StorageError(
            f"the checkpoint '{path}' was written by flowkit {kept.get('flowkit')} in format {kept['format']}; this is "
            f"flowkit {__version__}, which reads format {CHECKPOINT_FORMAT}: update flowkit"
        )
    return checkpoint


def check_fits(checkpoint: dict[str, Any], module: pl.LightningModule, path: str | Path) -> None:
    """Refuse a checkpoint of another flow.

    Raises:
        StorageError: it is about something else, which is named, or a name or a shape differs; the first is named.
    """
    about = checkpoint["flowkit_training"].get("about") or {}
    for what, now in getattr(module, "about", {}).items():
        if about.get(what, now) != now:
            raise StorageError(
                f"the checkpoint '{path}' is of the {what} '{about[what]}', and the run that is to go on from it has "
                f"the {what} '{now}'"
            )
    kept = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in (*own, *kept):
        if kept.get(name) != own.get(name):
            raise StorageError(
                f"the checkpoint '{path}' is of another flow: '{name}' is {kept.get(name, 'missing')} there "
                f"and {own.get(name, 'missing')} here"
            )


def random_state() -> dict[str, Any]:
    """The state of every random generator that user code may draw from, as tensors and plain data."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  # the state of the user's global generator
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; GPUs that were not there are left alone."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
