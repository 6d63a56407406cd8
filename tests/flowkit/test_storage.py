"""fk.save and fk.load: every registered part to the last bit, in another process; whole or not at all."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import flowkit as fk
from flowkit import registry
from flowkit.bijection import as_tuple

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)


def redrawn(flow):
    torch.manual_seed(7)
    with torch.no_grad():
        for p in flow.parameters():
            if p.is_floating_point():  # some parts keep indices that do not train
                p.normal_(0, 0.3)
    return flow.eval()


def drawn_by(part, batch):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        drawn = part.example_inputs(batch)
    torch.set_default_dtype(default)
    return drawn


def arguments(flow, batch=3):
    """The same numbers in every process."""
    generator = torch.Generator().manual_seed(11)

    def draw(shape):
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(flow.network.reference.dtype)

    x = {name: draw(shape) for name, shape in flow.input_shapes.items()}
    for part in list(flow.network.nodes.children())[:1]:
        if hasattr(part, "example_inputs"):  # whose domain is not all numbers
            x = dict(zip(x, as_tuple(drawn_by(part, batch)), strict=True))
    dtypes = {w.name: w.dtype for w in flow.network.graph.conditions}
    given = {
        name: draw(shape) if dtypes[name] is None else torch.arange(batch) % 3
        for name, shape in flow.condition_shapes.items()
    }
    return x, given


def numbers(flow):
    x, given = arguments(flow)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # some parts draw
        z, log_det = flow(x, given=given)
        back, _ = flow.inverse(z, given=given)
        log_prob = flow.log_prob(x, given=given)
    back = back if isinstance(back, dict) else {"x": back}
    return [z, log_det, log_prob, *back.values()]


def everything():
    """A flow with a nested graph, a nested instance, shared weights, feature nets, labels and a conditional base."""
    inner = fk.Graph()
    p, x = inner.condition("p", (3,)), inner.input("x", (2,))
    h = inner.features(fk.OneHot(3), inner.condition("digit", (), dtype=torch.int64))
    inner.output("out", inner.add(fk.AffineCoupling, inner.add(fk.ActNorm, x), given=[p, h], subnet=MLP))
    graph = fk.Graph()
    photo, digit = graph.condition("photo", (3, 8, 8)), graph.condition("digit", (), dtype=torch.int64)
    vector = graph.features(fk.ToVector(), graph.features(fk.Resize((4, 4)), photo), name="vector")
    shared = fk.AffineCoupling((6,), given=(3,), subnet=fk.ResidualNet(hidden=5, zero_last=False), clamp=None)
    x = graph.add(shared, graph.input("x", (6,)), given=vector, name="once")
    x = graph.add(shared, x, given=vector, name="twice")
    a, b, c = graph.add(fk.Split, x, sizes=(2, 2, 2))
    a = graph.add(inner, a, given=[vector, digit], name="as_class")
    b = graph.add(fk.InvertibleNetwork(inner), b, given={"digit": digit, "p": vector}, name="as_instance")
    c = graph.add(fk.AffineCoupling, c, given=a, subnet=MLP)
    for name, wire in (("c", c), ("a", a), ("b", b)):
        graph.output(name, wire)
    return fk.Flow(graph, base=fk.DiagonalNormal, base_given="vector")


def every_part():
    """A flow for each example of each registered bijection, recipe, adaptor and base of flowkit."""
    flows = {"everything": everything()}
    for name, cls in fk.registered("flowkit").items():
        if isinstance(cls, type) and issubclass(cls, fk.Bijection):
            for i, example in enumerate(fk.examples_of(name)):
                flows[f"{name}-{i}"] = fk.Flow(example.build(cls))
    for i, recipe in enumerate(
        (MLP, fk.ConvNet(hidden=3, kernel=(1, 3), zero_last=False), fk.ResidualNet(hidden=4, kernel=3))
    ):
        shape, given = ((4,), (3,)) if i == 0 else ((4, 2, 2), (3, 2, 2))
        graph = fk.Graph()
        x, c = graph.input("x", shape), graph.condition("c", given)
        graph.output("z", graph.add(fk.AffineCoupling, x, given=c, subnet=recipe, two_sided=True))
        flows[f"recipe-{i}"] = fk.Flow(graph, base=fk.DiagonalNormal)
    graph = fk.Graph()
    x, c = graph.input("x", (2, 4, 4)), graph.condition("c", (3,))
    graph.output("z", graph.add(fk.AffineCoupling, x, given=graph.features(fk.ToMap((4, 4)), c)))
    flows["to_map"] = fk.Flow(graph)
    return {name: redrawn(flow) for name, flow in flows.items()}


OTHER_PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import pathlib, json, flowkit as fk
from test_storage import everything, numbers
keep = [object() for _ in range(100003)]  # another history of allocations
names = list(everything().state_dict())
torch.set_default_dtype(torch.float32)
state = torch.get_rng_state()
out = {}
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.safetensors")):
    flow = fk.load(path)
    assert not any(m.training for m in flow.modules())
    out[path.stem] = numbers(flow)
assert torch.equal(state, torch.get_rng_state()), "loading drew random numbers"
assert torch.get_default_dtype() == torch.float32
torch.save({"numbers": out, "names": names}, sys.argv[3])
"""


