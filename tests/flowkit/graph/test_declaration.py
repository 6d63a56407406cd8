"""Everything wrong with a graph is found when it is declared or built, and said by name: each error its own test."""

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.graph.graph import snake_case

MLP = fk.MLP(hidden=4)


@pytest.fixture
def graph():
    return fk.Graph()


def refused(message, error=fk.GraphError):
    return pytest.raises(error, match=message)


# ---------------------------------------------------------------------- data wires are linear


def test_a_data_wire_used_by_two_nodes(graph):
    x = graph.input("x", (2,))
    graph.add(fk.Permute, x)
    with refused(
        r"node 'permute_2' uses the data wire 'x' \(2,\), which node 'permute_1' has used already.*exactly once"
    ):
        graph.add(fk.Permute, x)


def test_a_data_wire_used_twice_by_one_node(graph):
    x = graph.input("x", (2,))
    with refused(r"node 'concat_1' uses the data wire 'x' \(2,\), which node 'concat_1' itself has used already"):
        graph.add(fk.Concat, x, x)


def test_a_data_wire_that_is_an_output_already(graph):
    x = graph.input("x", (2,))
    graph.output("z", x)
    with refused(r"node 'permute_1' uses the data wire 'x' \(2,\), which output 'z' has used already"):
        graph.add(fk.Permute, x)
    with refused(r"output 'w' uses the data wire 'x' \(2,\), which output 'z' has used already"):
        graph.output("w", x)


def test_an_output_of_a_wire_that_a_node_consumed(graph):
    x = graph.input("x", (2,))
    graph.add(fk.Permute, x)
    with refused(r"output 'z' uses the data wire 'x' \(2,\), which node 'permute_1' has used already"):
        graph.output("z", x)


def test_an_input_never_used(graph):
    graph.input("w", (3,))
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    with refused(r"the data wire 'w' \(3,\), an input, is never used"):
        graph.check()
    with refused("'w'"):
        fk.Flow(graph)


def test_a_node_s_output_never_used(graph):
    first, _ = graph.add(fk.Split, graph.input("x", (4,)))
    graph.output("z", first)
    with refused(r"the data wire 'split_1.1' \(2,\), made by node 'split_1', is never used"):
        fk.Flow(graph)


def test_no_input_and_no_output(graph):
    with refused(r"the graph has no input: .*graph\.input"):
        graph.check()
    graph.add(fk.Permute, graph.input("x", (2,)))
    with refused(r"the graph has no output: .*graph\.output"):
        graph.check()


def test_a_data_wire_may_condition_any_number_of_nodes(graph):
    a, b = graph.add(fk.Split, graph.input("x", (4,)))
    for _ in range(2):
        b = graph.add(fk.AffineCoupling, b, given=a, subnet=MLP)
    graph.output("a", a)
    graph.output("b", b)
    graph.check()


# ---------------------------------------------------------------------- conditions


def test_a_condition_never_used(graph):
    graph.condition("label", (10,))
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    with refused(r"the condition 'label' \(10,\) is never used: pass it to a node by given="):
        fk.Flow(graph)


def test_features_never_used(graph):
    graph.features(nn.Linear(3, 4), graph.condition("c", (3,)), name="net")
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    with refused(r"no output of the features 'net' is used: pass 'net' \(4,\) to a node by given="):
        fk.Flow(graph)


def test_one_level_of_a_pyramid_may_go_unused(graph):
    class Two(nn.Module):
        def forward(self, c):
            return c, 2 * c

    used, _ = graph.features(Two(), graph.condition("c", (3,)))
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=used, subnet=MLP))
    assert fk.Flow(graph).log_prob(torch.zeros(2, 2), given=torch.zeros(2, 3)).shape == (2,)


def test_a_condition_passed_as_data(graph):
    c = graph.condition("c", (2,))
    with refused(r"node 'permute_1': 'c' \(2,\) is a condition: pass it by given="):
        graph.add(fk.Permute, c)
    with refused(r"output 'z': 'c' is a condition; an output is a data wire"):
        graph.output("z", c)


