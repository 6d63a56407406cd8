"""Names for files: who has one, who may take it, plugins by entry point, and broken ones."""

import importlib.metadata
import sys

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit import registry


@pytest.fixture(autouse=True)
def clean():
    fk.registered()  # everything that is installed, before the copies are made
    kept = dict(registry._objects), dict(registry._examples), dict(registry._loaded)
    yield
    for table, before in zip((registry._objects, registry._examples, registry._loaded), kept, strict=True):
        table.clear()
        table.update(before)


def make(module="mine", qualname="Part"):
    class Part(fk.Permute):
        pass

    Part.__module__, Part.__qualname__ = module, qualname
    return Part


def test_a_class_and_its_instances_have_the_name_and_a_subclass_has_not():
    part = fk.register("acme.part")(make())

    class Sub(part):
        pass

    assert registry.name_of(part) == registry.name_of(part((2,))) == "acme.part"
    assert fk.lookup("acme.part") is part
    assert registry.name_of(Sub) is registry.name_of(Sub((2,))) is None
    assert registry.arguments_of(Sub((2,))) is None
    assert registry.arguments_of(part((3,), dim=0)).args == ((3,),)
    assert registry.arguments_of(part((3,), dim=0)).kwargs == {"dim": 0}
    assert fk.register("acme.sub")(Sub) is Sub
    assert registry.arguments_of(Sub((2,), dim=-1)).kwargs == {"dim": -1}
    assert registry.name_of(part) == "acme.part"


def test_the_same_qualified_name_again_replaces_and_another_is_refused():
    first, second = make(), make()
    old = fk.register("acme.part")(first)((2,))
    fk.register("acme.part")(second)
    assert fk.lookup("acme.part") is second
    assert registry.name_of(old) == "acme.part"
    with pytest.raises(
        fk.RegistryError, match=r"the name 'acme.part' is taken by mine.Part, so other.Part cannot have it"
    ):
        fk.register("acme.part")(make("other"))
    assert fk.lookup("acme.part") is second


def test_a_refused_class_is_left_as_it_was():
    fk.register("acme.part")(make())
    other = make("other")
    with pytest.raises(fk.RegistryError):
        fk.register("acme.part")(other)
    assert registry.name_of(other) is None


@pytest.mark.parametrize("name", ["scale", "", ".scale", "acme.", "acme.a b", "1acme.b", "acme..b", "acme.b\n"])
def test_names_that_are_none(name):
    with pytest.raises(fk.RegistryError, match=r"is no name to register: it must be 'prefix.name'"):
        fk.register(name)


@pytest.mark.parametrize("thing", [3, nn.Linear(2, 2), object()])
def test_things_that_cannot_be_registered(thing):
    with pytest.raises(fk.RegistryError, match=r"a class or a function can be registered, got"):
        fk.register("acme.thing")(thing)
    assert "acme.thing" not in registry._objects


def test_functions_have_names_too():
    @fk.register("acme.recipe")
    def recipe(c_in, c_out):
        return nn.Linear(c_in, c_out)

    graph = fk.Graph()
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,)), subnet=recipe))
    written = graph.to_dict()
    assert written["nodes"][0]["config"] == {"subnet": {"$named": "acme.recipe"}}
    assert fk.Graph.from_dict(written).nodes[0].config == {"subnet": recipe}


def test_the_signature_of_a_registered_class_is_its_own():
    import inspect

    assert list(inspect.signature(fk.Permute).parameters) == ["shape", "order", "dim"]
    assert fk.Permute.__init__.__wrapped__


def test_examples():
    fk.register("acme.part", examples=lambda: [fk.Example((3,), dim=0)])(make())
    (example,) = fk.examples_of("acme.part")
    assert repr(example) == "Example((3,), dim=0)"
    assert example.build(fk.Permute).in_shapes == ((3,),)
    fk.register("acme.bare")(make(qualname="Bare"))
    assert fk.examples_of("acme.bare") == []
    assert "acme.part" in fk.registered("acme")
    assert all(name.startswith("acme.") for name in fk.registered("acme"))


def test_every_built_in_class_is_registered_and_found_by_prefix():
    names = fk.registered("flowkit")
    for name in ("affine_coupling", "network", "mlp", "one_hot", "standard_normal", "permute"):
        assert f"flowkit.{name}" in names
    for name, thing in fk.registered("flowkit").items():
        assert registry.name_of(thing) == name


