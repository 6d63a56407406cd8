"""Graphs as plain data and back."""

import json

import pytest
import torch
from torch import nn

import flowkit as fk

MLP = fk.MLP(hidden=(6, 5), activation="silu")


def everything():
    inner = fk.Graph()
    p, x = inner.condition("p", (3,)), inner.input("x", (2,))
    inner.output("out", inner.add(fk.AffineCoupling, x, given=p, subnet=MLP))

    graph = fk.Graph()
    digit, photo = graph.condition("digit", (), dtype=torch.int64), graph.condition("photo", (3, 8, 8))
    vector = graph.features(fk.ToVector(), graph.features(fk.Resize((4, 4)), photo))
    hot = graph.features(fk.OneHot(3), digit)
    x = graph.input("x", (6,))
    shared = fk.AffineCoupling((6,), given=((3,), (3,)), subnet=fk.ResidualNet(hidden=5), clamp=None, limit=0.5)
    x = graph.add(shared, x, given=[vector, hot], name="once")
    x = graph.add(shared, x, given=[hot, vector], name="twice")
    x = graph.add(fk.Permute, x, order=(5, 4, 3, 2, 1, 0))
    a, b, c = graph.add(fk.Split, x, sizes=(2, 2, 2))
    a = graph.add(inner, a, given={"p": hot}, name="nested")
    b = graph.add(fk.Inverse(fk.LULinear((2,))), b)
    c = graph.add(fk.AffineCoupling, c, given=a, subnet=MLP)
    for name, wire in (("c", c), ("a", a), ("b", b)):
        graph.output(name, wire)
    return graph


def test_there_and_back_through_json():
    graph = everything()
    written = graph.to_dict()
    again = fk.Graph.from_dict(json.loads(json.dumps(written)))
    assert again.to_dict() == json.loads(json.dumps(written)) or again.to_dict() == written
    assert repr(again) == repr(graph)
    torch.manual_seed(1)
    one = fk.Flow(graph)
    two = fk.Flow(again)
    assert list(one.state_dict()) == list(two.state_dict())
    two.load_state_dict(one.state_dict())
    x = torch.randn(4, 6)
    given = {"digit": torch.tensor([0, 1, 2, 0]), "photo": torch.randn(4, 3, 8, 8)}
    assert torch.equal(one.log_prob(x, given=given), two.log_prob(x, given=given))
    assert two.network.nodes["once"] is two.network.nodes["twice"]


def test_what_it_looks_like():
    graph = fk.Graph()
    label, x = graph.condition("label", (10,)), graph.input("x", (2,))
    part = fk.AffineCoupling((2,), given=(10,), subnet=fk.MLP(hidden=8))
    x = graph.add(part, graph.add(part, x, given=label, name="a"), given=label, name="b")
    graph.output("z", graph.add(fk.Permute, x))
    recipe = {"$": "flowkit.mlp", "kwargs": {"hidden": 8}}
    assert graph.to_dict() == {
        "schema": 1,
        "inputs": {"x": [2]},
        "conditions": {"label": [10]},
        "nodes": [
            {
                "name": "a",
                "part": {"$": "flowkit.affine_coupling", "args": [[2]], "kwargs": {"given": [10], "subnet": recipe}},
                "inputs": ["x"],
                "given": ["label"],
            },
            {"name": "b", "shares": "a", "inputs": ["a"], "given": ["label"]},
            {"name": "permute_1", "op": "flowkit.permute", "inputs": ["b"]},
        ],
        "outputs": {"z": "permute_1"},
    }


def test_positional_order_survives():
    graph = fk.Graph()
    b, a = graph.input("b", (2,)), graph.input("a", (3,))
    q, p = graph.condition("q", (2,)), graph.condition("p", (2,))
    graph.output("w", graph.add(fk.AffineCoupling, b, given=[p, q]))
    graph.output("v", a)
    network = fk.InvertibleNetwork(fk.Graph.from_dict(graph.to_dict()))
    assert (network.input_names, network.condition_names, network.output_names) == (("b", "a"), ("q", "p"), ("w", "v"))


