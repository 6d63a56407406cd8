"""The two schedules: exact for any graph, in an order that is fixed when the network is built."""

import pytest
import torch
from torch import nn

import flowkit as fk

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)


def exact(flow, given=None, batch=3):
    """Round trip, and the log-det against the Jacobian in both directions."""
    x = {name: torch.randn(batch, *shape) for name, shape in flow.input_shapes.items()}
    z, log_det = flow(x, given=given)
    back, inverse_log_det = flow.inverse(z, given=given)
    back = back if isinstance(back, dict) else {next(iter(x)): back}
    for name in x:
        torch.testing.assert_close(back[name], x[name], rtol=0, atol=1e-11)
    torch.testing.assert_close(log_det, -inverse_log_det)
    shapes = flow.input_shapes

    def one(vector, c):
        parts = vector.split([torch.Size(s).numel() for s in shapes.values()])
        named = {n: p.reshape(1, *s) for p, (n, s) in zip(parts, shapes.items(), strict=True)}
        return flow(named, given=c)[0][0]

    for row in range(batch):
        c = None if given is None else {n: v[row : row + 1] for n, v in given.items()}
        vector = torch.cat([x[n][row].flatten() for n in shapes])
        jacobian = torch.autograd.functional.jacobian(lambda v, c=c: one(v, c), vector)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[row])


def test_several_inputs_conditions_and_outputs():
    graph = fk.Graph()
    c, d = graph.condition("c", (3,)), graph.condition("d", (2,))
    a, b = graph.input("a", (3,)), graph.input("b", (2,))
    a = graph.add(fk.AffineCoupling, a, given=[d, c], subnet=MLP)
    b = graph.add(fk.AffineCoupling, b, given=c, subnet=MLP)
    joined = graph.add(fk.LULinear, graph.add(fk.Concat, a, b))
    p, q, r = graph.add(fk.Split, joined, sizes=(2, 1, 2))
    graph.output("q", q)
    graph.output("r", graph.add(fk.AffineCoupling, r, given=d, subnet=MLP))
    graph.output("p", p)
    flow = fk.Flow(graph)
    assert flow.network.input_names == ("a", "b")
    assert flow.network.condition_names == ("c", "d")
    assert flow.network.output_names == ("q", "r", "p")
    assert flow.latents == {"q": (slice(0, 1), (1,)), "r": (slice(1, 3), (2,)), "p": (slice(3, 5), (2,))}
    exact(flow, {"d": torch.randn(3, 2), "c": torch.randn(3, 3)})


def test_a_diamond_of_data_wires_as_conditions():
    graph = fk.Graph()
    a, b = graph.add(fk.Split, graph.input("x", (5,)))
    b = graph.add(fk.AffineCoupling, b, given=a, subnet=MLP, name="b_by_a")
    a = graph.add(fk.AffineCoupling, a, given=b, subnet=MLP, name="a_by_b")
    h = graph.features(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), a, name="net")
    b = graph.add(fk.AffineCoupling, b, given=[h, a], subnet=MLP, name="b_by_net")
    graph.output("z", graph.add(fk.Concat, a, b))
    flow = fk.Flow(graph)
    exact(flow)
    names = [step.name for step in flow.network._schedule.inverse]
    assert names == ["concat_1", "net", "b_by_net", "a_by_b", "b_by_a", "split_1"]


def test_a_wire_that_is_output_and_condition_and_feature_stays_known():
    graph = fk.Graph()
    a, b = graph.input("a", (2,)), graph.input("b", (3,))
    a = graph.add(fk.AffineCoupling, a, subnet=MLP)
    h = graph.features(nn.Linear(2, 2), a)
    graph.output("a", a)
    b = graph.add(fk.AffineCoupling, b, given=[a, h], subnet=MLP)
    graph.output("b", b)
    exact(fk.Flow(graph))