def test_every_part_is_the_same_to_the_last_bit_in_another_process(tmp_path):
    flows = every_part()
    for name, flow in flows.items():
        fk.save(flow, tmp_path / f"{name}.safetensors")
    single = copy.deepcopy(flows["everything"]).float()
    flows["single"] = single
    fk.save(single, tmp_path / "single.safetensors")
    environment = {**os.environ, "PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        OTHER_PROCESS,
        str(Path(__file__).parent),
        str(tmp_path),
        str(tmp_path / "out.pt"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt")
    assert out["names"] == list(flows["everything"].state_dict())
    assert set(out["numbers"]) == set(flows)
    differ = [
        name
        for name, flow in flows.items()
        for ours, theirs in zip(numbers(flow), out["numbers"][name], strict=True)
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs)
    ]
    assert sorted(set(differ)) == []


@pytest.fixture
def flow():
    return redrawn(everything())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


def test_shared_weights_are_stored_once_and_stay_shared(flow, path):
    fk.save(flow, path)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert names == {n for n, _ in flow.named_parameters()} | {
        n for n in flow.state_dict() if n.endswith("initialized")
    }
    assert any(n.startswith("network.nodes.once.") for n in names)
    assert not any(n.startswith("network.nodes.twice.") for n in names)
    loaded = fk.load(path)
    assert loaded.network.nodes["once"] is loaded.network.nodes["twice"]
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in flow.named_parameters()]


def test_a_loaded_flow_is_written_as_the_same_file_and_can_be_trained(flow, path):
    fk.save(flow, path)
    before = path.read_bytes()
    loaded = fk.load(path)
    fk.save(loaded, path)
    assert path.read_bytes() == before
    assert repr(loaded) == repr(flow)
    x, given = arguments(loaded)
    loaded.train().log_prob(x, given=given).sum().backward()
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert path.read_bytes() == before  # the weights are no view of the file


def test_the_dtype_is_that_of_the_file_whatever_the_default(flow, path):
    fk.save(flow, path)
    torch.set_default_dtype(torch.float32)
    loaded = fk.load(path)
    assert torch.get_default_dtype() == torch.float32
    assert loaded.network.reference.dtype == torch.float64
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert all(torch.equal(a, b) for a, b in zip(numbers(loaded), numbers(flow), strict=True))


def test_loading_gives_eval_mode_on_a_device(flow, path):
    fk.save(flow.train(), path)
    assert flow.training
    loaded = fk.load(path, device="meta")
    assert not loaded.training
    assert {t.device.type for t in (*loaded.parameters(), *loaded.buffers())} == {"meta"}


# ---------------------------------------------------------------------- atomic


