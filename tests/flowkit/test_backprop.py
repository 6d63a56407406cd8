"""Memory-frugal gradients: those of plain autograd, with memory that does not grow with depth."""

import copy

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.memory import LiveBytes, saved_bytes

from .backprop_helpers import assert_equal, chain, gradients, perturb, set_mode

FRUGAL = [
    {"backprop": "reverse"},
    {"backprop": "reverse", "snapshots": 0},
    {"backprop": "reverse", "snapshots": 2, "chunk": 2},
    {"backprop": "checkpoint"},
    {"backprop": "checkpoint", "chunk": 3},
    {"backprop": "auto", "budget": 60_000},
    {"backprop": "auto", "budget": 10**9},
]


def rich_flow():
    """Splits, merges, nesting, several inputs, outputs and conditions, a data-wire condition, a shared instance."""
    graph = fk.Graph()
    photo, label = graph.condition("photo", (1, 4, 4)), graph.condition("label", (), dtype=torch.int64)
    one_hot = graph.features(fk.OneHot(4), label)
    everywhere = graph.features(fk.ToMap((2, 2)), one_hot)
    small = graph.features(nn.Conv2d(1, 3, 3, 2, 1), photo)
    x, w = graph.input("ab", (2, 4, 4)), graph.input("w", (3,))
    conv = fk.ConvNet(hidden=6, activation="silu")
    mlp = fk.MLP(hidden=8, activation="silu")
    x = graph.add(fk.AffineCoupling, x, given=photo, subnet=conv)
    x = graph.add(fk.Squeeze, graph.add(fk.LULinear, graph.add(fk.Permute, x)))
    x, detail = graph.add(fk.Split, x, sizes=(2, 6))
    graph.output("fine", detail)
    for _ in range(3):
        x = graph.add(fk.AffineCoupling, x, given=[everywhere, small], two_sided=True, subnet=conv)
    x = graph.add(fk.Flatten, x)
    w = graph.add(fk.AffineCoupling, w, given=x, subnet=mlp)
    inner = fk.Graph()
    c, a = inner.condition("c", (4,)), inner.input("a", (3,))
    a = inner.add(fk.ActNorm, inner.add(fk.AffineCoupling, a, given=c, subnet=mlp))
    inner.output("o", a)
    w = graph.add(inner, w, given={"c": one_hot})
    shared = fk.AffineCoupling((3,), subnet=mlp, clamp="softsign")
    w = graph.add(shared, graph.add(fk.Permute, graph.add(shared, w)))
    graph.output("z", graph.add(fk.Permute, graph.add(fk.Concat, x, w)))
    return perturb(fk.Flow(graph))


def rich_data(rows=5):
    x = {"ab": torch.randn(rows, 2, 4, 4, requires_grad=True), "w": torch.randn(rows, 3, requires_grad=True)}
    return x, {"photo": torch.randn(rows, 1, 4, 4, requires_grad=True), "label": torch.arange(rows) % 4}


@pytest.mark.parametrize("mode", FRUGAL, ids=lambda m: "-".join(map(str, m.values())))
def test_gradients_are_plain_autograds(mode):
    flow, (x, given) = rich_flow(), rich_data()
    tensors = [x["ab"], x["w"], given["photo"]]

    def loss(f):
        return -f.log_prob(x, given=given).square().mean()

    plain = gradients(flow, loss, tensors)
    set_mode(flow, **mode)
    assert_equal(gradients(flow, loss, tensors), plain)


@pytest.mark.parametrize("mode", FRUGAL[:4], ids=lambda m: "-".join(map(str, m.values())))
@pytest.mark.parametrize("part", ["fine", "z", "log_det"])
def test_a_loss_may_ignore_outputs(mode, part):
    flow, (x, given) = rich_flow(), rich_data()

    def loss(f):
        z, log_det = f(x, given=given)
        return log_det.sum() if part == "log_det" else f.split(z)[part].square().sum()

    plain = gradients(flow, loss)
    set_mode(flow, **mode)
    assert_equal(gradients(flow, loss), plain)


class Noisy(nn.Module):
    """Everything that a second run must not do twice, or must do alike."""

    def __init__(self, c_in, c_out):
        super().__init__()
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(c_in, 8))
        self.net = nn.Sequential(first, nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.4), nn.Linear(8, c_out))

    def forward(self, x):
        return self.net(x)


