"""Parts of one's own in a file: written when they are registered, refused by name when they are not."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import flowkit as fk
from flowkit import registry

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


class Own(fk.Permute):
    pass


def own_flows():
    graph = fk.Graph()
    graph.output("z", graph.add(Own, graph.input("x", (4,)), name="part"))
    yield fk.Flow(graph), "node 'part': <class '.*Own'> has no written form: register"
    yield fk.Flow(Own((4,))), r"node 'own_1': Own\(\(4,\)\) has no written form"
    graph = fk.Graph()
    x = graph.add(fk.AffineCoupling, graph.input("x", (4,)), subnet=lambda i, o: nn.Linear(i, o))
    graph.output("z", x)
    yield fk.Flow(graph), "node 'affine_coupling_1', option 'subnet': <function .*lambda"
    outer = fk.Graph()
    outer.output("z", outer.add(graph, outer.input("x", (4,)), name="inner"))
    yield fk.Flow(outer), "node 'inner', option 'graph': node 'affine_coupling_1', option 'subnet'"
    yield fk.Flow(fk.AffineCoupling((4,), subnet=lambda i, o: nn.Linear(i, o))), r"node 'affine_coupling_1'\['subnet'\]"
    graph = fk.Graph()
    h = graph.features(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), graph.condition("c", (3,)), name="net")
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=h))
    yield fk.Flow(graph), r"node 'net': Sequential\( \(0\): Linear"
    yield fk.Flow(fk.Permute((4,)), base=OwnBase()), r"the base: OwnBase\(\) has no written form"


class OwnBase(nn.Module):
    def log_prob(self, z):
        return z.sum(-1)

    def sample(self, shape, temperature=1.0):
        return torch.zeros(*shape, 4)


def test_unregistered_parts_are_refused_by_name_in_one_line_and_nothing_is_written(path):
    for flow, message in own_flows():
        with pytest.raises(fk.StorageError, match=message) as raised:
            fk.save(flow, path)
        assert "\n" not in str(raised.value)
        assert not path.exists()


def test_registered_parts_of_one_s_own_are_written(path):
    fk.registered()
    kept = dict(registry._objects)
    try:

        @fk.register("acme_storage.net")
        class Net(nn.Module):
            def __init__(self, width, activation=torch.float64):
                super().__init__()
                self.net = nn.Linear(3, width)
                self.activation = activation

            def forward(self, c):
                return {"h": self.net(c)}

        @fk.register("acme_storage.base")
        class Base(fk.Base):
            def __init__(self, dim, scale=1.0):
                super().__init__(dim)
                self.scale = scale

            def log_prob(self, z):
                return self.scale * z.sum(-1)

        graph = fk.Graph()
        h = graph.features(Net(5), graph.condition("c", (3,)))["h"]
        graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=h, subnet=MLP))
        flow = fk.Flow(graph, base=Base(4, scale=float("inf")))
        fk.save(flow, path)
        loaded = fk.load(path)
        assert loaded.base.scale == float("inf")
        assert torch.equal(
            loaded(torch.ones(2, 4), given=torch.ones(2, 3))[0], flow(torch.ones(2, 4), given=torch.ones(2, 3))[0]
        )
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["flowkit"])["plugins"] == ["acme_storage", "flowkit"]
    finally:
        registry._objects.clear()
        registry._objects.update(kept)
    with pytest.raises(fk.RegistryError, match=r"'acme_storage.net' is not registered: install or import the plugin"):
        fk.load(path)
