"""Nested networks, shared instances, snapshots, building on meta, and names that no process changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

import flowkit as fk

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)


def block(conditions=("c",), dtype=None):
    """A graph of two outputs, one data-wire condition and one coupling on a feature of its conditions."""
    graph = fk.Graph()
    given = [graph.condition(name, (3,)) for name in conditions]
    if dtype is not None:
        given.append(graph.features(fk.OneHot(3), graph.condition("digit", (), dtype=dtype)))
    a, b = graph.add(fk.Split, graph.add(fk.ActNorm, graph.input("x", (4,))))
    a = graph.add(fk.AffineCoupling, a, given=given, subnet=MLP)
    graph.output("a", a)
    graph.output("b", graph.add(fk.AffineCoupling, b, given=a, subnet=MLP))
    return graph


def nested(part, **kwargs):
    graph = fk.Graph()
    c, x = graph.condition("c", (3,)), graph.input("x", (4,))
    a, b = graph.add(part, x, given=kwargs.pop("given", c), name="inner")
    graph.output("z", graph.add(fk.Concat, a, b))
    return graph


def test_a_nested_graph_is_the_same_map_as_its_nodes_in_place():
    flow = fk.Flow(nested(block()))
    inner = fk.Flow(flow.network.nodes["inner"])
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(flow(x, given=c), inner(x, given=c))
    torch.testing.assert_close(flow.inverse(x, given=c), inner.inverse(x, given=c))


def test_nested_prepared_parts_and_features_equal_the_plain_path():
    graph = block()
    flow = fk.Flow(nested(graph))
    x, c = torch.randn(6, 5, 4), torch.randn(5, 3)
    plain = torch.stack([flow.log_prob(each, given=c) for each in x])
    torch.testing.assert_close(flow.log_prob(x, given=c), plain)
    torch.testing.assert_close(flow.log_prob(x.transpose(0, 1), given=c[:, None]), plain.T)  # not samples outermost


@pytest.mark.parametrize("depth", [1, 3])
def test_state_names_of_nested_networks(depth):
    graph = fk.Graph()
    graph.output("z", graph.add(fk.ActNorm, graph.input("x", (2,)), name="norm"))
    for _ in range(depth):
        outer = fk.Graph()
        outer.output("z", outer.add(graph, outer.input("x", (2,)), name="inner"))
        graph = outer
    names = list(fk.Flow(graph).state_dict())
    assert names == [
        f"network.{'nodes.inner.' * depth}nodes.norm.{n}" for n in ("location", "log_scale", "initialized")
    ]


def test_a_graph_is_nested_as_a_class_and_a_network_as_an_instance():
    graph = nested(block())
    assert fk.Flow(graph).network.nodes["inner"] is not fk.Flow(graph).network.nodes["inner"]
    network = fk.InvertibleNetwork(block())
    graph = nested(network)
    assert fk.Flow(graph).network.nodes["inner"] is network is fk.Flow(graph).network.nodes["inner"]


def test_given_by_the_inner_names_in_any_order():
    inner = block(conditions=("p", "q"))
    graph = fk.Graph()
    u, v, x = graph.condition("u", (3,)), graph.condition("v", (3,)), graph.input("x", (4,))
    a, b = graph.add(inner, x, given={"q": v, "p": u})
    graph.output("a", a)
    graph.output("b", b)
    assert graph.nodes[0].given == (u, v)
    with pytest.raises(fk.GraphError, match=r"needs the conditions 'p' and 'q': missing 'q', not known 'r'"):
        graph.add(inner, graph.input("w", (4,)), given={"p": u, "r": v})
    with pytest.raises(fk.GraphError, match=r"only a nested network names its conditions"):
        graph.add(fk.AffineCoupling, graph.wire("w"), given={"p": u})


def test_conditions_missing_or_misshaped():
    graph = fk.Graph()
    x, d = graph.input("x", (4,)), graph.condition("d", (2,))
    with pytest.raises(fk.ShapeError, match=r"takes conditions of shape \(3,\), got none"):
        graph.add(block(), x)
    with pytest.raises(fk.ShapeError, match=r"takes conditions 'c' \(3,\), got \(2,\)"):
        graph.add(block(), x, given=d)
    with pytest.raises(fk.ShapeError, match=r"takes inputs 'x' \(4,\), got \(5,\)"):
        graph.add(block(), graph.input("w", (5,)), given=graph.condition("c", (3,)))


def test_a_nested_network_that_cannot_be_built_names_the_node():
    inner = fk.Graph()
    inner.input("x", (4,))
    outer = fk.Graph()
    with pytest.raises(fk.GraphError, match=r"'twice' on 'x' .*the graph has no output"):
        outer.add(inner, outer.input("x", (4,)), name="twice")


def test_integer_labels_go_into_nested_networks():
    graph = fk.Graph()
    digit, c = graph.condition("label", (), dtype=torch.int64), graph.condition("c", (3,))
    inner = block(dtype=torch.int64)
    a, b = graph.add(inner, graph.input("x", (4,)), given={"digit": digit, "c": c})
    graph.output("a", a)
    graph.output("b", b)
    flow = fk.Flow(graph)
    given = {"label": torch.tensor([0, 2]), "c": torch.zeros(2, 3)}
    assert flow.log_prob(torch.zeros(2, 4), given=given).shape == (2,)


def test_declarations_after_building_or_nesting_change_nothing():
    inner = block()
    outer = nested(inner)
    network = fk.InvertibleNetwork(inner)
    flow = fk.Flow(inner)
    inner.output("w", inner.add(fk.Permute, inner.input("w", (2,))))
    assert fk.Flow(outer).input_shapes == {"x": (4,)}
    assert network.input_names == ("x",)
    assert flow.network.graph.inputs != inner.inputs
    assert flow.resized().input_shapes == {"x": (4,)}


def test_options_are_kept_as_they_were():
    order = [1, 0]
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,)), order=order))
    order.reverse()
    assert fk.Flow(graph).network.nodes["permute_1"].order.tolist() == [1, 0]


def test_a_shared_instance_is_one_part_in_every_place_and_flow():
    graph = fk.Graph()
    part = fk.AffineCoupling((4,), subnet=MLP)
    x = graph.add(part, graph.input("x", (4,)), name="once")
    graph.output("z", graph.add(part, x, name="twice"))
    flow, other = fk.Flow(graph), fk.Flow(graph)
    assert flow.network.nodes["once"] is flow.network.nodes["twice"] is other.network.nodes["once"] is part
    assert len(list(flow.parameters())) == len(list(part.parameters()))
    x = torch.randn(3, 4)
    (_, one), (_, two) = part(x), part(part(x)[0])
    torch.testing.assert_close(flow(x)[1], one + two)
    torch.testing.assert_close(flow.inverse(flow(x)[0])[0], x)
    copied = copy.deepcopy(flow)
    assert copied.network.nodes["once"] is copied.network.nodes["twice"] is copied.network.graph.nodes[0].module


class ToMeta(fk.Bijection):
    """Does in its constructor what the meta device cannot."""

    def __init__(self, shape):
        super().__init__(shape)
        weight = torch.randn(shape)
        self.positive = bool((weight.sum() > 0).item())
        self.w = nn.Parameter(weight)

    def forward(self, x):
        return x + self.w, x.new_zeros(x.shape[0])

    def inverse(self, y):
        return y - self.w, y.new_zeros(y.shape[0])


def test_declaring_consumes_no_random_numbers_and_makes_no_weights():
    state = torch.get_rng_state()
    graph = fk.Graph()
    x = graph.input("x", (4,))
    for part in (fk.AffineCoupling, fk.Permute, fk.LULinear, fk.FixedRotation, fk.ActNorm, ToMeta):
        x = graph.add(part, x)
    x = graph.add(fk.AffineCoupling, x, subnet=lambda c_in, c_out: nn.Linear(c_in, c_out))
    graph.output("z", x)
    graph.draw()
    graph.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(node.module is None for node in graph.nodes)
    flow = fk.Flow(graph)
    assert not torch.equal(torch.get_rng_state(), state)
    assert not any(t.is_meta for t in (*flow.parameters(), *flow.buffers()))


def test_a_lambda_as_a_recipe_copies_whole_and_pickles_as_its_text():
    graph = fk.Graph()
    x = graph.add(fk.AffineCoupling, graph.input("x", (4,)), subnet=lambda c_in, c_out: nn.Linear(c_in, c_out))
    graph.output("z", graph.add(fk.AffineCoupling((4,), subnet=lambda c_in, c_out: nn.Linear(c_in, c_out)), x))
    flow, x = fk.Flow(graph), torch.randn(3, 4)
    copied = copy.deepcopy(flow)
    assert torch.equal(copied.log_prob(x), flow.log_prob(x))
    assert fk.Flow(copied.network.graph).log_prob(x).shape == (3,)  # the recipe is still one
    assert fk.Flow(copy.deepcopy(graph)).log_prob(x).shape == (3,)
    assert copied.resized().log_prob(x).shape == (3,)
    pickled = pickle.loads(pickle.dumps(flow))
    assert torch.equal(pickled.log_prob(x), flow.log_prob(x))
    assert "<function" in repr(pickled)
    with pytest.raises(fk.ConfigError, match=r"subnet must be a recipe.*<lambda>"):
        fk.Flow(pickled.network.graph)


def test_deepcopies_share_nothing():
    flow = fk.Flow(nested(block()))
    copied = copy.deepcopy(flow)
    assert not {id(p) for p in flow.parameters()} & {id(p) for p in copied.parameters()}
    assert all(wire.graph is not flow.network.graph.wires[0].graph for wire in copied.network.graph.wires)
    a, b = fk.Flow(copied.network.graph), copied
    assert list(a.state_dict()) == list(b.state_dict())


def test_inputs_of_a_network_by_shape():
    graph = fk.Graph()
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=graph.condition("c", (3,))))
    assert fk.InvertibleNetwork(4, given=3, graph=graph).in_shapes == ((4,),)
    assert fk.InvertibleNetwork(graph).condition_shapes == ((3,),)
    with pytest.raises(fk.ShapeError, match=r"takes inputs 'x' \(4,\), got \(5,\)"):
        fk.InvertibleNetwork(5, graph=graph)
    with pytest.raises(fk.GraphError, match=r"needs a Graph, got NoneType"):
        fk.InvertibleNetwork((4,))