class GenericCoupling(fk.AffineCoupling):
    """A coupling as a plugin would write it, without a reverse step of its own."""

    undo = fk.Bijection.undo


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch hides it otherwise
@pytest.mark.parametrize(
    "coupling", [fk.AffineCoupling, GenericCoupling, "compiled"], ids=["own", "generic", "compiled"]
)
@pytest.mark.parametrize("mode", [FRUGAL[0], FRUGAL[3]], ids=["reverse", "checkpoint"])
def test_dropout_batch_norm_and_spectral_norm_see_the_same_and_change_once(mode, coupling):
    graph, compiled = fk.Graph(), coupling == "compiled"
    x = graph.input("x", (4,))
    for _ in range(3):
        x = graph.add(fk.Permute, graph.add(fk.AffineCoupling if compiled else coupling, x, subnet=Noisy))
    graph.output("z", x)
    flow = fk.Flow(graph).train()
    other = copy.deepcopy(flow)
    set_mode(other, **mode)
    if compiled:
        torch.compiler.reset()
        fk.compile(other, backend="aot_eager")
    data, results = torch.randn(16, 4), []
    for f in (flow, other):
        torch.manual_seed(3)
        for _ in range(2):
            results.append(gradients(f, lambda f: -f.log_prob(data).mean()))
        results.append(torch.get_rng_state())
    assert_equal(results[3], results[0], 1e-11)
    assert_equal(results[4], results[1], 1e-11)
    assert torch.equal(results[2], results[5])
    for (name, a), b in zip(flow.named_buffers(), other.buffers(), strict=True):
        assert name.endswith("drift") or torch.allclose(a.double(), b.double(), rtol=1e-12), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_entered_again(dtype):
    flow, data = chain(3).float(), torch.randn(8, 6, dtype=torch.float32)

    def loss(f):
        with torch.autocast("cpu", dtype=dtype):
            return -f.log_prob(data).mean()

    plain = gradients(flow, loss)
    set_mode(flow, "reverse")
    assert_equal(gradients(flow, loss), plain, 0.03)  # half precision's own noise


def test_accumulation_and_frozen_parameters():
    flow = chain(4)
    for parameter in list(flow.parameters())[::3]:
        parameter.requires_grad_(False)
    other, batches = copy.deepcopy(flow), [torch.randn(5, 6) for _ in range(2)]
    set_mode(other, "reverse")
    for f in (flow, other):
        for batch in batches:
            (-f.log_prob(batch).mean()).backward()
    for a, b in zip(flow.parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-11, atol=1e-12)


def test_a_second_derivative_is_refused_in_one_sentence():
    flow, x = chain(2, backprop="reverse"), torch.randn(3, 6, requires_grad=True)
    with pytest.raises(fk.BackpropError, match=r"second derivative cannot be taken .* use 'plain'"):
        torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it, for forward mode
def test_torch_func_and_forward_mode_fall_back_to_plain():
    flow, x = chain(2, backprop="reverse"), torch.randn(6)
    want = torch.autograd.functional.jacobian(lambda v: chain_z(flow, v), x, vectorize=False)
    assert torch.allclose(torch.func.jacrev(lambda v: chain_z(flow, v))(x), want)
    assert torch.allclose(torch.func.jacfwd(lambda v: chain_z(flow, v))(x), want)
    assert torch.func.vmap(flow.log_prob)(torch.randn(4, 6)).shape == (4,)


def chain_z(flow, x):
    return flow(x)[0]


def test_no_gradients_no_carriers():
    flow, x = chain(2, backprop="reverse"), torch.randn(3, 6)
    with torch.no_grad():
        assert flow.log_prob(x).grad_fn is None
    assert torch.allclose(flow.log_prob(x), chain_copy(flow, "plain").log_prob(x))


def chain_copy(flow, mode):
    other = copy.deepcopy(flow)
    other.backprop = mode
    return other


def saved(flow, rows=64):
    x = torch.randn(rows, 6)
    return saved_bytes(lambda: flow.log_prob(x), besides=[x, *flow.parameters(), *flow.buffers()])


def test_saved_bytes_do_not_grow_with_depth():
    without = {depth: saved(chain(depth, backprop="reverse", snapshots=0)) for depth in (4, 16, 64)}
    assert len(set(without.values())) == 1, without
    state = 64 * 6 * 8
    with_snapshots = {depth: saved(chain(depth, backprop="reverse", snapshots=8)) for depth in (8, 16, 64)}
    assert with_snapshots[64] - with_snapshots[16] == (64 - 16) // 8 * state
    plain = {depth: saved(chain(depth)) for depth in (4, 16)}
    assert plain[16] > 3 * plain[4]


def peak(flow, x):
    (-flow.log_prob(x).mean()).backward()
    flow.zero_grad()
    with LiveBytes() as counter:
        (-flow.log_prob(x).mean()).backward()
    return counter.peak