# ---------------------------------------------------------------------- plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    def entry(source, prefix="acme", module="acme_plugin"):
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)
        found = [importlib.metadata.EntryPoint(prefix, module, registry.PLUGIN_GROUP)]

        def entry_points(**wanted):
            return (
                [e for e in found if wanted.get("name", e.name) == e.name]
                if wanted.get("group") == registry.PLUGIN_GROUP
                else []
            )

        monkeypatch.setattr(registry.importlib.metadata, "entry_points", entry_points)

    registry._loaded.pop("acme", None)  # another test may have registered something of that prefix
    yield entry
    sys.modules.pop("acme_plugin", None)


PLUGIN = """
import flowkit as fk

@fk.register("acme.swap")
class Swap(fk.Permute):
    pass
"""


def test_a_plugin_is_loaded_at_the_first_look_up_of_its_prefix(install):
    install(PLUGIN)
    assert "acme_plugin" not in sys.modules
    assert fk.plugins() == {"acme": "acme_plugin"}
    fk.lookup("flowkit.permute")
    assert "acme_plugin" not in sys.modules
    assert fk.lookup("acme.swap").__name__ == "Swap"
    assert "acme_plugin" in sys.modules
    assert registry.plugin_problem("acme") is None
    assert "acme.swap" in fk.registered()
    with pytest.raises(fk.RegistryError, match=r"'acme.nope' is not registered: the plugin 'acme' has no such part"):
        fk.lookup("acme.nope")


def test_a_broken_plugin_warns_once_and_is_named(install):
    install("raise OSError('no libc')")
    with (
        pytest.warns(
            fk.PluginWarning, match=r"the plugin 'acme' \(acme_plugin\) could not be loaded: OSError: no libc"
        ),
        pytest.raises(
            fk.RegistryError,
            match=r"'acme.swap' is not registered: the plugin 'acme' could not be loaded \(OSError: no libc\)",
        ),
    ):
        fk.lookup("acme.swap")
    with pytest.raises(fk.RegistryError):  # and does not warn again: warnings are errors here
        fk.lookup("acme.swap")
    assert registry.plugin_problem("acme") == "OSError: no libc"
    assert "flowkit.permute" in fk.registered()


def test_a_missing_plugin_and_a_missing_part():
    with pytest.raises(
        fk.RegistryError, match=r"'nowhere.part' is not registered: install or import the plugin 'nowhere'"
    ):
        fk.lookup("nowhere.part")
    with pytest.raises(
        fk.RegistryError, match=r"'flowkit.part' is not registered: this version of flowkit has no such part"
    ):
        fk.lookup("flowkit.part")


# ---------------------------------------------------------------------- remembered arguments


def test_arguments_are_remembered_as_they_were():
    sizes = [1, 3]
    part = fk.Split((4,), sizes=sizes)
    sizes[0] = 9
    assert registry.arguments_of(part).kwargs == {"sizes": [1, 3]}
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    network = fk.InvertibleNetwork(graph)
    graph.output("w", graph.input("w", (2,)))
    assert list(registry.arguments_of(network).args[0].outputs) == ["z"]


def test_a_failed_construction_remembers_nothing():
    with pytest.raises(fk.ConfigError):
        fk.Permute((2,), order=(0, 0))
    assert torch.equal(fk.Permute((2,)).order, torch.tensor([1, 0]))


@pytest.mark.parametrize("name", ["flowkit.AffineCoupling", "flowkit.affinecoupling", "flowkit.affine_copling"])
def test_a_name_that_is_nearly_right_is_told_the_right_one(name):
    with pytest.raises(fk.RegistryError, match=r"has no such part; did you mean 'flowkit\.affine_coupling'\?$"):
        fk.lookup(name)


def test_a_name_without_its_prefix_is_told_the_whole_one():
    expected = (
        r"'AffineCoupling' is not registered: .* a name is 'prefix\.name'; did you mean 'flowkit\.affine_coupling'\?$"
    )
    with pytest.raises(fk.RegistryError, match=expected):
        fk.lookup("AffineCoupling")


def test_a_name_that_is_like_no_other_is_told_none():
    with pytest.raises(fk.RegistryError, match=r"has no such part$"):
        fk.lookup("flowkit.zzzzzz")