def test_a_condition_for_a_class_that_takes_none(graph):
    x, c = graph.input("x", (2,)), graph.condition("c", (3,))
    with refused(r"node 'permute_1': Permute takes no conditions, but 'c' \(3,\) was given"):
        graph.add(fk.Permute, x, given=c)


def test_a_map_at_the_wrong_resolution_names_resize(graph):
    x, c = graph.input("x", (2, 8, 8)), graph.condition("photo", (3, 16, 16))
    message = (
        r"node 'affine_coupling_1' on 'x' \(2, 8, 8\), given 'photo' \(3, 16, 16\): .*"
        r"graph\.features\(fk\.Resize\(\(8, 8\)\), condition\)"
    )
    with refused(message, fk.ShapeError):
        graph.add(fk.AffineCoupling, x, given=c)


def test_a_vector_for_a_map_names_to_map(graph):
    x, c = graph.input("x", (2, 8, 8)), graph.condition("c", (3,))
    with refused(r"given 'c' \(3,\): .*fk\.ToMap\(\(8, 8\)\)", fk.ShapeError):
        graph.add(fk.AffineCoupling, x, given=c)


def test_a_map_for_a_vector_names_to_vector(graph):
    x, c = graph.input("x", (2,)), graph.condition("c", (3, 8, 8))
    with refused(r"fk\.ToVector\(\)", fk.ShapeError):
        graph.add(fk.AffineCoupling, x, given=c)


def test_an_integer_condition_names_one_hot(graph):
    x, c = graph.input("x", (2,)), graph.condition("digit", (), dtype=torch.int64)
    message = (
        r"AffineCoupling cannot take the integer condition 'digit' \(\): .*graph\.features\(fk\.OneHot\(n\), digit\)"
    )
    with refused(r"(fk\.OneHot|integer)"):
        graph.add(fk.AffineCoupling, x, given=c)
    wide = graph.condition("digits", (3,), dtype=torch.int64)
    with refused(message.replace("digit", "digits").replace(r"\(\): ", r"\(3,\): ")):
        graph.add(fk.AffineCoupling, x, given=wide)


def test_a_real_condition_for_a_nested_network_of_labels(graph):
    inner = fk.Graph()
    hot = inner.features(fk.OneHot(3), inner.condition("digit", (), dtype=torch.int64))
    inner.output("z", inner.add(fk.AffineCoupling, inner.input("x", (2,)), given=hot, subnet=MLP))
    x, c = graph.input("x", (2,)), graph.condition("c", ())
    with refused(r"needs a condition of integers \(torch.int64\), 'c' \(\) is not"):
        graph.add(inner, x, given=c)


@pytest.mark.parametrize("dtype", [int, torch.complex64, "int64"])
def test_a_dtype_that_is_none(graph, dtype):
    with refused("condition 'c': dtype must be a torch.dtype of integers or real numbers"):
        graph.condition("c", (), dtype=dtype)


def test_given_that_is_no_wire(graph):
    x = graph.input("x", (4,))
    for given, kind in ((5, "int"), ("c", "str"), ([torch.zeros(2)], "Tensor")):
        with refused(f"node 'affine_coupling_1' given: a wire is needed, got {kind}"):
            graph.add(fk.AffineCoupling, x, given=given)


# ---------------------------------------------------------------------- the inverse must run


def test_conditions_known_too_late_name_both_nodes(graph):
    a, b = graph.add(fk.Split, graph.input("x", (4,)), name="halve")
    c = graph.add(fk.AffineCoupling, a, given=b, subnet=MLP, name="on_a")
    d = graph.add(fk.AffineCoupling, b, given=c, subnet=MLP, name="on_b")  # c is known: fine
    e = graph.add(fk.AffineCoupling, c, given=d, subnet=MLP, name="late")
    graph.output("d", d)
    graph.output("e", e)
    graph.check()  # e is inverted first, by d; then d by c; then c by b
    graph = fk.Graph()
    a, b = graph.input("a", (2,)), graph.input("b", (2,))
    c = graph.add(fk.AffineCoupling, a, given=b, subnet=MLP, name="on_a")
    graph.output("c", c)
    graph.output("d", graph.add(fk.AffineCoupling, b, given=a, subnet=MLP, name="on_b"))
    with refused(
        r"the inverse cannot run: node '(on_b|on_a)' needs its condition '[ab]' \(2,\) before it can be inverted, but the "  # noqa: E501
        r"inverse knows '[ab]' only after it has inverted node '(on_a|on_b)'"
    ):
        fk.Flow(graph)