def test_auto_keeps_within_three_budgets_and_uses_them():
    flow, x = chain(12), torch.randn(512, 6)
    plain, least = peak(flow, x), peak(chain_copy(flow, "reverse"), x)
    kept = []
    for share in (0.25, 0.5, 0.8):
        budget = int(least + share * (plain - least))
        set_mode(flow, "auto", budget=budget)
        measured = peak(flow, x)
        assert measured <= budget
        kept.append(12 - next(reversed(flow.network._cuts.values())))
    assert 0 < kept[0] < kept[1] < kept[2] < 12


def test_auto_is_plain_where_that_takes_least():
    flow, x = fk.Flow(fk.AffineCoupling((64,), subnet=fk.MLP(hidden=32))), torch.randn(256, 64)
    plain = peak(flow, x)
    assert plain < peak(chain_copy(flow, "reverse"), x)
    set_mode(flow, "auto", budget=plain + 10_000)
    assert peak(flow, x) <= plain + 10_000


def test_auto_cuts_anew_when_more_is_trained():
    flow, x = chain(8), torch.randn(256, 6)
    whole = peak(flow, x)
    for parameter in flow.network.nodes["affine_coupling_8"].parameters():
        parameter.requires_grad_(False)
    set_mode(flow, "auto", budget=whole - 1000)
    peak(flow, x)
    flow.requires_grad_(True)
    assert peak(flow, x) <= whole - 1000


def test_auto_says_when_no_way_fits():
    flow = chain(4, backprop="auto", budget=100)
    with pytest.warns(fk.BudgetWarning, match=r"even in reverse mode a pass holds [\d,]+ bytes, the budget is 100"):
        flow.log_prob(torch.randn(8, 6)).sum().backward()


def ill_conditioned(**options):
    flow = chain(24, **options).float()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2)
    return flow


def test_drift_is_measured_and_warned_of_and_snapshots_bound_it():
    x = torch.randn(32, 6, dtype=torch.float32)
    flow = ill_conditioned(backprop="reverse", snapshots=12)
    flow.log_prob(x).mean().backward()
    far = flow.drift
    near = ill_conditioned(backprop="reverse", snapshots=1)
    near.load_state_dict(flow.state_dict())
    near.log_prob(x).mean().backward()
    assert 0 < near.drift < far
    flow.network.drift.fill_(0.5)
    with pytest.warns(fk.DriftWarning, match=r"drifted by 5.0e-01 from their snapshots \(limit 0.001\)"):
        flow.log_prob(x)
    assert flow.drift == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backprop": "invert"}, "backprop must be one of plain, checkpoint, reverse, auto, got 'invert'"),
        ({"snapshots": -1}, "snapshots, .* must be an int of 0 or more, got -1"),
        ({"chunk": 0}, "chunk, .* must be None or an int of 1 or more, got 0"),
        ({"backprop": "auto"}, "backprop='auto' needs a budget in bytes"),
        ({"budget": -5}, "budget, in bytes, must be None or a positive int, got -5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(fk.ConfigError, match=message):
        chain(1, **options)


def test_the_generic_step_serves_a_plugins_bijection():
    class Scale(fk.Bijection):
        def __init__(self, shape):
            super().__init__(shape)
            self.w = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return x * self.w.exp(), self.w.sum().expand(x.shape[0])

        def inverse(self, y):
            return y * (-self.w).exp(), -self.w.sum().expand(y.shape[0])

    flow, x = fk.Flow(Scale((3,))), torch.randn(4, 3, requires_grad=True)
    plain = gradients(flow, lambda f: f.log_prob(x).sum(), [x])
    set_mode(flow, "reverse")
    assert_equal(gradients(flow, lambda f: f.log_prob(x).sum(), [x]), plain)


class Costly(fk.Bijection):
    """A scaling whose inverse must not be called in backward."""

    slow_inverse = True

    def __init__(self, shape):
        super().__init__(shape)
        self.w = nn.Parameter(torch.full(shape, 0.3))

    def forward(self, x):
        return x * self.w.exp(), self.w.sum().expand(x.shape[0])

    def inverse(self, y):
        raise AssertionError("inverted")


def test_a_slow_inverse_is_not_inverted_and_what_it_keeps_serves_as_a_snapshot():
    graph = fk.Graph()
    x = graph.input("x", (6,))
    for i in range(12):
        subnet = fk.MLP(hidden=(8,), activation="silu")
        x = graph.add(Costly, x) if i % 4 == 3 else graph.add(fk.AffineCoupling, x, subnet=subnet)
    graph.output("z", x)
    flow, x = perturb(fk.Flow(graph)), torch.randn(64, 6)
    plain = gradients(flow, lambda f: f.log_prob(x).mean())
    set_mode(flow, "reverse", snapshots=0)
    assert_equal(gradients(flow, lambda f: f.log_prob(x).mean()), plain)
    without = saved(flow)
    set_mode(flow, "reverse", snapshots=8)
    assert saved(flow) == without
