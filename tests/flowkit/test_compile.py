"""fk.compile: no graph break, no second compilation, one artifact for blocks that are alike, and nothing else changes.

That each registered bijection compiles in both directions is a law of the conformance kit (`compile_forward`,
`compile_inverse`); here it is whole flows, and reverse mode's step.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import settings

import flowkit as fk
from flowkit import compilation
from flowkit.testing import cases
from flowkit.testing.subject import redraw_weights
from flowkit_cinn.models import COLORIZATION, colorization_cinn

ROWS = (5, 7, 64)
FIRST_CASES = {case.name: case for case in reversed(cases())}  # of each registered bijection, its first example
STEPPING = [  # those that take part in reverse mode with a step of their own
    name for name, case in FIRST_CASES.items() if not case.cls.views and any(True for _ in case.build().parameters())
]
PRESETS = {  # sizes, and the features of the first two levels and of the fully connected couplings
    "demo": ({"size": 16, "photo_size": 16}, {"channels": (16,)}),
    "small": ({"size": 16, "photo_size": 16}, {"channels": (64, 128)}),
    "paper": ({"size": 16, "photo_size": 64}, {"channels": (256, 256)}),
}
# torch's compiler hides these itself, but not from those who made warnings errors before it was imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that counts the graphs that it is given.

    Breaks and recompilations are of torch's front end, which is the same for all backends: "eager" is the quickest.
    """

    def __init__(self, backend="eager"):
        self.graphs, self.compile = 0, torch._dynamo.lookup_backend(backend)

    def __call__(self, graph, examples):
        self.graphs += 1
        return self.compile(graph, examples)


def chain(depth, backprop="plain"):
    """Conditional couplings, alike two by two, and permutations between them."""
    torch.manual_seed(1)
    graph = fk.Graph()
    c = graph.condition("c", (3,))
    x, subnet = graph.input("x", (6,)), fk.MLP(hidden=8, activation="silu")
    for i in range(depth):
        x = graph.add(fk.AffineCoupling, x, given=c, subnet=subnet, active=("second", "first")[i % 2])
        x = graph.add(fk.Permute, x)
    graph.output("z", x)
    flow = fk.Flow(graph, backprop=backprop, snapshots=2)
    redraw_weights(flow, 0)
    return flow


def data(flow, rows):
    generator = torch.Generator().manual_seed(rows)
    shapes = [*flow.input_shapes.values(), *flow.condition_shapes.values()]
    x, *given = [torch.randn(rows, *shape, generator=generator).to(next(flow.parameters())) for shape in shapes]
    return x, given[0] if given else None


CALLS = {}


def call(function):
    CALLS[function.__name__] = function
    return function


@call
def forward(flow, x, c):
    return [t.detach() for t in flow(x, given=c)]


