"""Graph breaks and recompilations of flows, found with a backend that only counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import flowkit as fk

from . import colorization
from .limit import without_gradients
from .report import Column, Report, Section
from .stacks import Spec, build

BATCHES = (5, 7, 64)


class Counter:
    """A backend of torch.compile that counts what it is asked to compile, and runs it as it is."""

    def __init__(self) -> None:
        self.compilations = 0

    def __call__(self, graph: Any, examples: Any) -> Any:
        self.compilations += 1
        return graph.forward


def measure_breaks(report: Report, quick: bool) -> None:
    """A row for every flow and call."""
    columns = (
        Column("flow", "at a small size: graphs do not depend on it"),
        Column("call", "reverse: forward and backward in reverse mode"),
        Column("graph breaks", "none, or what torch.compile(fullgraph=True) raises; fk.compile's blocks"),
        Column("as a whole", "the same of torch.compile(fullgraph=True) on the whole network"),
        Column("compilations", f"at batch size {BATCHES[0]}", "d"),
        Column("recompilations", f"at batch sizes {BATCHES[1]} and {BATCHES[2]} after that", "d"),
        Column("target", "no break, and no recompilation"),
    )
    known = dict(flows(quick))
    calls = ("forward", "inverse", "reverse")
    rows = (break_row(name, build_flow(), call) for name, build_flow in known.items() for call in calls)
    report.measure(Section("Graph breaks and recompilations", columns), rows, len(known) * len(calls))


def flows(quick: bool) -> Iterator[tuple[str, Callable[[], fk.Flow]]]:
    """Names, and what builds each; `quick` leaves out the large ones."""
    yield "chain of couplings on vectors", lambda: build(Spec(3, (6,), (2,), (8,)))
    if quick:
        return
    yield "chain of couplings on maps", lambda: build(Spec(3, (4, 8, 8), (2, 8, 8), (8,)))
    if colorization.is_available():
        from flowkit_cinn.models import COLORIZATION, colorization_cinn

        sizes = {preset: {"size": 16, "photo_size": 64} for preset in ("paper", "paper-code")}
        for preset in COLORIZATION:
            options = sizes.get(preset, {"size": 16, "photo_size": 16})
            yield f"colorization, {preset}", lambda p=preset, o=options: colorization_cinn(p, **o)


def break_row(name: str, flow: fk.Flow, call: str) -> dict[str, Any]:
    """Compile a flow block by block, call it at three batch sizes, and count; and compile it as a whole."""
    torch._dynamo.reset()
    row: dict[str, Any] = {"flow": name, "call": call}
    flow.backprop = "reverse" if call == "reverse" else "plain"
    row["as a whole"] = _raises(lambda: _whole(flow, call))
    torch._dynamo.reset()
    counter, counts = Counter(), []
    fk.compile(flow, backend=counter)

    def blocks() -> None:
        for batch in BATCHES:
            _call(flow, call, batch)
            counts.append(counter.compilations)

    row["graph breaks"] = _raises(blocks)
    if len(counts) == len(BATCHES):
        row |= {"compilations": counts[0], "recompilations": counts[-1] - counts[0]}
    met = row["graph breaks"] == "none" and row.get("recompilations") == 0
    return row | {"met": met, "target": "met" if met else "missed"}


def _tensors(flow: fk.Flow, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    shapes = (flow.input_shapes.values(), flow.condition_shapes.values())
    inputs, given = ([torch.randn(batch, *shape) for shape in each] for each in shapes)
    return inputs, given


def _call(flow: fk.Flow, call: str, batch: int) -> None:
    inputs, given = _tensors(flow, batch)
    named = dict(zip(flow.condition_shapes, given, strict=True)) or None
    x = dict(zip(flow.input_shapes, inputs, strict=True))
    if call == "inverse":
        without_gradients(flow.inverse, torch.randn(batch, flow.dim), named)()
        return
    loss = -flow.log_prob(x, given=named).mean()
    if call == "reverse":
        loss.backward()


def _whole(flow: fk.Flow, call: str) -> None:
    inputs, given = _tensors(flow, BATCHES[0])
    if call == "inverse":
        parts = [torch.randn(BATCHES[0], *shape) for _, shape in flow.latents.values()]
        without_gradients(torch.compile(flow.network.inverse, backend="eager", fullgraph=True), *parts, *given)()
        return
    torch.compile(flow.network, backend="eager", fullgraph=True)(*inputs, *given)


def _raises(run: Callable[[], Any]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return "none"