def test_a_node_conditioned_on_its_own_input(graph):
    x = graph.input("x", (2,))
    graph.output("z", graph.add(fk.AffineCoupling, x, given=x, subnet=MLP, name="self"))
    with refused("node 'self' needs its condition 'x' .* only after it has inverted this very node"):
        fk.Flow(graph)


def test_features_of_a_wire_known_too_late_name_the_net(graph):
    x = graph.input("x", (2,))
    h = graph.features(nn.Linear(2, 3), x, name="net")
    graph.output("z", graph.add(fk.AffineCoupling, x, given=h, subnet=MLP, name="self"))
    with refused(
        r"its condition 'net' \(3,\), computed by the features 'net' from 'x' \(2,\), before it can be inverted"
    ):
        fk.Flow(graph)


# ---------------------------------------------------------------------- shapes and options


def test_a_shape_that_the_class_refuses_names_node_and_wire(graph):
    with refused(r"node 'affine_coupling_1' on 'x' \(1,\): AffineCoupling needs at least two channels", fk.ShapeError):
        graph.add(fk.AffineCoupling, graph.input("x", (1,)))


def test_an_option_outside_its_range_names_the_node(graph):
    with refused(r"node 'c' on 'x' \(2,\): .*clamp must be", fk.ConfigError):
        graph.add(fk.AffineCoupling, graph.input("x", (2,)), clamp="relu", name="c")


def test_an_unknown_option_lists_the_options(graph):
    with refused("node 'permute_1': Permute has no option 'ordr'; its options are 'order' and 'dim'"):
        graph.add(fk.Permute, graph.input("x", (2,)), ordr=(1, 0))


def test_an_option_missing(graph):
    with refused("node 'reshape_1': Reshape needs 'to'"):
        graph.add(fk.Reshape, graph.input("x", (2,)))


def test_too_many_wires(graph):
    a, b = graph.input("a", (6,)), graph.input("b", (3, 2))
    with refused("node 'permute_1': Permute takes one wire, got 2"):
        graph.add(fk.Permute, a, b)
    with refused(r"node 'reshape_1': Reshape takes inputs of shape \(6,\), got 'a' \(6,\) and 'b' \(3, 2\)"):
        graph.add(fk.Reshape, a, b)  # the second wire's shape is no target


def test_too_few_wires(graph):
    with refused("node 'permute_1': at least one wire is needed"):
        graph.add(fk.Permute)
    with refused("Concat needs two or more shapes, got 1"):
        graph.add(fk.Concat, graph.input("x", (2,)))


@pytest.mark.parametrize("shape", [(0,), (-1, 2), (2.5,), "ab", (True,), None])
def test_a_shape_that_is_none(graph, shape):
    with refused("a shape is", fk.ShapeError):
        graph.input("x", shape)


def test_instances_must_fit_and_take_no_options(graph):
    x, c = graph.input("x", (2,)), graph.condition("c", (3,))
    with refused(r"node 'permute_1': this Permute takes inputs of shape \(3,\), got 'x' \(2,\)", fk.ShapeError):
        graph.add(fk.Permute((3,)), x)
    with refused(r"this Permute takes conditions of shape none, got 'c' \(3,\)", fk.ShapeError):
        graph.add(fk.Permute((2,)), x, given=c)
    with refused("an instance of Permute is built already and takes no options, got 'dim'"):
        graph.add(fk.Permute((2,)), x, dim=0)


def test_a_constructor_that_disagrees_with_its_wires(graph):
    class Forgetful(fk.Bijection):
        def __init__(self, shape, given=()):
            super().__init__(shape)  # given is lost

    with refused(r"node 'forgetful_1': Forgetful takes conditions of shape none, got 'c' \(3,\)", fk.ShapeError):
        graph.add(Forgetful, graph.input("x", (2,)), given=graph.condition("c", (3,)))


