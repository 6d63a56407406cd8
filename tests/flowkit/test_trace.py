"""What happens inside a flow, node by node; NaN by name and index; data-dependent initialisation in order."""

import pytest
import torch
from torch import nn

import flowkit as fk

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)


def nested():
    inner = fk.Graph()
    c = inner.condition("c", (2,))
    x = inner.add(fk.ActNorm, inner.input("x", (4,)), name="norm")
    inner.output("z", inner.add(fk.AffineCoupling, x, given=c, subnet=MLP, name="couple"))
    graph = fk.Graph()
    c = graph.features(nn.Linear(2, 2), graph.condition("c", (2,)), name="net")
    x = graph.add(fk.ActNorm, graph.input("x", (4,)), name="first")
    x = graph.add(inner, x, given=c, name="inner")
    a, b = graph.add(fk.Split, x, name="halve")
    graph.output("a", graph.add(fk.ActNorm, a, name="last"))
    graph.output("b", b)
    return graph


@pytest.fixture
def flow():
    return fk.Flow(nested())


@pytest.fixture
def data():
    return torch.randn(64, 4) * 3 + 5, torch.randn(64, 2)


def test_records_are_named_in_order_and_hold_what_happened(flow, data):
    x, c = data
    trace = flow.trace(x, given=c)
    assert [r.name for r in trace] == ["first", "inner.norm", "inner.couple", "halve", "last"]
    assert [r.op for r in trace] == ["ActNorm", "ActNorm", "AffineCoupling", "Split", "ActNorm"]
    z, log_det = flow(x, given=c)
    torch.testing.assert_close(torch.cat((trace["last"].values[0], trace["halve"].values[1]), -1), z.detach())
    torch.testing.assert_close(sum(r.log_det for r in trace), log_det.detach())
    assert all(r.finite and r.round_trip < 1e-12 for r in trace)
    assert trace.first_bad() is None
    assert len(trace) == 5
    assert trace[2].name == "inner.couple"
    with pytest.raises(KeyError):
        trace["nope"]


def test_scales_are_log_scales_where_there_are_some_else_standard_deviations(flow, data):
    x, c = data
    with torch.no_grad():
        flow.network.nodes["first"].log_scale.copy_(torch.tensor([-1.0, 0.0, 0.5, 2.0]))
    trace = flow.trace(x, given=c)
    assert trace["first"].scales_are == "log-scale"
    assert trace["first"].scales == (-1.0, 2.0)
    assert trace["halve"].scales_are == "row std"
    stds = torch.cat([v.std(1, unbiased=False) for v in trace["halve"].values])
    assert trace["halve"].scales == pytest.approx((float(stds.min()), float(stds.max())))
    lines = repr(trace).splitlines()
    assert lines[0].split() == ["node", "log-det", "(mean)", "round", "trip", "scales"]
    assert lines[1].split()[0] == "first"
    assert lines[1].endswith("log-scale -1 .. 2")


def test_trace_is_in_eval_mode_without_gradients_and_restores_modes(flow, data):
    flow.train()
    flow.network.nodes["net"].eval()
    trace = flow.trace(data[0].requires_grad_(), given=data[1])
    assert not trace[0].values[0].requires_grad
    assert flow.training
    assert flow.network.nodes["first"].training
    assert not flow.network.nodes["net"].training


def test_an_empty_batch_is_traced(flow):
    trace = flow.trace(torch.zeros(0, 4), given=torch.zeros(0, 2))
    assert [r.round_trip for r in trace] == [0.0] * 5
    assert "inner.couple" in repr(trace)


def test_the_first_bad_node_has_a_name(flow, data):
    x, c = data
    with torch.no_grad():
        flow.network.nodes["inner"].nodes["couple"].subnets[0].rest[-1].bias.fill_(float("inf"))
    bad = flow.trace(x, given=c).first_bad()
    assert bad.name == "inner.couple"
    assert not bad.finite


class Wrong(fk.Bijection):
    """An inverse that misses, by a figure or by a NaN in the second output's place."""

    def __init__(self, shape, other, miss=0.0):
        super().__init__(shape, other)
        self.miss = miss

    def forward(self, x, y):
        return (x, y), x.new_zeros(x.shape[0])

    def inverse(self, x, y):
        return (x, y + self.miss), x.new_zeros(x.shape[0])


@pytest.mark.parametrize("miss", [1.0, float("nan"), float("inf")])
def test_an_inverse_that_misses_is_the_first_bad_node(miss):
    graph = fk.Graph()
    a, b = graph.add(Wrong, graph.input("a", (2,)), graph.input("b", (3,)), miss=miss, name="wrong")
    graph.output("a", graph.add(fk.Permute, a))
    graph.output("b", b)
    trace = fk.Flow(graph).trace({"a": torch.randn(3, 2), "b": torch.randn(3, 3)})
    assert trace.first_bad().name == "wrong"
    assert trace["wrong"].round_trip == pytest.approx(1.0 if miss == 1.0 else float("inf"))
    assert (trace.first_bad(tolerance=2) is None) == (miss == 1.0)


