"""Memory-frugal gradients across processes: DDP in each of its ways, and FSDP2, on two gloo processes.

Starting torch costs seconds, so one pair of processes serves all cases: this file, run as a script.
"""

import contextlib
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.backprop import MODES

WORLD, ROWS, RATE = 2, 32, 0.01
TIMEOUT = 120  # seconds that a worker may take; it needs about ten
BUDGET = 22_000  # bytes that let some blocks of the flow be plain and others not
WAYS = {
    "default": {},
    "static graph": {"static_graph": True},
    "find unused": {"find_unused_parameters": True},
    "no sync": {},
}
CASES = [(mode, way) for mode in MODES for way in WAYS]


class Spare(nn.Module):
    """A subnet with a parameter that no loss ever depends on."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.net = fk.MLP(hidden=8, activation="silu")(c_in, c_out)
        self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.net(x)


def make_flow(mode, way="default"):
    """Couplings of both kinds, a feature net, a split, a frozen parameter; the same weights at every call."""
    torch.manual_seed(1)
    graph = fk.Graph()
    given = graph.features(nn.Linear(3, 4), graph.condition("c", (3,)), name="encoder")
    x, subnet = graph.input("x", (6,)), fk.MLP(hidden=8, activation="silu")
    for i in range(4):
        x = graph.add(fk.AffineCoupling, x, given=given, subnet=subnet, active=("second", "first")[i % 2], limit=0.5)
    x, early = graph.add(fk.Split, x, sizes=(4, 2))
    graph.output("early", graph.add(fk.ElementwiseAffine, early))
    x = graph.add(fk.AffineCoupling, x, subnet=Spare if way == "find unused" else subnet, limit=0.5)
    x = graph.add(fk.AffineCoupling, graph.add(fk.LULinear, x), given=given, subnet=subnet, two_sided=True, limit=0.5)
    graph.output("z", x)
    flow = fk.Flow(graph, backprop=mode, snapshots=2, budget=BUDGET)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow.network.nodes["affine_coupling_2"].subnets[0].first.bias.requires_grad_(False)
    return flow


def batches(step):
    """Two of them: accumulation takes both."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(2, ROWS, size, generator=generator).unbind() for size in (6, 3)]


def loss_of(module, x, c):
    z, log_det = module(x, given=c)  # DDP calls forward, and nothing else
    return (0.5 * z.square().sum(-1) - log_det).mean()


def train(module, way, rank=None):
    """The gradients of every step, by parameter name: of this rank's rows, or of all."""
    found = []
    for step in range(3 if way == "static graph" else 2):  # the first step of a static graph records it
        xs, cs = batches(step)
        pairs = list(zip(xs, cs, strict=True))[: 2 if way == "no sync" else 1]
        for i, (x, c) in enumerate(pairs):
            mine = slice(None) if rank is None else slice(rank, None, WORLD)
            waits = rank is not None and i + 1 < len(pairs)
            with module.no_sync() if waits else contextlib.nullcontext():
                loss_of(module, x[mine], c[mine]).backward()
        named = [(name.removeprefix("module."), p) for name, p in module.named_parameters()]
        found.append({n: None if p.grad is None else p.grad.clone() for n, p in named})
        with torch.no_grad():
            for _, parameter in named:
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
    return found


# ---------------------------------------------------------------------- what a worker does


def work(rank, folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = torch.distributed.FileStore(str(folder / "store"), WORLD)
    limit = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=limit)
    answers = {}
    for case in CASES:
        answers[case] = attempt(reduced, *case, rank)
    for mode in ("plain", "reverse", "checkpoint"):
        answers["whole", mode] = attempt(sharded, mode, rank, whole=True)
        answers["subnets", mode] = attempt(sharded, mode, rank, whole=False)
    torch.save(answers, folder / f"answers-{rank}.pt")
    torch.distributed.destroy_process_group()


def attempt(function, *arguments, **options):
    # All ranks do the same, so an error of one is an error of all, and the next case starts together.
    try:
        return function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def reduced(mode, way, rank):
    flow = make_flow(mode, way)
    # Small buckets: many are reduced, each when its last gradient arrives.
    module = nn.parallel.DistributedDataParallel(flow, bucket_cap_mb=0.001, **WAYS[way])
    found = train(module, way, rank)
    return found, list(flow.network._cuts.values())


