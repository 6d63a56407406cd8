"""One call that trains: quiet, resumable, and ended cleanly by Ctrl-C."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowkit.errors import ConfigError, MissingDependencyError, OutOfMemoryError
from flowkit.training import guard
from flowkit.training._lightning import TorchElasticEnvironment, pl, quiet
from flowkit.training.checkpoint import (
    SAVE_EVERY_SECONDS,
    KeepLastState,
    check_fits,
    random_state,
    read_checkpoint,
    set_random_state,
)
from flowkit.training.module import FlowModule
from flowkit.training.processes import launched, synchronized_norms

VALIDATE_EVERY = 500  # steps


@dataclass(frozen=True)
class FitResult:
    """How a run went.

    Attributes:
        losses: of every step since the first, before a restart too; nats per dimension.
        steps: how many steps the flow has had.
        seconds: that this call took.
        interrupted: whether Ctrl-C ended it before the last step.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    interrupted: bool


def fit(
    module: FlowModule,
    batches: Iterable[Any],
    *,
    steps: int,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    save_every: float | None = SAVE_EVERY_SECONDS,
    callbacks: Sequence[pl.Callback] = (),
    tensorboard: str | Path | None = None,
    validation: Iterable[Any] | None = None,
    validate_every: int = VALIDATE_EVERY,
    **trainer_options: Any,
) -> FitResult:
    """Train until `steps` steps are done, in all.

    Nothing but the checkpoint, and TensorBoard's curves where they are asked for, is written, and Lightning's hints and
    warnings stay silent. For anything else use a `FlowModule` under a Trainer of one's own.

    Started by `torchrun --nproc-per-node N`, the processes share each batch out (gloo on CPUs, NCCL on GPUs), batch
    normalisation takes the statistics of all of them, and the first alone writes and prints.

    Args:
        module: the flow and its recipe; the flow is trained in place, and left in eval mode, on the CPU.
        batches: a data loader, by `flowkit.training.batches` where the run is to be resumed exactly.
        steps: of the whole run, those before a restart included.
        checkpoint: the file of the last state; it replaces an earlier one; None for none.
        resume: go on from that file.
        device: "auto", "cpu", "cuda" or "cuda:N".
        save_every: seconds between two writes of the checkpoint.
        callbacks: Lightning's, `flowkit.training.Progress` for one.
        tensorboard: a folder for the curves of what is logged, by step; `tensorboard --logdir FOLDER` shows them.
        validation: a loader of held-out batches, of this process's share of them where there are several; `val_loss`
            and `val_bits_per_dimension` are means over the rows of all.
        validate_every: steps between two validations.
        trainer_options: passed to `lightning.pytorch.Trainer`: `precision="bf16-mixed"`, `log_every_n_steps=10`.

    Raises:
        ConfigError: steps below 1, a device that is not there, `resume` without a checkpoint, or a batch normalisation
            that cannot be synchronised over processes.
        StorageError: the checkpoint cannot be read, is another flow's, or cannot be written.
        MissingDependencyError: `tensorboard` without the package.
        OutOfMemoryError: a step does not fit into memory; the checkpoint is as it was last written.
        KeyboardInterrupt: a second Ctrl-C.
        NonFiniteError: a step's loss or gradient is not finite; the flow, and the checkpoint, are as before that step.

    Example:
        >>> import flowkit as fk
        >>> from torch.utils.data import TensorDataset
        >>> from flowkit.training import FlowModule, batches
        >>> graph = fk.Graph()
        >>> graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,))))
        >>> module = FlowModule(fk.Flow(graph), noise=0.05)
        >>> data = TensorDataset(torch.randn(100, 4))
        >>> fit(module, batches(data, module, batch_size=20, steps=3), steps=3, device="cpu").steps
        3
    """
    if steps < 1 or validate_every < 1:
        raise ConfigError(f"at least one step is needed, got steps={steps} and validate_every={validate_every}")
    place = _over_processes(device) or dict(zip(("accelerator", "devices"), trainer_device(device), strict=True))
    keeper = KeepLastState(checkpoint, seconds=save_every)
    if resume:
        if checkpoint is None:
            raise ConfigError("resume needs the checkpoint to go on from")
        check_fits(read_checkpoint(checkpoint), module, checkpoint)
    if validation is not None:  # by steps: a run is one epoch
        trainer_options = {"check_val_every_n_epoch": None, "val_check_interval": validate_every, **trainer_options}
        validation = _Aside(validation)
    started = time.monotonic()
    keeper.listen()
    try:
        with quiet(), synchronized_norms(module) if "strategy" in place else nullcontext():
            trainer = pl.Trainer(
                **place,
                max_steps=steps,
                max_epochs=-1,
                callbacks=[*callbacks, keeper],
                logger=_logger(tensorboard),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                **trainer_options,
            )
            module.train()
            trainer.fit(module, batches, validation, ckpt_path=checkpoint if resume else None, weights_only=True)
    except SystemExit as leaving:  # Lightning's answer to a second Ctrl-C, which is the caller's to answer
        raise KeyboardInterrupt from leaving
    except (RuntimeError, MemoryError) as error:
        if not guard.is_out_of_memory(error):
            raise
        rows = module.rows_at_hand
        raise OutOfMemoryError(
            f"step {len(module.losses) + 1}, of {rows} rows with backprop '{module.flow.backprop}', does not fit into "
            f"memory: {guard.takes_less_memory(module.flow, rows)}"
        ) from error
    finally:
        keeper.release()
        module.eval()
        module.to("cpu")
    return FitResult(
        tuple(module.losses),
        len(module.losses),
        time.monotonic() - started,
        keeper.interrupted and len(module.losses) < steps,
    )


