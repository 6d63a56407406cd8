"""The physical limit: a flow's subnets on equal tensors, and nothing else; and rows that are judged against it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit.diagnostics import timings

from .report import Column
from .stacks import subnets
from .statistics import Ratio, ratio

LIMIT_NAME = "bare subnets"
TARGET = Column("target", "of that ratio; met where its interval's lower end is at most the target")


def threads() -> str:
    """How many torch uses, for a title."""
    count = torch.get_num_threads()
    return f"{count} thread" if count == 1 else f"{count} threads"


class Bare(nn.Module):
    """The subnets of a flow, each on what it got in one forward pass, and the feature nets that make conditions.

    Args:
        flow: whose couplings' subnets are taken, not copied.
        x: data.
        given: conditions.
        features: run the feature nets too, as the flow does; False takes their outputs as constants with gradients.
    """

    def __init__(self, flow: fk.Flow, x: Any, given: Any = None, features: bool = True):
        super().__init__()
        self.nets = nn.ModuleList(subnets(flow))
        nodes = flow.network.graph.nodes
        self.feature_nets = nn.ModuleList(
            flow.network.nodes[n.name] for n in nodes if n.kind == "features" and features
        )
        made: list[Tensor] = []
        self.taken: list[tuple[Tensor, ...]] = []
        self.calls: list[tuple[Tensor, Tensor | int | None]] = []
        leaves: dict[int, Tensor] = {}

        def keep_features(_: Any, inputs: tuple, outputs: Any) -> None:
            self.taken.append(tuple(t.detach() for t in inputs))
            made.extend(outputs if isinstance(outputs, tuple) else [outputs])

        def leaf(tensor: Tensor) -> Tensor:
            return leaves.setdefault(id(tensor), tensor.detach().clone().requires_grad_(tensor.requires_grad))

        def keep_arguments(_: Any, arguments: tuple) -> None:
            passive, c = arguments[0], arguments[1] if len(arguments) > 1 else None
            place = next((i for i, m in enumerate(made) if m is c), None)
            self.calls.append((leaf(passive), place if place is not None or c is None else leaf(c)))
            alive.append(passive)  # while it is alive, no other tensor has its id

        alive: list[Tensor] = []
        hooks = [net.register_forward_hook(keep_features) for net in self.feature_nets]
        hooks += [net.register_forward_pre_hook(keep_arguments) for net in self.nets]
        try:
            flow(x, given=given)
        finally:
            for hook in hooks:
                hook.remove()
        self.leaves = [t for t in leaves.values() if t.requires_grad]

    def outputs(self) -> Iterator[Tensor]:
        """What each subnet gives."""
        made: list[Tensor] = []
        for net, taken in zip(self.feature_nets, self.taken, strict=True):
            found = net(*taken)
            made.extend(found if isinstance(found, tuple) else [found])
        for net, (passive, c) in zip(self.nets, self.calls, strict=True):
            yield net(passive, made[c] if isinstance(c, int) else c)

    def forward(self) -> Tensor:
        """A loss whose gradient is dense: that of a plain sum has stride zero, which slows convolutions down."""
        return torch.stack([out.square().sum() for out in self.outputs()]).sum()

    @property
    def given_tensors(self) -> list[Tensor]:
        """Parameters and data, for `saved_bytes(besides=)`."""
        held = [t for call in self.calls for t in call if isinstance(t, Tensor)]
        return [*self.parameters(), *self.buffers(), *held, *[t for taken in self.taken for t in taken]]


def bare_step(bare: Bare, loss: Callable[[], Tensor] | None = None) -> Callable[[], None]:
    """Forward and backward of the bare subnets; `loss` where they are compiled."""
    run = bare if loss is None else loss

    def step() -> None:
        for leaf in bare.leaves:
            leaf.grad = None
        bare.zero_grad()
        run().backward()

    return step


def bare_run(bare: Bare) -> Callable[[], None]:
    """Forward alone, without gradients."""

    def run() -> None:
        with torch.no_grad():
            for _ in bare.outputs():
                pass

    return run


def train_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward of a loss, gradients forgotten before."""

    def step() -> None:
        module.zero_grad()
        loss().backward()

    return step


def without_gradients(run: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    """`run(*arguments)` under `torch.no_grad`."""

    def call() -> None:
        with torch.no_grad():
            run(*arguments)

    return call


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    """One after the other."""

    def call() -> None:
        first()
        second()

    return call


def judged(found: Ratio, at_most: float | None) -> dict[str, Any]:
    """What a row says about a target: a text for the table; the number and the verdict for the JSON file."""
    if at_most is None:
        return {}
    met = found.low <= at_most
    return {"target": f"<= {at_most:.3g}: {'met' if met else 'missed'}", "at most": at_most, "met": met}


def measured(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    limits: Mapping[str, str] | None = None,
    targets: Mapping[str, float] | None = None,
    label: str = "implementation",
) -> Iterator[dict[str, Any]]:
    """A row for each function, timed in turns: its median in ms, and its ratio to its limit.

    Args:
        steps: by name; the first is the limit of those that `limits` does not name.
        rounds: turns.
        limits: by name, the name of another limit.
        targets: by name, the ratio that is to be reached.
        label: the column that takes the name.
    """
    series = timings(steps, rounds=rounds)
    limits, targets, first = limits or {}, targets or {}, next(iter(steps))
    for name, seconds in series.items():
        row: dict[str, Any] = {label: name, "ms": statistics.median(seconds) * 1e3}
        limit = limits.get(name, first)
        if name != limit and name not in limits.values():
            found = ratio(seconds, series[limit])
            row |= {"ratio": found, **judged(found, targets.get(name))}
        yield row


def above_bare(steps: dict[str, Callable[[], None]], depth: int, rounds: int) -> Iterator[dict[str, Any]]:
    """What each takes above the first of them, the limit, for each subnet; flowkit's against the better peer's."""
    series = timings(steps, rounds=rounds)
    bare = series.pop(LIMIT_NAME)
    above = {n: [(t - b) / depth for t, b in zip(s, bare, strict=True)] for n, s in series.items()}
    medians = {name: statistics.median(each) for name, each in above.items()}
    # Timing noise can put a peer below the limit, where a ratio would mean nothing.
    better = min((n for n in ("FrEIA", "nflows") if medians.get(n, 0) > 0), key=medians.__getitem__, default=None)
    for name in above:
        row: dict[str, Any] = {"implementation": name, "bare": statistics.median(bare) / depth * 1e6}
        row["above"] = medians[name] * 1e6
        if name.startswith("flowkit") and medians.keys() & {"FrEIA", "nflows"}:
            # Where the interval reaches below zero, the differences are lost in noise: nothing is met or missed.
            row["target"] = "<= 0.5: noise"
            if better:
                found = ratio(above[name], above[better])
                row |= {"ratio": found, **(judged(found, 0.5) if found.low > 0 else {})}
        yield row
