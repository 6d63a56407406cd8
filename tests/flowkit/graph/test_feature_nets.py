"""Feature nets in a graph: what they may return, how their shapes are found, and that finding them leaves no trace."""

import pytest
import torch
from torch import nn

import flowkit as fk


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make
        self.calls = 0

    def forward(self, *c):
        self.calls += 1
        return self.make(*c)


@pytest.fixture
def graph():
    return fk.Graph()


def test_a_tensor_gives_a_wire(graph):
    wire = graph.features(nn.Linear(3, 5), graph.condition("c", (3,)))
    assert (wire.name, wire.shape, wire.kind) == ("linear_1", (5,), "condition")


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_tuple_gives_a_tuple(graph, kind):
    wires = graph.features(Returns(lambda c: kind((c, c[:, :1]))), graph.condition("c", (3,)), name="net")
    assert isinstance(wires, tuple)
    assert [(w.name, w.shape) for w in wires] == [("net.0", (3,)), ("net.1", (1,))]


def test_a_tuple_of_one_gives_a_tuple_of_one(graph):
    wires = graph.features(Returns(lambda c: (c,)), graph.condition("c", (3,)))
    assert isinstance(wires, tuple)
    assert len(wires) == 1


def test_a_dictionary_gives_a_dictionary_and_is_used_by_name(graph):
    net = Returns(lambda c: {"fine": c, "coarse": c[:, :1]})
    wires = graph.features(net, graph.condition("c", (3,)), name="net")
    assert {k: (w.name, w.shape) for k, w in wires.items()} == {
        "fine": ("net.fine", (3,)),
        "coarse": ("net.coarse", (1,)),
    }
    x = graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=wires["coarse"], subnet=fk.MLP(4, zero_last=False))
    graph.output("z", x)
    flow = fk.Flow(graph)
    c, x = torch.randn(5, 3), torch.randn(5, 2)
    changed = c.clone()
    changed[:, 1:] += 1  # the coarse output does not see it
    assert torch.equal(flow.log_prob(x, given=c), flow.log_prob(x, given=changed))


def test_several_wires_are_its_arguments_in_order(graph):
    a, b = graph.condition("a", (3,)), graph.condition("b", (2,))
    assert graph.features(Returns(lambda b, a: torch.cat((b, a, a), 1)), b, a).shape == (8,)


def test_scalar_features(graph):
    assert graph.features(Returns(lambda c: c.sum(1)), graph.condition("c", (3,))).shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.sum(), "it must keep the batch dimension in front, 3 rows gave a tensor of shape"),
        (lambda c: c[:1], "it must keep the batch dimension in front"),
        (lambda c: ((c, c), c), "it must return tensors, got tuple"),
        (lambda c: None, "it must return tensors, got NoneType"),
        (lambda c: (), "it must return a tensor, several, or a dictionary"),
        (lambda c: {3: c}, r"it must return a tensor, several, or a dictionary of them by name, got \[3\]"),
        (lambda c: nn.functional.linear(c, torch.zeros(2, 7)), "its dry run failed with RuntimeError"),
    ],
)
def test_what_a_net_must_not_return(graph, make, message):
    with pytest.raises(fk.GraphError, match=f"features 'net' \\(Returns\\) on 'c' \\(4,\\): {message}"):
        graph.features(Returns(make), graph.condition("c", (4,)), name="net")


def test_a_dry_run_that_fails_names_shapes(graph):
    with pytest.raises(
        fk.GraphError, match=r"on 'c' \(3,\): its dry run failed.*; pass shapes= to say what it returns"
    ):
        graph.features(nn.Linear(4, 5), graph.condition("c", (3,)))


def test_the_dry_run_computes_nothing_and_restores_modes_and_random_state(graph):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
            self.frozen = nn.BatchNorm1d(3).eval()

        def forward(self, c):
            seen.append((c.device.type, self.training))
            return self.frozen(self.net(c))

    net = Watched()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = torch.get_rng_state()
    graph.features(net, graph.condition("c", (3,)))
    assert seen == [("meta", False)]
    assert net.training
    assert net.net.training
    assert not net.frozen.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert not any(p.is_meta for p in net.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c + torch.randn(c.shape),  # draws before it fails on meta
        lambda c: c + torch.from_numpy(__import__("numpy").ones(3)),
        lambda c: c * float(c.sum()),
    ],
)
def test_what_meta_cannot_run_is_run_on_zeros_once_in_a_forked_random_state(graph, make):
    state = torch.get_rng_state()
    assert graph.features(Returns(make), graph.condition("c", (3,))).shape == (3,)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_reach_the_dry_run_as_integers(graph):
    wire = graph.features(nn.Embedding(10, 4), graph.condition("digit", (), dtype=torch.int64))
    assert wire.shape == (4,)
    with pytest.raises(fk.GraphError, match=r"OneHot needs integer labels"):
        graph.features(fk.OneHot(3), graph.condition("c", ()))


@pytest.mark.parametrize(
    ("shapes", "made"),
    [
        (7, [(7,)]),
        ((7,), [(7,)]),
        ((), [()]),
        ((2, 4, 4), [(2, 4, 4)]),
        ([(2,), (3,)], [(2,), (3,)]),
        ({"a": (2,), "b": 3}, [(2,), (3,)]),
    ],
)
def test_shapes_are_believed_and_nothing_is_run(graph, shapes, made):
    net = Returns(lambda c: 1 / 0)
    wires = graph.features(net, graph.condition("c", (3,)), shapes=shapes)
    wires = list(wires.values()) if isinstance(wires, dict) else wires
    assert [w.shape for w in (wires if isinstance(wires, tuple | list) else [wires])] == made
    assert net.calls == 0


def test_shapes_that_were_not_true_are_found_at_the_call(graph):
    a, _ = graph.features(Returns(lambda c: {"a": c}), graph.condition("c", (3,)), shapes=[(3,), (3,)], name="net")
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=a, subnet=fk.MLP(4)))
    with pytest.raises(fk.GraphError, match=r"features 'net' returned the outputs \['a'\], declared were \[0, 1\]"):
        fk.Flow(graph).log_prob(torch.zeros(1, 2), given=torch.zeros(1, 3))


def test_feature_nets_are_shared_by_all_flows_and_class_parts_are_new(graph):
    net = nn.Linear(3, 4)
    h = graph.features(net, graph.condition("c", (3,)), name="net")
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=h, subnet=fk.MLP(4), name="part"))
    a, b = fk.Flow(graph), fk.Flow(graph)
    assert a.network.nodes["net"] is b.network.nodes["net"] is net
    assert a.network.nodes["part"] is not b.network.nodes["part"]


def test_a_chain_of_feature_nets_on_conditions_alone_runs_before_the_data(graph):
    first, second = Returns(lambda c: 2 * c), Returns(lambda c: c + 1)
    c = graph.condition("c", (3,))
    x = graph.add(fk.Permute, graph.input("x", (2,)))
    h = graph.features(second, graph.features(first, c))
    graph.output("z", graph.add(fk.AffineCoupling, x, given=h, subnet=fk.MLP(4)))
    flow = fk.Flow(graph)
    first.calls = second.calls = 0
    flow.log_prob(torch.zeros(2, 2), given=torch.zeros(2, 3))
    assert (first.calls, second.calls) == (1, 1)
