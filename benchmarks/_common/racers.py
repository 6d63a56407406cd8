"""Networks on digits that train in turns, each on a clock of its own: the authors', built in FrEIA, and flowkit's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from flowkit.training.noise import generator_for

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# The recipe of the authors' code.
LR, WEIGHT_DECAY, CLIP, NOISE = 5e-4, 1e-5, 10.0, 0.08


class Batches:
    """The batches of a run by their number: the same numbers, the same batches, whoever asks and when.

    Every epoch has an order of its own; an incomplete last batch is left out. Noise is drawn for each batch.
    """

    def __init__(self, x: Tensor, labels: Tensor, size: int, seed: int):
        self.x, self.labels, self.size, self.seed = x, labels, min(size, len(x)), seed
        self._epoch, self._order = -1, torch.zeros(0)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(number, len(self.x) // self.size)
        if epoch != self._epoch:
            generator = generator_for(self.seed, "order", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.x), generator=generator)
        taken = self._order[place * self.size : (place + 1) * self.size]
        noise = torch.randn((len(taken), *self.x.shape[1:]), generator=generator_for(self.seed, "noise", number))
        return self.x[taken] + NOISE * noise, self.labels[taken]


@dataclass
class Slice:
    """What was done in one turn."""

    steps: int
    seconds: float


@dataclass
class Racer:
    """A network in training.

    Attributes:
        name: in tables.
        density: `log_prob(x, given=labels)`, `dim` and `condition_shapes`, as a Flow has them.
        loss: of a batch: `(|z|^2 / 2 - log|J|) / D`, as the authors print it.
        parameters: what is trained.
        optimizer: of them.
        clip: limits the gradient's norm.
        batches: its own view of the data.
        losses, times: of every step, and when on its own clock it ended.
        turns: what was done in each.
    """

    name: str
    density: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    clip: Callable[[list[nn.Parameter]], None]
    batches: Any
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    turns: list[Slice] = field(default_factory=list)

    @property
    def clock(self) -> float:
        """Seconds of its own training, drawing batches and compiling included."""
        return sum(turn.seconds for turn in self.turns)

    def step(self, x: Tensor, labels: Tensor) -> float:
        """One step; the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss(x, labels)
        loss.backward()
        self.clip(self.parameters)
        self.optimizer.step()
        return loss.item()

    def train(self, seconds: float) -> None:
        """Steps, at least one, until so many seconds have passed."""
        started, before, steps = time.perf_counter(), self.clock, 0
        spent = 0.0
        while spent < seconds or not steps:
            self.losses.append(self.step(*self.batches[len(self.losses)]))
            steps, spent = steps + 1, time.perf_counter() - started
            self.times.append(before + spent)
        self.turns.append(Slice(steps, spent))


def race(racers: list[Racer], seconds: float, turn: float) -> Iterator[float]:
    """Let each train for so long by its own clock, in turns, which change places; yields the seconds that are done."""
    number = 0
    while any(racer.clock < seconds for racer in racers):
        for racer in racers if number % 2 == 0 else racers[::-1]:
            if racer.clock < seconds:
                before = racer.clock
                racer.train(min(turn, seconds - before))
                yield min(racer.clock, seconds) - before
        number += 1


# ---------------------------------------------------------------------- the two


def authors_network(size: int, blocks: int, hidden: int, limit: float) -> nn.Module:
    """The authors' network in FrEIA: flatten, `blocks` times a permutation and a GLOW coupling given the label."""
    import FrEIA.framework as ff
    import FrEIA.modules as fm

    def subnet(c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(c_in, hidden), nn.ReLU(), nn.Linear(hidden, c_out))

    label = ff.ConditionNode(10)
    nodes = [ff.InputNode(1, size, size)]
    nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
    for k in range(blocks):
        nodes.append(ff.Node(nodes[-1], fm.PermuteRandom, {"seed": k}))
        options = {"subnet_constructor": subnet, "clamp": limit}
        nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, options, conditions=label))
    return ff.GraphINN([*nodes, label, ff.OutputNode(nodes[-1])])


@torch.no_grad()
def begin_alike(network: nn.Module, flow: fk.Flow) -> None:
    """Give the authors' network the permutations and the first weights of a flow, so that both begin as one function.

    Both draw them from the same distributions anyway: uniform permutations, and 0.01 times normal weights. FrEIA does
    not divide by the clamp, so the two are one only at a limit of 1.
    """
    modules = list(network.modules())
    permutations = [m for m in modules if type(m).__name__ == "PermuteRandom"]
    couplings = [m for m in modules if type(m).__name__ == "GLOWCouplingBlock"]
    parts = list(flow.modules())
    for theirs, ours in zip(permutations, (p for p in parts if isinstance(p, fk.Permute)), strict=True):
        theirs.perm.copy_(ours.order)
        theirs.perm_inv.copy_(ours.inverse_order)
    for theirs, ours in zip(couplings, (p for p in parts if isinstance(p, fk.AffineCoupling)), strict=True):
        for net, source in zip((theirs.subnet2, theirs.subnet1), ours.subnets, strict=True):
            layers = (net[0], net[2]), (source.first, source.rest[-1])
            for mine, given in zip(*layers, strict=True):
                mine.weight.copy_(given.weight)
                mine.bias.copy_(given.bias)


class AuthorsDensity:
    """The authors' network as a density, with the names that a Flow has."""

    def __init__(self, network: nn.Module, dim: int):
        self.network, self.dim = network, dim
        self.condition_shapes: dict[str, tuple] = {"label": ()}

    def log_prob(self, x: Tensor, given: Tensor) -> Tensor:
        """log q(x | label) of each digit."""
        z, log_jacobian = self.network(x, c=[F.one_hot(given, 10).to(x.dtype)])
        return -0.5 * z.square().sum(1) + log_jacobian - self.dim * LOG_SQRT_2PI

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss as the authors' code computes it."""
        z, log_jacobian = self.network(x, c=[F.one_hot(labels, 10).to(x.dtype)])
        return torch.mean(z**2) / 2 - torch.mean(log_jacobian) / self.dim


def authors_racer(name: str, network: nn.Module, dim: int, batches: Batches, fused: bool | None = None) -> Racer:
    """The authors' training: Adam as PyTorch comes with it, or fused, and `clip_grad_norm_`."""
    density = AuthorsDensity(network, dim)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, weight_decay=WEIGHT_DECAY, fused=fused)
    return Racer(name, density, density.loss, trained, optimizer, clip_always(CLIP), batches)


def our_racer(name: str, flow: fk.Flow, batches: Batches) -> Racer:
    """flowkit's: the same recipe; Adam fused, and gradients scaled only where their norm is above the limit."""
    trained = list(flow.parameters())
    optimizer = torch.optim.Adam(trained, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return -flow.log_prob(x, given=labels).mean() / flow.dim - LOG_SQRT_2PI

    return Racer(name, flow, loss, trained, optimizer, clip_where_needed(CLIP), batches)


Clip = Callable[[list[nn.Parameter]], None]


def clip_always(limit: float) -> Clip:
    """As published: every gradient is multiplied in every step."""

    def clip(parameters: list[nn.Parameter]) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, limit)

    return clip


def clip_where_needed(limit: float) -> Clip:
    """The same, but where the factor is 1, and multiplying by it only moves memory."""

    def clip(parameters: list[nn.Parameter]) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if norm > limit - 1e-5:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    return clip