def test_features_of_data_and_condition_together():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 4)

        def forward(self, c, a):
            return torch.tanh(self.net(torch.cat((c, a), 1)))

    graph = fk.Graph()
    c = graph.condition("c", (3,))
    a, b = graph.add(fk.Split, graph.input("x", (5,)))
    b = graph.add(fk.AffineCoupling, b, given=graph.features(Both(), c, a), subnet=MLP)
    graph.output("z", graph.add(fk.Concat, a, b))
    flow = fk.Flow(graph)
    given = torch.randn(3, 3)
    exact(flow, {"c": given})
    x = torch.randn(4, 3, 5)
    plain = torch.stack([flow.log_prob(each, given=given) for each in x])
    torch.testing.assert_close(flow.log_prob(x, given=given), plain)  # S x R rows


def test_a_graph_without_nodes_is_the_identity():
    graph = fk.Graph()
    graph.output("z", graph.input("x", (3,)))
    flow, x = fk.Flow(graph), torch.randn(4, 3)
    z, log_det = flow(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(4))
    assert flow.network.volume_preserving
    assert torch.equal(flow.inverse(z)[0], x)


def test_a_scalar_event():
    flow = fk.Flow(fk.ElementwiseAffine(()))
    assert flow.dim == 1
    assert flow.log_prob(torch.tensor(0.0)).shape == ()
    assert flow.log_prob(torch.zeros(4, 5)).shape == (4, 5)
    assert flow.sample((3,)).shape == (3,)
    exact(flow)


def test_volume_preserving_parts_keep_the_log_det_wide():
    flow = fk.Flow(fk.Permute((3,))).float()
    z, log_det = flow(torch.randn(2, 3, dtype=torch.float32))
    assert (z.dtype, log_det.dtype) == (torch.float32, torch.float32)
    assert flow.double()(torch.randn(2, 3))[1].dtype == torch.float64


def test_the_order_of_the_parts_is_that_of_the_declaration():
    def build():
        torch.manual_seed(3)
        graph = fk.Graph()
        x = graph.input("x", (4,))
        for _ in range(3):
            x = graph.add(fk.Permute, graph.add(fk.AffineCoupling, x, subnet=MLP))
        graph.output("z", x)
        return fk.Flow(graph)

    a, b = build().state_dict(), build().state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_data_wires_are_dropped_after_their_last_use():
    graph = fk.Graph()
    a, b = graph.add(fk.Split, graph.input("x", (4,)))
    b = graph.add(fk.AffineCoupling, b, given=a, subnet=MLP)
    b = graph.add(fk.Permute, b)
    graph.output("z", graph.add(fk.Concat, a, b))
    network = fk.Flow(graph).network
    dropped = [i for step in network._schedule.forward for i in step.drops]
    data = [w.index for w in graph.wires if w.kind == "data" and w not in graph.outputs.values()]
    assert sorted(dropped) == sorted(data)
    assert len(set(dropped)) == len(dropped)


def test_the_network_itself_refuses_the_wrong_number_of_tensors():
    graph = fk.Graph()
    c = graph.condition("c", (3,))
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=c, subnet=MLP))
    network = fk.InvertibleNetwork(graph)
    with pytest.raises(fk.ConditionError, match=r"needs 1 conditions \('c',\), got 0"):
        network(torch.zeros(2, 2))
    with pytest.raises(fk.ConditionError, match=r"got 2"):
        network(torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(fk.ConditionError, match=r"needs 1 inputs"):
        network()


def test_promises_of_a_network():
    graph = fk.Graph()
    x = graph.add(fk.ActNorm, graph.add(fk.Permute, graph.input("x", (2,))))
    graph.output("z", x)
    network = fk.InvertibleNetwork(graph)
    assert network.constant_log_det
    assert not network.volume_preserving
    assert not fk.InvertibleNetwork.constant_log_det  # the instance's promise, not the class's
    assert fk.Flow(network).exact
    assert fk.Flow(network).exact == True  # noqa: E712  # it compares as a bool, too


def test_a_dimension_changing_part_is_named_by_exact():
    class Bound(fk.Permute):
        dimension_changing = True

    graph = fk.Graph()
    graph.output("z", graph.add(Bound, graph.input("x", (2,)), name="dequantise"))
    flow = fk.Flow(graph)
    assert not flow.exact
    assert "'dequantise' (Bound) changes the dimension" in repr(flow.exact)
    outer = fk.Graph()
    outer.output("z", outer.add(graph, outer.input("x", (2,))))
    assert not fk.Flow(outer).exact