@call
def inverse(flow, x, c):
    z = torch.randn(len(x), flow.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    return [t.detach() for t in flow.inverse(z, given=c)]


@call
def sample(flow, x, c):
    torch.manual_seed(0)
    return [flow.sample((2,), given=c)]  # every row of the conditions serves two samples, from its prepared part


@call
def gradients(flow, x, c):
    wanted = [p for p in flow.parameters() if p.requires_grad]
    x.requires_grad_()
    return list(torch.autograd.grad(-flow.log_prob(x, given=c).mean(), [x, *wanted]))


def assert_close(got, want, tolerance=1e-10):
    for g, w in zip(got, want, strict=True):
        assert (g - w).abs().max() <= tolerance * (1 + w.abs().max())


# ---------------------------------------------------------------------- one compilation for all batch sizes


MODES_AND_CALLS = [
    *[("plain", name) for name in CALLS],
    ("reverse", "gradients"),
    ("reverse", "inverse"),
    ("checkpoint", "gradients"),
]


@pytest.mark.parametrize(("mode", "name"), MODES_AND_CALLS)
def test_results_are_eagers_and_other_batch_sizes_do_not_compile_again(mode, name):
    flow, counting, graphs = chain(4, mode), Counting("aot_eager"), []
    eager = copy.deepcopy(flow)
    assert fk.compile(flow, backend=counting) is flow
    for rows in ROWS:
        x, c = data(flow, rows)
        got = CALLS[name](flow, x, c)
        assert_close(got, CALLS[name](eager, x.detach().clone(), c))
        graphs.append(counting.graphs)
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * len(ROWS)


def test_without_marked_batches_another_size_does_compile_again(monkeypatch):
    """What the test above would see, were it not for `_mark_batch`."""
    monkeypatch.setattr(compilation, "_mark_batch", lambda values: None)
    flow, counting, graphs = chain(2), Counting(), []
    fk.compile(flow, backend=counting)
    for rows in ROWS:
        forward(flow, *data(flow, rows))
        graphs.append(counting.graphs)
    assert graphs[1] > graphs[0]


def test_a_deep_chain_is_compiled_as_often_as_a_short_one():
    graphs = {}
    for depth in (3, 8):  # both have a coupling of each kind in mid-chain
        torch.compiler.reset()
        flow, counting, graphs[depth] = chain(depth), Counting(), []
        fk.compile(flow, backend=counting)
        for mode, name in (("plain", "forward"), ("plain", "inverse"), ("reverse", "gradients")):
            flow.backprop = mode
            CALLS[name](flow, *data(flow, 5))
            graphs[depth].append(counting.graphs)
    assert graphs[3] == graphs[8]
    assert 0 < graphs[8][0] <= 4  # two kinds of coupling, the first once more without gradients, and the permutation


# ---------------------------------------------------------------------- no graph break: fullgraph=True raises at one


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_compile_without_a_break(preset):
    """Of demo two levels, which have every kind of block; all of all and every call in the long profile: minutes each.

    Tracing costs half a second a kind of block and call, in reverse mode more; `inverse` is traced bijection by
    bijection by the conformance kit, reverse mode's step below.
    """
    torch.set_default_dtype(torch.float32)  # the paper's network has 66 million parameters
    if preset != "demo" and settings().max_examples <= 200:
        pytest.skip("in the long profile: it takes minutes")
    recipe, (options, features) = COLORIZATION[preset], PRESETS[preset]
    calls = [("plain", "sample"), ("plain", "gradients")]
    if settings().max_examples > 200:
        calls += [("plain", "forward"), ("plain", "inverse"), ("reverse", "gradients")]
    else:
        options = {**options, "levels": recipe.levels[:2], "features": {**recipe.features, **features}}
    flow = colorization_cinn(preset, **options).eval()
    eager = copy.deepcopy(flow)
    fk.compile(flow, backend="eager")
    x, c = data(flow, 2)
    for mode, name in calls:
        flow.backprop = eager.backprop = mode
        got, want = (CALLS[name](each, x.detach().clone(), c) for each in (flow, eager))
        assert_close(got, want, 1e-3)


@pytest.mark.parametrize("name", STEPPING)
def test_reverse_modes_step_compiles_for_every_registered_bijection(name):
    subject = FIRST_CASES[name].subject
    flow, points = fk.Flow(subject.bijection, backprop="reverse", snapshots=0), subject.points("forward")
    leaves = [p.clone().requires_grad_(p.is_floating_point()) for p in points]
    wanted = [t for t in (*leaves, *flow.parameters()) if t.requires_grad]

    def run():
        torch.manual_seed(0)
        out, log_det = flow.network(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        loss = sum((y.square().sum() for y in outputs), log_det.sum())
        return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)

    want, counting = run(), Counting("aot_eager")
    fk.compile(flow, backend=counting)
    assert_close(run(), want, 1e-9)
    assert (counting.graphs > 0) != subject.original.adaptive


# ---------------------------------------------------------------------- nothing else changes


def test_state_copies_pickles_and_files_are_as_before(tmp_path):
    flow = chain(2)
    x, c = data(flow, 5)
    names, want = list(flow.state_dict()), forward(flow, x, c)
    fk.compile(flow, backend="eager")
    gradients(flow, x.clone(), c)
    assert list(flow.state_dict()) == names
    fk.save(flow, tmp_path / "flow.safetensors")
    other = chain(2)
    other.load_state_dict(flow.state_dict())
    copies = {
        "deepcopy": copy.deepcopy(flow),
        "pickle": pickle.loads(pickle.dumps(flow)),
        "file": fk.load(tmp_path / "flow.safetensors"),
        "state": other,
    }
    for how, twin in copies.items():
        assert list(twin.state_dict()) == names, how
        assert_close(forward(twin, x.detach(), c), want)
        assert_close(inverse(twin, x.detach(), c), inverse(flow, x.detach(), c))
    assert all(m._compiled_call_impl is None for twin in copies.values() for m in twin.modules()), "copies are not"


def test_weights_that_change_are_seen():
    flow = chain(2)
    x, c = data(flow, 5)
    fk.compile(flow, backend="eager")
    before = forward(flow, x, c)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.1)
    after = forward(flow, x, c)
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert_close(after, forward(copy.deepcopy(flow), x, c))