@pytest.mark.parametrize("shapes", [(), (3,), [(3,), (2, 4, 4)], [()], {"a": (3,), "b": ()}])
def test_feature_shapes_come_back_as_declared(shapes):
    graph = fk.Graph()
    graph.features(fk.ToVector(), graph.condition("c", (3, 2, 2)), name="net", shapes=shapes)
    again = fk.Graph.from_dict(graph.to_dict())
    assert [(w.name, w.shape) for w in again.nodes[0].outputs] == [(w.name, w.shape) for w in graph.nodes[0].outputs]
    assert again.nodes[0].keys == graph.nodes[0].keys


def test_what_cannot_be_written_is_kept_as_its_repr_and_refused_when_read():
    graph = fk.Graph()
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), subnet=lambda i, o: nn.Linear(i, o)))
    written = graph.to_dict()
    assert "<lambda>" in written["nodes"][0]["config"]["subnet"]["$repr"]
    with pytest.raises(fk.StorageError, match=r"node 'affine_coupling_1': .*<lambda>.* has no written form"):
        fk.Graph.from_dict(written)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: 5, fk.StorageError, "a graph must be a dictionary, got int"),
        (lambda d: {**d, "schema": 2}, fk.StorageError, "written in schema 2; this version of flowkit reads schema 1"),
        (lambda d: {k: v for k, v in d.items() if k != "inputs"}, fk.StorageError, "'inputs' must be a dict, got None"),
        (lambda d: {**d, "nodes": [3]}, fk.StorageError, "a node must have a name, got 3"),
        (lambda d: {**d, "nodes": [{"name": "a", "inputs": ["x"]}]}, fk.StorageError, "'a': it has none of op, part"),
        (
            lambda d: {**d, "nodes": [{"name": "a", "op": "flowkit.permute", "inputs": ["w"]}]},
            fk.GraphError,
            "no wire 'w'",
        ),
        (
            lambda d: {**d, "nodes": [{"name": "a", "shares": "b", "inputs": ["x"]}]},
            fk.StorageError,
            "shares the part of 'b'",
        ),
        (
            lambda d: {**d, "nodes": [{"name": "a", "op": "flowkit.nope", "inputs": ["x"]}]},
            fk.RegistryError,
            "'flowkit.nope'",
        ),
        (
            lambda d: {**d, "nodes": [{"name": "a", "op": "nope.part", "inputs": ["x"]}]},
            fk.RegistryError,
            "plugin 'nope'",
        ),
        (lambda d: {**d, "nodes": [{"name": "a", "op": "flowkit.mlp", "inputs": ["x"]}]}, fk.GraphError, "a Bijection"),
        (
            lambda d: {**d, "nodes": [{"name": "a", "op": "flowkit.permute", "inputs": 5}]},
            fk.StorageError,
            "node 'a': its inputs must be a list of wires' names, got 5",
        ),
        (
            lambda d: {**d, "nodes": [{"name": "a", "op": "flowkit.permute", "inputs": ["x"], "config": {"dim": 7}}]},
            fk.ConfigError,
            "node 'a' on 'x'",
        ),
        (
            lambda d: {**d, "inputs": {"x": "ab"}},
            fk.StorageError,
            "must have a list of ints for its shape",
        ),
        (
            lambda d: {**d, "conditions": {"c": {"shape": [], "dtype": "Tensor"}}},
            fk.StorageError,
            "'Tensor' is not the name of a dtype",
        ),
        (lambda d: {**d, "outputs": {"z": "w"}}, fk.GraphError, "no wire 'w'"),
    ],
)
def test_damaged_descriptions(change, error, message):
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    with pytest.raises(error, match=message):
        fk.Graph.from_dict(change(graph.to_dict()))