# ---------------------------------------------------------------------- NaN


@pytest.mark.parametrize("call", [lambda f, x, c: f.trace(x, given=c), lambda f, x, c: f.initialize(x, given=c)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_in_data_and_conditions_is_named_with_its_index(flow, call, value):
    x, c = torch.randn(3, 5, 4), torch.randn(5, 2)
    x[2, 1, 3] = x[2, 4, 0] = value
    with pytest.raises(
        fk.NonFiniteError, match=rf"input 'x' holds {value} at index \(2, 1, 3\) \(2 of 60 values are not finite\)"
    ):
        call(flow, x, c)
    x, c[4, 1] = torch.zeros(5, 4), value
    with pytest.raises(fk.NonFiniteError, match=rf"condition 'c' holds {value} at index \(4, 1\) \(1 of 10"):
        call(flow, x, c)
    assert not flow.network.nodes["first"].initialized


def test_log_prob_propagates_nan(flow, data):
    x, c = data
    x[3, 2] = float("nan")
    log_prob = flow.log_prob(x, given=c)
    assert log_prob.isnan().nonzero().flatten().tolist() == [3]


# ---------------------------------------------------------------------- initialize


def test_initialize_runs_in_forward_order_nested_included(flow, data):
    x, c = data
    assert flow.initialize(x, given=c) is flow
    trace = flow.trace(x, given=c)
    for name in ("first", "inner.norm", "last"):
        values = trace[name].values[0]
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-10, rtol=0)
        torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(values.shape[1]))
    assert all(bool(v) for n, v in flow.state_dict().items() if n.endswith("initialized"))


def test_initialize_leaves_what_is_initialised_unless_again(flow, data):
    x, c = data
    flow.network.nodes["inner"].nodes["norm"].initialized.fill_(True)
    flow.initialize(x, given=c)
    norm = flow.network.nodes["inner"].nodes["norm"]
    assert not norm.location.any()
    before = flow.network.nodes["first"].location.clone()
    flow.initialize(x + 100, given=c)
    assert torch.equal(flow.network.nodes["first"].location, before)
    flow.initialize(x + 100, given=c, again=True)
    torch.testing.assert_close(flow.network.nodes["first"].location.detach(), before.detach() + 100)
    assert norm.location.abs().max() < 1e-10  # of what the first one gives: centred
    assert norm.initialized


@pytest.mark.parametrize("again", [False, True])
def test_a_shared_instance_is_initialised_at_its_first_use(again):
    shared = fk.ActNorm((2,))
    inner = fk.Graph()
    inner.output("z", inner.add(shared, inner.input("x", (2,))))
    graph = fk.Graph()
    x = graph.add(shared, graph.input("x", (2,)), name="once")
    x = graph.add(fk.ElementwiseAffine, x, name="shift")
    graph.output("z", graph.add(inner, x))
    flow = fk.Flow(graph)
    with torch.no_grad():
        flow.network.nodes["shift"].shift.fill_(50)
    x = torch.randn(32, 2) + 7
    flow.initialize(x)
    flow.initialize(x, again=again)
    torch.testing.assert_close(shared.location.detach(), x.mean(0))


def test_a_node_that_makes_nan_of_finite_data_is_named(flow, data):
    with torch.no_grad():
        flow.network.nodes["inner"].nodes["couple"].subnets[0].rest[-1].bias.fill_(float("nan"))
    with pytest.raises(
        fk.NonFiniteError, match=r"node 'inner.couple' gave nan at index .* while the flow was initialised"
    ):
        flow.initialize(data[0], given=data[1])


def test_initialize_by_broadcast_and_dictionaries():
    graph = fk.Graph()
    a, b = graph.add(fk.ActNorm, graph.input("a", (2,)), name="a_norm"), graph.input("b", (2,))
    graph.output("a", graph.add(fk.AffineCoupling, a, given=[b, graph.condition("c", (3,))], subnet=MLP))
    graph.output("b", b)
    flow = fk.Flow(graph)
    a = torch.randn(5, 1, 2)
    flow.initialize({"a": a, "b": torch.randn(7, 2)}, given=torch.zeros(3))
    torch.testing.assert_close(flow.network.nodes["a_norm"].location.detach(), a.mean((0, 1)))


def test_an_initialised_flow_is_saved_so(flow, data, tmp_path):
    flow.initialize(data[0], given=data[1])
    other = fk.Flow(nested())
    other.load_state_dict(flow.state_dict())
    before = other.network.nodes["first"].location.clone()
    other.initialize(data[0] + 9, given=data[1])
    assert torch.equal(other.network.nodes["first"].location, before)
