"""Drawing many samples for one condition: the condition's work done once, against doing it for every sample."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor

import flowkit as fk
from flowkit.diagnostics import timings

from ._common import Column, Report, Section, allocator, bench_options, colorization, ratio
from ._common.agreement import agree
from ._common.limit import LIMIT_NAME, Bare, bare_run, judged, measured, without_gradients
from ._common.peers import installed
from ._common.pictures import ratio_bars
from ._common.published import FreiaTwin, check_forms, concatenated, small_network
from ._common.stacks import Ours, Spec, build, stacks

OURS = "flowkit, condition's work once"
OURS_LAID_OUT = "flowkit, the same, channels_last"
ONCE, EVERY = "concatenated, conditioning net once", "concatenated, conditioning net per sample"
FREIA_ONCE, FREIA_EVERY = "FrEIA, conditioning net once", "FrEIA, conditioning net per sample"
TARGETS = {64: 1 / 8, 8: 1 / 4}
TOLERANCE = 1e-3  # of samples from the same noise, in float32


@click.command()
@click.option("--samples", type=click.IntRange(min=1), multiple=True, default=(64, 8), show_default=True)
@click.option("--keep-freed-memory", is_flag=True, help="Colorizations too with glibc told to keep what is freed.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Interleaved turns.")
@bench_options
def command(options: Any, samples: tuple[int, ...], rounds: int, keep_freed_memory: bool) -> None:
    """Measure sampling, where one condition serves many samples."""
    if options.quick:
        samples, rounds = (3, 2), min(rounds, 2)
    report = Report("sampling", options, samples=samples, rounds=rounds, keep_freed_memory=keep_freed_memory)
    if keep_freed_memory:
        allocator.keep_freed_memory()
    if colorization.is_available():  # with the allocator as users have it: page faults are part of what it costs
        _colorizations(report, samples, rounds, options.quick)
    allocator.keep_freed_memory()
    _vectors(report, rounds, options.quick)
    report.finish(ratio_bars)


def _colorizations(report: Report, samples: tuple[int, ...], rounds: int, quick: bool) -> None:
    flow, size = small_network(quick)
    flow.eval()
    photo = torch.randn(1, size, size)
    columns = (
        Column("samples", "of one photograph, drawn together", "d"),
        Column("implementation", "concatenated: the same flow with the condition concatenated in every coupling"),
        Column("ms a sample", "median", ".2f"),
        Column("ratio", f"to '{EVERY}', as the authors' code does, and its interval of 95 %"),
        Column("to the limit", "the same, to the bare subnets on conditions prepared once, and the conditioning net"),
        Column("target", "of the ratio; met where its interval's lower end is at most the target"),
    )
    note = "Equal weights; z, log-det and the samples from one seed were compared before timing."
    if "FrEIA" not in installed():
        note += " FrEIA is not installed: the concatenated form stands for it."
    title = f"Colorizations of one photograph, the small network, {size} x {size}"
    rows = (row for count in samples for row in _sample_rows(flow, photo, count, rounds))
    report.measure(Section(title, columns, note=note), rows)


def _sample_rows(flow: fk.Flow, photo: Tensor, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    published, laid_out = concatenated(flow).eval(), copy.deepcopy(flow).to(memory_format=torch.channels_last)
    forms: dict[str, Any] = {"the concatenated form": published}
    twin = FreiaTwin(flow).eval() if "FrEIA" in installed() else None
    if twin is not None:
        forms["FrEIA"] = twin
    check_forms(flow, forms, torch.randn(2, *flow.input_shapes["ab"]), photo.expand(2, *photo.shape))
    repeated = photo.expand(count, *photo.shape).contiguous()
    ways: dict[str, Callable[[], Any]] = {
        EVERY: lambda: published.sample((), given=repeated),
        ONCE: lambda: published.given(photo).sample((count,)),
        OURS: lambda: flow.given(photo).sample((count,)),
        OURS_LAID_OUT: lambda: laid_out.given(photo).sample((count,)),
    }
    if twin is not None:
        ways[FREIA_EVERY] = lambda: _freia(twin, flow.base, count, twin.feature_maps(repeated))
        ways[FREIA_ONCE] = lambda: _freia(
            twin, flow.base, count, tuple(f.expand(count, *f.shape[1:]) for f in twin.feature_maps(photo[None]))
        )
    drawn = {}
    for name, way in ways.items():
        torch.manual_seed(0)  # one seed, so one latent code
        with torch.no_grad():
            drawn[name] = way()
        agree(name, "samples", drawn[name], drawn[EVERY], TOLERANCE)
    limit = _limit(flow, photo, count)
    steps = {name: without_gradients(way) for name, way in ways.items()}
    series = timings({**steps, LIMIT_NAME: limit}, rounds=rounds, warm_up=1)
    bare = series.pop(LIMIT_NAME)
    yield {"samples": count, "implementation": LIMIT_NAME, "ms a sample": statistics.median(bare) / count * 1e3}
    for name, seconds in series.items():
        row: dict[str, Any] = {"samples": count, "implementation": name}
        row["ms a sample"] = statistics.median(seconds) / count * 1e3
        row["to the limit"] = ratio(seconds, bare)
        if name != EVERY:
            found = ratio(seconds, series[EVERY])
            row |= {"ratio": found, **judged(found, TARGETS.get(count) if name in (OURS, OURS_LAID_OUT) else None)}
        yield row


def _freia(twin: FreiaTwin, base: Any, count: int, features: tuple[Tensor, ...]) -> Tensor:
    return twin.decode(base.sample(torch.Size((count,))), features)


def _limit(flow: fk.Flow, photo: Tensor, count: int) -> Callable[[], None]:
    """The conditioning net and every subnet's condition part for one row, the rest of the subnets for all rows."""
    calls: list[tuple[Any, Tensor, Tensor]] = []

    def keep(net: Any, arguments: tuple) -> None:
        calls.append((net, arguments[0].detach().clone(), arguments[1].detach().clone()))

    nets = [net for m in flow.modules() if isinstance(m, fk.Coupling) for net in m.subnets]
    hooks = [net.register_forward_pre_hook(keep) for net in nets]
    try:
        with torch.no_grad():
            flow(torch.randn(1, *flow.input_shapes["ab"]), given=photo[None])
    finally:
        for hook in hooks:
            hook.remove()
    calls = [(net, x.expand(count, *x.shape[1:]).clone(), c) for net, x, c in calls]
    pyramid: Any = next(flow.network.nodes[n.name] for n in flow.network.graph.nodes if n.kind == "features")

    def run() -> None:
        with torch.no_grad():
            pyramid(photo[None])
            for net, x, c in calls:
                net(x, None, net.prepare(c))

    return run


