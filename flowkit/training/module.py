"""Maximum likelihood of any Flow as a LightningModule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flowkit._version import __version__
from flowkit.errors import ConfigError, NonFiniteError
from flowkit.flow import Flow
from flowkit.shapes import listing
from flowkit.training import guard
from flowkit.training._lightning import pl
from flowkit.training.average import MovingAverage
from flowkit.training.checkpoint import CHECKPOINT_FORMAT, random_state, set_random_state
from flowkit.training.layout import Layout, bare, by_name, named
from flowkit.training.likelihood import NegativeLogLikelihood
from flowkit.training.loading import process_place
from flowkit.training.noise import keyed_noise
from flowkit.training.processes import mean_over_processes, of_every_process, separate_norms
from flowkit.training.schedule import Schedule

CHECKPOINT_KEY = "flowkit_training"
FUSED_ON = ("cpu", "cuda")


class FlowModule(pl.LightningModule):
    """Trains a Flow by maximum likelihood: under `flowkit.training.fit`, or under one's own Lightning Trainer.

    The loss is `-log q(x | y) / D` in nats per dimension; `loss` and `bits_per_dimension` are logged, and
    `val_loss` and `val_bits_per_dimension` of validation batches. A loss or a gradient that is not finite is caught
    before the step is applied: the error names the step and the node, or the data and the index; parameters, running
    statistics and the optimiser stay as the last good step left them.

    Args:
        flow: any Flow; trained in place.
        lr: of Adam.
        weight_decay: of Adam; a Gaussian prior on every parameter.
        betas: of Adam.
        schedule: of the learning rate.
        noise: standard deviation of the normal noise added to the data, for all inputs or by input name. It belongs to
            the number of a sample: it does not depend on processes or restarts.
        clip: the largest norm of the gradient; None for no clipping. (Leave the Trainer's `gradient_clip_val` unset.)
        seed: of the noise.
        layout: `batch -> (x, given)`, each a tensor, a dictionary by name, or None; by default `by_name`.
        optimizer: `parameters -> Optimizer`, in place of Adam.
        initialize: run `flow.initialize` on the first batch where a part needs it.
        ema: the decay of an exponential moving average of the weights, 0.999 for one; None for no average. It is kept
            in checkpoints; one that has none begins it. `averaged` and `ema_flow` use it.
        validate_average: validate with the averaged weights.
        about: what the run is, by name, such as `{"preset": "small"}`; kept in checkpoints, and one that is of
            something else is refused.

    Attributes:
        average: the `MovingAverage`, or None.
        losses: the loss of every step, nats per dimension; kept in checkpoints.
        items_seen: how many items the run has used, over all processes; `NextItems` begins there.
        rows_at_hand: of the last batch, in this process.
        position: items used -> where a stream of shards then is, plain data; set by the stream.
        positions: that of every process, from the checkpoint.

    Raises:
        ConfigError: values out of range, noise for an input that the flow lacks, or `validate_average` without `ema`.
        NonFiniteError: while training, as above.

    Example:
        >>> import flowkit as fk
        >>> graph = fk.Graph()
        >>> graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,))))
        >>> module = FlowModule(fk.Flow(graph), lr=1e-3, noise=0.05, clip=10.0)
        >>> module.training_step(torch.randn(8, 4), 0).shape
        torch.Size([])
    """

    def __init__(
        self,
        flow: Flow,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Schedule | None = None,
        noise: float | Mapping[str, float] = 0.0,
        clip: float | None = None,
        seed: int = 0,
        layout: Layout | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        initialize: bool = True,
        ema: float | None = None,
        validate_average: bool = False,
        about: Mapping[str, str] | None = None,
    ):
        super().__init__()
        if not (0 < lr < math.inf) or weight_decay < 0 or (clip is not None and clip <= 0):
            raise ConfigError(
                f"lr and clip must be positive and weight_decay at least 0, got {lr}, {clip} and {weight_decay}"
            )
        if validate_average and ema is None:
            raise ConfigError("validate_average needs an average: give ema, its decay")
        self.likelihood = NegativeLogLikelihood(flow)
        self.average = None if ema is None else MovingAverage(flow, ema)
        self.validate_average = validate_average
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.schedule = schedule or Schedule()
        self.noise = _noise_by_name(noise, flow)
        self.clip, self.seed, self.layout, self.optimizer = clip, seed, layout, optimizer
        self.initialize, self.about = initialize, dict(about or {})
        self.losses: list[float] = []
        self.items_seen, self.rows_at_hand = 0, 0
        self.position: Callable[[int], Any] | None = None
        self.positions: list[Any] | None = None
        self._items_in_step, self._loss = 0, math.nan
        self._validated, self._validated_sum = 0, 0.0
        self._statistics = guard.NormStatistics(flow)
        self._random_state: dict[str, Any] | None = None

    @property
    def flow(self) -> Flow:
        """The flow that is trained."""
        return self.likelihood.flow

    @contextmanager
    def averaged(self) -> Iterator[Flow]:
        """The flow, with the averaged weights within the block; with its own where there is no average.

        In place and without a second copy of the flow: so not between a forward pass and its backward.
        """
        if self.average is None:
            yield self.flow
        else:
            with self.average.applied():
                yield self.flow

    def ema_flow(self) -> Flow:
        """A copy of the flow with the averaged weights, in eval mode.

        Raises:
            ConfigError: there is no average.
        """
        if self.average is None:
            raise ConfigError("there is no average of the weights: give FlowModule ema, its decay")
        with self.average.applied():
            return copy.deepcopy(self.flow).eval()

    def parts(self, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Data and conditions of a batch, by name."""
        if self.layout is None:
            return by_name(batch, self.flow)
        x, given = self.layout(batch)
        return named(x, self.flow.input_shapes, "data"), named(given, self.flow.condition_shapes, "conditions")

    def with_noise(self, x: dict[str, Tensor], purpose: str, first: int) -> dict[str, Tensor]:
        """The data with its noise, where the first row of all processes is item `first` of the run."""
        rank, world = process_place()
        noisy = dict(x)
        for name, std in self.noise.items():
            numbers = range(first + rank, first + rank + len(x[name]) * world, world)
            noisy[name] = x[name] + std * keyed_noise(x[name], self.seed, f"{purpose}/{name}", numbers)
        return noisy

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, in nats per dimension.

        Raises:
            NonFiniteError: it is not finite; nothing was changed.
        """
        clean, given = self.parts(batch)
        rows = self.rows_at_hand = len(next(iter(clean.values())))
        x = self.with_noise(clean, "noise", self.items_seen + self._items_in_step)
        self._items_in_step += rows * process_place()[1]
        self._statistics.keep()
        if self.initialize and not self.losses:
            self._initialize(x, given)
        loss = self.likelihood(bare(x), bare(given)) / self.flow.dim
        value = mean_over_processes(loss).item()  # not finite in one process is not finite in all
        if not math.isfinite(value):
            self._statistics.restore()
            self._refuse(f"the loss is {value}", self._fault_of_loss(x, given))
        self._loss = value
        self._log({"loss": value, "bits_per_dimension": value / math.log(2)}, rows)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Counts from zero: the noise of held-out rows is the same at every call."""
        self._validated, self._validated_sum = 0, 0.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds up the loss of the rows, with the noise of training."""
        x, given = self.parts(batch)
        rows = len(next(iter(x.values())))
        x = self.with_noise(x, "validation", self._validated * process_place()[1])
        with self.averaged() if self.validate_average else nullcontext():
            value = self.likelihood(bare(x), bare(given)) / self.flow.dim
        self._validated += rows
        self._validated_sum += value.item() * rows

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over the rows of all processes."""
        sums = torch.tensor([self._validated_sum, self._validated], dtype=torch.float64, device=self.device)
        total, rows = mean_over_processes(sums).tolist()  # once, for processes may have different numbers of batches
        value = total / rows if rows else math.nan
        self._log({"val_loss": value, "val_bits_per_dimension": value / math.log(2)}, max(1, int(rows)))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient, and refuses one that is not finite, before the optimiser sees it."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm) and not self._scales_its_gradients():
            self._statistics.restore()
            self._refuse("the gradient is not finite", guard.fault_of_gradients(self.flow))
        # Below the limit the factor is 1, and multiplying every gradient by it is felt. (1e-6 is what PyTorch adds.)
        if self.clip is not None and norm + 1e-6 > self.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

    def on_train_start(self) -> None:
        """What a refused step had begun to count is forgotten."""
        self._items_in_step = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """After a restart, random numbers go on where they were."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and then what counts it: so that both are there in a checkpoint, or neither."""
        super().optimizer_step(*args, **kwargs)  # runs training_step and backward within
        if self.average is not None:
            self.average.update()
        self.losses.append(self._loss)
        self.items_seen += self._items_in_step
        self._items_in_step = 0

    def configure_optimizers(self) -> Any:
        """Adam, or the optimiser that was given, and the schedule, counted in steps."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer is not None:
            optimizer = self.optimizer(trained)
        else:
            # Fused, Adam reads and writes everything once: 24 ms for 24 million parameters on two cores, and what else
            # a step does decides what the loop of operations takes, 60 to 180 ms were seen. Under float16's loss
            # scaling it would also undo the scaling, which has to happen before the gradient is clipped.
            fused = not self._scales_its_gradients() and all(p.device.type in FUSED_ON for p in trained)
            optimizer = torch.optim.Adam(
                trained, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a restart needs beside weights, optimiser and schedule."""
        checkpoint[CHECKPOINT_KEY] = {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "items_seen": self.items_seen,
            "format": CHECKPOINT_FORMAT,
            "flowkit": __version__,
            "about": self.about,
            "random_states": of_every_process(random_state()),
            "average": None if self.average is None else self.average.state(),
            "positions": None if self.position is None else of_every_process(self.position(self.items_seen)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back."""
        kept = checkpoint.get(CHECKPOINT_KEY)
        if kept is not None:
            self.losses, self.items_seen = kept["losses"].tolist(), int(kept["items_seen"])
            self.positions = kept.get("positions")
            rank, world = process_place()
            states = kept["random_states"]
            self._random_state = states[rank] if len(states) == world else states[0]
            if self.average is not None and kept.get("average") is not None:
                self.average.load(kept["average"])

    def _factor(self, step: int) -> float:
        trainer = self._trainer
        return self.schedule(step, int(trainer.estimated_stepping_batches) if trainer is not None else 0)

    def _initialize(self, x: dict[str, Tensor], given: dict[str, Tensor]) -> None:
        if any(getattr(module, "needs_initialization", False) for module in self.flow.modules()):
            self.flow.initialize(bare(x), given=bare(given))

    def _fault_of_loss(self, x: dict[str, Tensor], given: dict[str, Tensor]) -> str:
        separate_norms(self)  # from here on processes look for themselves
        found = of_every_process((guard.bad_data(x, given) is None, guard.fault_of_loss(self.flow, x, given)))
        bad_data_first = min(range(len(found)), key=lambda rank: (found[rank][0], rank))
        where = f" (in process {bad_data_first})" if len(found) > 1 else ""
        return found[bad_data_first][1] + where

    def _scales_its_gradients(self) -> bool:
        # float16's loss scaling makes infinities on purpose, and skips those steps itself.
        return self._trainer is not None and getattr(self._trainer.precision_plugin, "scaler", None) is not None

    def _refuse(self, what: str, why: str) -> None:
        raise NonFiniteError(
            f"step {len(self.losses) + 1} was not applied because {what}: {why}; "
            f"the flow is as step {len(self.losses)} left it"
        )

    def _log(self, values: dict[str, Any], rows: int) -> None:
        if self._trainer is not None:
            self.log_dict(values, batch_size=rows)


def _noise_by_name(noise: float | Mapping[str, float], flow: Flow) -> dict[str, float]:
    by = dict(noise) if isinstance(noise, Mapping) else {name: float(noise) for name in flow.input_shapes}
    unknown = [name for name in by if name not in flow.input_shapes]
    if unknown:
        raise ConfigError(f"noise for {listing(unknown)}: the flow's inputs are {listing(list(flow.input_shapes))}")
    if any(not 0 <= std < math.inf for std in by.values()):
        raise ConfigError(f"the noise's standard deviation must be at least 0, got {by}")
    return {name: std for name, std in by.items() if std}