class _Aside:
    """A loader whose random draws (a data loader's seed, a shuffling) do not shift those of training."""

    def __init__(self, loader: Iterable[Any]):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # or the TypeError that says that it has none

    def __iter__(self) -> Iterator[Any]:
        state = random_state()
        batches = iter(self.loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                set_random_state(state)
            yield batch
            state = random_state()


def _logger(tensorboard: str | Path | None) -> Any:
    if tensorboard is None:
        return False
    try:
        importlib.import_module("tensorboard")
    except ImportError as error:
        raise MissingDependencyError(
            'curves need TensorBoard: python -m pip install "flowkit[train]" brings it'
        ) from error
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(tensorboard, name=None, version="")


def _over_processes(device: str) -> dict[str, Any] | None:
    """Trainer options for the processes that torchrun started; None where there is one."""
    processes = launched()
    if processes is None:
        return None
    world, local = processes
    if ":" in device:
        raise ConfigError(f"torchrun gives every process its own device: use cuda, not '{device}'")
    accelerator, _ = trainer_device(device)
    if accelerator == "gpu" and torch.cuda.device_count() < local:
        raise ConfigError(f"{local} processes need as many GPUs, this machine has {torch.cuda.device_count()}: use cpu")
    return {
        "accelerator": accelerator,
        "devices": local,
        "num_nodes": world // local,
        "strategy": "ddp",
        "plugins": [TorchElasticEnvironment()],
    }


def trainer_device(device: str) -> tuple[str, Any]:
    """Lightning's words for a device, one process.

    >>> trainer_device("cpu")
    ('cpu', 1)

    Raises:
        ConfigError: an unknown device, or one that is not there.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"the device must be auto, cpu, cuda or cuda:N, got '{device}'")
    if kind == "auto":
        return ("gpu" if torch.cuda.is_available() else "cpu"), 1
    if kind == "cpu":
        return "cpu", 1
    if not torch.cuda.is_available():
        raise ConfigError(f"the device '{device}' is not there: this PyTorch sees no CUDA; use cpu")
    if int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"the device '{device}' is not there: {torch.cuda.device_count()} CUDA devices are")
    return "gpu", [int(number or 0)]
