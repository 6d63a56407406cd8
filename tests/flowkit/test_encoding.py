"""Values as JSON and back; modules met twice are the same one again."""

import json

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.encoding import Decoder, Encoder
from flowkit.registry import Unwritable, name_of


def there_and_back(value):
    encoder = Encoder()
    text = json.dumps(encoder.encode(value, "here"), allow_nan=False)
    assert encoder.unwritable == {}
    return Decoder().decode(json.loads(text))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -2.5,
        "text",
        (),
        (1, (2, "a")),
        {},
        {"a": 1, "b": (1, 2)},
        {"$": 1},
        {"$repr": (1,), "more": {"$float": 2}},
        float("inf"),
        float("-inf"),
        torch.float64,
        torch.bool,
        fk.Permute,
        fk.MLP,
        fk.MLP(hidden=(3, 4)),
        fk.ConvNet(8, kernel=(1, 3)),
    ],
)
def test_there_and_back(value):
    again = there_and_back(value)
    assert again == value
    assert type(again) is type(value)


def test_nan_and_lists():
    assert there_and_back(float("nan")) != there_and_back(float("nan"))
    assert there_and_back([1, [2]]) == (1, (2,))


def test_modules_are_the_same_again_inner_ones_too():
    inner = fk.LULinear((2,))
    one, other = fk.Inverse(inner), fk.Inverse(inner)
    a, b, c, d = there_and_back([one, other, one, inner])
    assert a is c
    assert a is not b
    assert a.bijection is b.bijection is d


def test_graphs_in_values():
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    assert there_and_back({"graph": graph})["graph"].to_dict() == graph.to_dict()
    network = there_and_back(fk.InvertibleNetwork(graph))
    assert network.input_names == ("x",)


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, nn.Linear(2, 2), nn.ReLU, torch.zeros(2), {3: 4}, Unwritable("gone"), {1, 2}, 1j, torch.relu],
)
def test_what_has_no_written_form_is_its_repr_and_where(value):
    encoder = Encoder()
    written = encoder.encode([value], "option 'o'")
    assert written == [{"$repr": repr(value)}]
    assert encoder.unwritable == {"option 'o'[0]": repr(value)}
    with pytest.raises(fk.StorageError, match=r"has no written form: register"):
        Decoder().decode(written)


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ({"$dtype": "Tensor"}, fk.StorageError),
        ({"$dtype": "nope"}, fk.StorageError),
        ({"$dtype": 3}, fk.StorageError),
        ({"$float": "abc"}, fk.StorageError),
        ({"$same": 7}, fk.StorageError),
        ({"$named": 3}, fk.StorageError),
        ({"$named": "flowkit.nope"}, fk.RegistryError),
        ({"$": "flowkit.nope"}, fk.RegistryError),
        ({"$": ["flowkit.mlp"]}, fk.StorageError),
        ({"$": "flowkit.mlp", "kwargs": {"nope": 1}}, fk.StorageError),
        ({"$": "flowkit.mlp", "kwargs": {"hidden": 0}}, fk.ConfigError),
        ({"$": "flowkit.mlp", "args": 5}, fk.StorageError),
        ({"$": "flowkit.one_hot", "args": [10**15]}, fk.StorageError),
        ({"$graph": 5}, fk.StorageError),
        ({"$dict": 5}, fk.StorageError),
    ],
)
def test_damaged_values(written, error):
    with pytest.raises(error):
        Decoder().decode(written)


@pytest.mark.parametrize("kind", [fk.Sigmoidal, fk.LogisticMixture])
def test_files_of_before_a_setting_mean_what_they_did(kind):
    """The identity's part came later: a file that lacks it has the density it was trained to, the papers' formula."""
    name = {"$named": name_of(kind)}
    old = {"$": "flowkit.univariate_recipe", "args": [name], "kwargs": {"components": 4}}
    assert Decoder().decode(name) == kind.recipe(min_derivative=0.0)
    assert Decoder().decode(old) == kind.recipe(min_derivative=0.0, components=4)
    assert Decoder().decode({**old, "kwargs": {"min_derivative": 0.1}}) == kind.recipe(min_derivative=0.1)


@pytest.mark.parametrize("kind", [fk.Sigmoidal, fk.LogisticMixture])
def test_files_of_now_hold_a_later_setting_where_it_was_left_out(kind):
    for written in (kind, kind.recipe()):
        assert there_and_back(written) == kind.recipe(min_derivative=1e-3)
    assert there_and_back(kind.recipe(min_derivative=0.0, components=3)) == kind.recipe(
        min_derivative=0.0, components=3
    )


def test_a_saved_flow_of_before_keeps_its_density(tmp_path):
    torch.manual_seed(0)
    old = fk.Flow(fk.Coupling((4,), univariate=fk.Sigmoidal.recipe(components=3, min_derivative=0.0)))
    new = fk.Flow(fk.Coupling((4,), univariate=fk.Sigmoidal.recipe(components=3)))
    for flow in (old, new):
        for parameter in flow.parameters():
            torch.nn.init.normal_(parameter)
    x = torch.randn(5, 4)
    written = old.network.graph.to_dict()
    del written["nodes"][0]["part"]["kwargs"]["univariate"]["kwargs"]["min_derivative"]
    again = fk.Flow(fk.Graph.from_dict(written))
    again.load_state_dict(old.state_dict())
    torch.testing.assert_close(again.log_prob(x), old.log_prob(x), rtol=0, atol=0)
    fk.save(new, tmp_path / "new.safetensors")
    torch.testing.assert_close(fk.load(tmp_path / "new.safetensors").log_prob(x), new.log_prob(x), rtol=0, atol=0)