def _vectors(report: Report, rounds: int, quick: bool) -> None:
    depth, batch = (2, 32) if quick else (8, 4096)
    spec = Spec(depth, (64,), (8,), (16, 16) if quick else (128, 128))
    columns = (
        Column("implementation", "each toolkit's own way to sample, from given latents"),
        Column("ms", "median", ".2f"),
        Column("ratio", "to the bare subnets, and its interval of 95 %"),
        Column("target", "of that ratio; met where its interval's lower end is at most the target"),
    )
    title = f"Inverse of {depth} affine couplings, D 64, C 8, batch {batch}: a condition for each row"
    note = "Equal weights, results compared before timing."
    report.measure(Section(title, columns, note=note), _vector_rows(spec, batch, rounds))


def _vector_rows(spec: Spec, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    flow = build(spec)
    peers = stacks(spec, flow)
    x, c = spec.data(batch)
    ours = Ours(copy.deepcopy(flow))
    with torch.no_grad():
        z = ours(x, c)[0]
    steps = {LIMIT_NAME: bare_run(Bare(flow, x, c)), "flowkit": without_gradients(ours.sample, z, c)}
    steps["flowkit, with its log-det"] = without_gradients(ours.inverse, z, c)
    steps |= {name: without_gradients(peer.sample, z, c) for name, peer in peers.items()}
    yield from measured(steps, rounds, targets={"flowkit": 1.5, "flowkit, with its log-det": 1.5})