def test_a_constructor_that_fails_names_the_node(graph):
    class Broken(fk.Bijection):
        def __init__(self, shape):
            raise TypeError("no luck")

    with refused("node 'broken_1': Broken cannot be constructed: no luck"):
        graph.add(Broken, graph.input("x", (2,)))


def test_parts_that_are_no_bijections(graph):
    x = graph.input("x", (2,))
    with refused("node 'linear_1': a Bijection.*got Linear: feed-forward nets are declared by graph.features"):
        graph.add(nn.Linear(2, 2), x)
    with refused("a Bijection, an instance of one or a Graph is needed, got int"):
        graph.add(3, x)
    with refused("features 'int_1': an nn.Module is needed, got int"):
        graph.features(3, x)


# ---------------------------------------------------------------------- names and wires


def test_a_name_taken(graph):
    x = graph.input("x", (2,))
    with refused(r"the name 'x' is taken already, by 'x' \(2,\)"):
        graph.condition("x", (3,))
    y = graph.add(fk.Permute, x, name="swap")
    with refused("the name 'swap' is taken already, by node 'swap'"):
        graph.add(fk.Permute, y, name="swap")
    graph.output("z", y)
    with refused("there is already an output 'z'"):
        graph.output("z", y)


@pytest.mark.parametrize("name", ["a b", "1x", "", "a.b", 3, "x\n"])
def test_a_name_that_is_no_identifier(graph, name):
    with refused("is no name"):
        graph.input(name, (2,))
    with refused("is no name"):
        graph.output(name, graph.input("x", (2,)))


def test_a_wire_of_another_graph(graph):
    other = fk.Graph().input("x", (2,))
    graph.input("w", (2,))
    for call in (
        lambda: graph.add(fk.Permute, other),
        lambda: graph.output("z", other),
        lambda: graph.features(nn.Identity(), other),
        lambda: graph.add(fk.AffineCoupling, graph.wire("w"), given=other),
    ):
        with refused(r"the wire 'x' \(2,\) belongs to another graph"):
            call()


def test_what_is_no_wire(graph):
    graph.input("x", (2,))
    with refused("node 'permute_1': a wire is needed, got str"):
        graph.add(fk.Permute, "x")
    with refused(r"a wire is needed, got tuple \(unpack it with \*\)"):
        graph.add(fk.Concat, (1, 2))
    with refused("the graph has no wire 'y'; it has 'x'"):
        graph.wire("y")


def test_a_refused_declaration_leaves_the_graph_as_it_was(graph):
    x, c = graph.input("x", (2, 8, 8)), graph.condition("c", (3,))
    before = graph.to_dict()
    with refused("ToMap"):
        graph.add(fk.AffineCoupling, x, given=c)
    assert graph.to_dict() == before
    assert not graph.consumers
    x = graph.add(fk.AffineCoupling, x, given=graph.features(fk.ToMap((8, 8)), c))
    assert x.name == "affine_coupling_1"


def test_automatic_names_are_counted_per_class_and_skip_taken_ones(graph):
    x = graph.add(fk.Permute, graph.input("permute_2", (4,)))
    x = graph.add(fk.LULinear, graph.add(fk.Permute, x))
    assert [node.name for node in graph.nodes] == ["permute_1", "permute_3", "lu_linear_1"]


@pytest.mark.parametrize(
    ("name", "snake"),
    [("AffineCoupling", "affine_coupling"), ("MLP", "mlp"), ("HTTPServer2D", "http_server2_d"), ("_Own", "own")],
)
def test_snake_case(name, snake):
    assert snake_case(name) == snake


@pytest.mark.parametrize("name", ["forward", "training", "nodes", "parameters", "_modules", "__class__"])
def test_names_that_a_module_has_are_names_of_nodes_and_inputs(graph, name):
    graph.output(name, graph.add(fk.ActNorm, graph.input("x", (2,)), name=name))
    flow = fk.Flow(graph)
    assert f"network.nodes.{name}.location" in flow.state_dict()
    assert flow.log_prob(torch.zeros(3, 2)).shape == (3,)
    assert isinstance(fk.Flow(graph).network.nodes[name], fk.ActNorm)