def test_a_failure_while_writing_leaves_the_old_file(flow, path, monkeypatch):
    fk.save(flow, path)
    before = path.read_bytes()
    real = Path.write_bytes

    def full(self, content):
        real(self, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(fk.StorageError, match=r"flow.safetensors' cannot be written: No space left on device"):
        fk.save(flow, path)

    def interrupted(self, content):
        real(self, content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fk.save(flow, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_where_nothing_can_be_written(flow, tmp_path):
    with pytest.raises(fk.StorageError, match=r"cannot be written: No such file or directory"):
        fk.save(flow, tmp_path / "nowhere" / "flow.safetensors")
    with pytest.raises(fk.StorageError, match=r"cannot be written: Is a directory"):
        fk.save(flow, tmp_path)
    with pytest.raises(fk.StorageError, match=r"a Flow can be saved, got Permute"):
        fk.save(fk.Permute((2,)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_files_are_readable_by_others_as_the_umask_says(flow, path):
    before = os.umask(0o022)
    try:
        fk.save(flow, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


# ---------------------------------------------------------------------- files that are none


def rewrite(path, change=None, weights=None):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["flowkit"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    header = change(header) if change else header
    save_file(
        weights(tensors) if weights else tensors,
        path,
        {"flowkit": header if isinstance(header, str) else json.dumps(header)},
    )


def without(tensors):
    tensors.pop("network.nodes.once.subnets.0.first.bias")
    return tensors


def misshaped(tensors):
    tensors["network.nodes.once.subnets.0.first.bias"] = torch.zeros(99)
    return tensors


@pytest.mark.parametrize(
    ("change", "weights", "error", "message"),
    [
        (
            None,
            without,
            fk.StorageError,
            r"weights do not fit its graph, '.*first.bias' is missing \(1 missing, 0 surplus\)",
        ),
        (
            None,
            lambda t: {**t, "more": torch.zeros(1)},
            fk.StorageError,
            r"'more' belongs to no part \(0 missing, 1 surplus\)",
        ),
        (None, misshaped, fk.StorageError, r"first.bias' must be of shape \(5,\), got \(99,\)"),
        (
            lambda h: {**h, "schema": 2, "flowkit": "9.9"},
            None,
            fk.StorageError,
            "by flowkit 9.9 in schema 2; .*update flowkit",
        ),
        (lambda h: {**h, "schema": "1"}, None, fk.StorageError, "its description has no schema"),
        (lambda h: "[]", None, fk.StorageError, "its description has no schema"),
        (lambda h: "{", None, fk.StorageError, "its description is no JSON"),
        (lambda h: {**h, "dtype": "int64"}, None, fk.StorageError, "its dtype is 'int64'"),
        (lambda h: {**h, "dtype": "nope"}, None, fk.StorageError, "its dtype is 'nope'"),
        (
            lambda h: {**h, "graph": None},
            None,
            fk.StorageError,
            "cannot be read: a graph must be a dictionary, got NoneType",
        ),
        (
            lambda h: {**h, "base": {"$": "flowkit.standard_normal", "args": [7]}},
            None,
            fk.StorageError,
            "base StandardNormal has 7",
        ),
        (
            lambda h: {**h, "base": {"$": "flowkit.standard_normal", "args": ["a", "b"]}},
            None,
            fk.StorageError,
            "cannot be read",
        ),
        (lambda h: {**h, "base_given": 5}, None, fk.StorageError, "cannot be read"),
        (lambda h: {**h, "base_given": ["nope"]}, None, fk.StorageError, "no wire 'nope'"),
        (
            lambda h: {**h, "base": {"$": "nowhere.base"}},
            None,
            fk.RegistryError,
            "install or import the plugin 'nowhere'",
        ),
    ],
)
def test_damaged_files(flow, path, change, weights, error, message):
    fk.save(flow, path)
    rewrite(path, change, weights)
    with pytest.raises(error, match=message) as raised:
        fk.load(path)
    assert error is fk.RegistryError or "flow.safetensors" in str(raised.value)
    assert torch.get_default_dtype() == torch.float64


def test_foreign_truncated_corrupt_and_missing_files(flow, path, tmp_path):
    def refused(message):
        return pytest.raises(fk.StorageError, match=message)

    with refused("the file '.*flow.safetensors' does not exist"):
        fk.load(path)
    with refused("is a folder, not a flow's file"):
        fk.load(tmp_path)
    save_file({"w": torch.zeros(1)}, path)
    with refused("is a safetensors file, but not one that flowkit wrote"):
        fk.load(path)
    fk.save(flow, path)
    whole = path.read_bytes()
    for content in (
        b"",
        b"\x00" * 200,
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:50],
        b"not a file at all",
        whole[8:],
    ):
        path.write_bytes(content)
        with refused("is not a safetensors file, or is damaged"):
            fk.load(path)


class OneNumber(fk.Bijection):
    """A shift by a buffer whose single number has strides of 0, as `expand(...).clone()` leaves them."""

    constant_log_det = volume_preserving = True

    def __init__(self, shape):
        super().__init__(shape)
        self.register_buffer("shift", torch.tensor(2.0).expand(1, 1).clone())

    def forward(self, x):
        return x + self.shift, x.new_zeros(len(x))

    def inverse(self, y):
        return y - self.shift, y.new_zeros(len(y))


def test_a_buffer_of_one_number_with_odd_strides_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_objects", dict(registry._objects))
    fk.register("flowkit_tests.one_number")(OneNumber)
    assert OneNumber((3,)).shift.stride() == (0, 0)
    fk.save(fk.Flow(OneNumber((3,))), tmp_path / "flow.safetensors")
    assert fk.load(tmp_path / "flow.safetensors").network(torch.zeros(1, 3))[0].tolist() == [[2.0, 2.0, 2.0]]