def sharded(mode, rank, whole):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    flow, mesh = make_flow(mode), init_device_mesh("cpu", (WORLD,))
    flow.requires_grad_(True)
    blocks = [m for m in flow.network.nodes.children() if isinstance(m, fk.AffineCoupling)]
    for block in blocks:
        for part in [block] if whole else block.subnets:
            fully_shard(part, mesh=mesh)
    xs, cs = batches(0)
    found = []
    for _ in range(2):
        loss_of(flow, xs[0][rank::WORLD], cs[0][rank::WORLD]).backward()
        found.append({n: p.grad.full_tensor() for n, p in flow.named_parameters() if hasattr(p.grad, "full_tensor")})
        flow.zero_grad()
    return found


# ---------------------------------------------------------------------- what is asked of the answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """By rank; one pair of processes, whichever of pytest-xdist's workers asks first."""
    shared = os.environ.get("PYTEST_XDIST_WORKER") is not None
    folder = tmp_path_factory.getbasetemp().parent / "distributed" if shared else tmp_path_factory.mktemp("distributed")
    done = folder / "done"
    try:
        if shared:
            folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + TIMEOUT
        while not done.exists() and time.monotonic() < until:
            time.sleep(0.1)
    else:
        try:
            run_workers(folder)
        finally:
            done.touch()
    found = [folder / f"answers-{rank}.pt" for rank in range(WORLD)]
    assert all(path.exists() for path in found), [log.read_text()[-2000:] for log in folder.glob("*.log")]
    return [torch.load(path) for path in found]


def run_workers(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    workers = []
    for rank in range(WORLD):
        with (folder / f"{rank}.log").open("w") as out:  # a pipe that nobody reads can fill, and stop the worker
            command = [sys.executable, __file__, str(rank), str(folder)]
            workers.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
    try:
        for worker in workers:
            worker.wait(TIMEOUT)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def assert_same(got, want, tolerance=1e-12):
    assert list(got) == list(want)
    for name, w in want.items():
        g = got[name]
        if w is None:
            assert g is None or not g.any(), name
        else:
            assert (g - w).abs().max() <= tolerance * (1 + w.abs().max()), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_ddp_gives_the_gradients_of_the_whole_batch(mode, way, answers):
    want = train(make_flow("plain", way), way)
    assert sum(g is not None and bool(g.any()) for g in want[0].values()) > 20
    for answer in answers:
        assert not isinstance(answer[mode, way], str), answer[mode, way]
        found, cuts = answer[mode, way]
        for got, expected in zip(found, want, strict=True):
            assert_same(got, expected)
        assert (mode == "auto") == bool(cuts)
        steps = len(make_flow(mode, way).network._schedule.forward)
        assert all(0 < cut < steps for cut in cuts), "auto should be of both kinds here"


def test_the_spare_parameter_is_really_unused():
    [*_, last] = train(make_flow("plain", "find unused"), "find unused")
    assert [name for name, g in last.items() if g is None and "spare" in name]


@pytest.mark.parametrize("mode", ["plain", "reverse", "checkpoint"])
def test_whole_bijections_may_be_sharded(mode, answers):
    flow = make_flow("plain")
    flow.requires_grad_(True)
    [x, _], [c, _] = batches(0)
    loss_of(flow, x, c).backward()
    want = {n: p.grad for n, p in flow.named_parameters() if "affine_coupling" in n}
    for answer in answers:
        assert not isinstance(answer["whole", mode], str), answer["whole", mode]
        for got in answer["whole", mode]:
            assert_same(got, want)


@pytest.mark.parametrize("mode", ["reverse", "checkpoint"])
def test_sharded_subnets_are_refused_in_one_sentence(mode, answers):
    want = (
        "BackpropError: AffineCoupling holds sharded parameters, whose gradients would be lost: shard the whole "
        "bijection (its own forward gathers them), or use backprop='plain'"
    )
    assert [answer["subnets", mode] for answer in answers] == [want] * WORLD
    assert not any(isinstance(answer["subnets", "plain"], str) for answer in answers)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
