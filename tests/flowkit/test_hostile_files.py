"""Files that somebody broke on purpose: the sentence of each refusal, and that nothing absurd is allocated or run."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

import flowkit as fk
from flowkit import registry
from flowkit.allocation import AllocationLimit
from flowkit.container import checksum
from flowkit.storage import named_state


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


def chain(**config):
    graph = fk.Graph()
    label, x = graph.condition("label", (3,)), graph.input("x", (4,))
    x = graph.add(fk.AffineCoupling, x, given=label, **{"subnet": fk.MLP(hidden=5), **config})
    x = graph.add(fk.LULinear, graph.add(fk.FixedRotation, graph.add(fk.Permute, x)))
    graph.output("z", x)
    return fk.Flow(graph)


def change(path, description=None, tensors=None, text=None):
    """Rewrite a saved file, its checksum right again."""
    with safe_open(path, "pt") as file:
        held = json.loads(file.metadata()["flowkit"])
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if description is not None:
        description(held)
    if tensors is not None:
        tensors(weights)
    held["sha256"] = checksum(held, weights)
    path.write_bytes(save(weights, {"flowkit": text(json.dumps(held)) if text else json.dumps(held)}))


def refused(path, match, error=fk.StorageError):
    with pytest.raises(error, match=match) as raised:
        fk.load(path)
    assert str(raised.value).isprintable()
    return str(raised.value)


def node(description, index=0):
    return description["graph"]["nodes"][index]


def test_a_flipped_bit_of_a_weight_is_found_by_the_checksum(path):
    fk.save(chain(), path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    refused(path, "is damaged: its contents do not have the checksum they were saved with")


def test_a_file_from_before_the_checksum_is_loaded(path):
    flow = chain()
    fk.save(flow, path)
    with safe_open(path, "pt") as file:
        held = json.loads(file.metadata()["flowkit"])
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    del held["sha256"]
    path.write_bytes(save(weights, {"flowkit": json.dumps(held)}))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named_state(flow), named_state(fk.load(path)), strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda t: t.replace('"schema": 1', '"schema": 1, "schema": 1', 1), "has the key 'schema' twice"),
        (lambda t: t.replace('"hidden": 5', '"hidden": NaN'), "holds NaN, which is no JSON"),
        (lambda t: t.replace('"hidden": 5', '"hidden": -Infinity'), "holds -Infinity, which is no JSON"),
        (lambda t: t.replace('"hidden": 5', '"hidden": 1e999'), "holds the number 1e999"),
        (lambda t: t.replace('"hidden": 5', f'"hidden": {10**40}'), "an integer beyond .* one of 133 bits"),
        (lambda t: t.replace('"hidden": 5', f'"hidden": {"9" * 5000}'), "is no JSON"),
        (lambda t: t.replace('"hidden": 5', f'"hidden": {"[" * 300}{"]" * 300}'), "nested more than 200 deep"),
        (lambda t: t.replace('"hidden": 5', f'"hidden": {"[" * 10**5}{"]" * 10**5}'), "nested more than 200 deep"),
        (lambda t: t.replace('"plugins"', '"more": 1, "plugins"'), "its description has the unknown key 'more'"),
        (lambda t: t.replace('"schema": 1', '"schema": true', 1), "its description has no schema"),
        (lambda t: t.replace('"schema": 1', '"schema": 0', 1), "its description has no schema"),
        (lambda t: t.replace('"schema": 1', '"schema": 99', 1), "in schema 99; .* reads schema 1: update flowkit"),
        (lambda t: "[1]", "its description has no schema"),
        (lambda t: "\x00", "its description is no JSON"),
    ],
)
def test_json_that_is_not_plain(path, text, message):
    fk.save(chain(), path)
    change(path, text=text)
    refused(path, message)


def set_op(name):
    return lambda d: node(d).update(op=name)


@pytest.mark.parametrize(
    ("description", "error", "message"),
    [
        (set_op("acme.scale"), fk.RegistryError, "install or import the plugin 'acme' that registers it"),
        (set_op("flowkit.scale"), fk.RegistryError, "this version of flowkit has no such part"),
        (set_op("cinn.scale"), fk.RegistryError, "the plugin 'cinn' has no such part"),
        (set_op("__import__('os').system"), fk.RegistryError, "is not registered: no name is like this"),
        (set_op("../../flow"), fk.RegistryError, "is not registered"),
        (set_op("x" * 9999), fk.RegistryError, "is not registered"),
        (set_op("flowkit.mlp"), fk.StorageError, "a Bijection, an instance of one or a Graph is needed"),
        (set_op({"$named": ["flowkit.mlp"]}), fk.StorageError, "must be a registered name, got "),
        (lambda d: node(d).update(name="../up"), fk.StorageError, "'../up' is no name: letters, digits"),
        (lambda d: node(d).update(name="a.b"), fk.StorageError, "'a.b' is no name: letters, digits"),
        (lambda d: node(d).update(name="\x1b[2J"), fk.StorageError, r"'\\x1b\[2J' is no name"),
        (lambda d: node(d).update(inputs=["y"]), fk.StorageError, "the graph has no wire 'y'"),
        (lambda d: node(d).update(part={"$": "flowkit.permute"}), fk.StorageError, "it has op and part, of which one"),
        (lambda d: node(d).update(code="x"), fk.StorageError, "it has the unknown key 'code'"),
        (lambda d: d["graph"].update(code="x"), fk.StorageError, "the graph has the unknown key 'code'"),
        (lambda d: node(d)["config"].update(__class__=1), fk.StorageError, "has no option '__class__'"),
        (lambda d: node(d)["config"].update(self=1), fk.StorageError, "cannot be declared: .*'self'"),
        (lambda d: node(d)["config"].update(subnet={"$": "flowkit.mlp", "x": 1}), fk.StorageError, "must stand alone"),
        (lambda d: node(d)["config"].update(subnet={"$dtype": "save"}), fk.StorageError, "is not the name of a dtype"),
        (lambda d: node(d)["config"].update(subnet={"$same": -1}), fk.StorageError, "the number of a part before it"),
        (lambda d: node(d)["config"].update(subnet={"$same": True}), fk.StorageError, "the number of a part before it"),
        (lambda d: node(d)["config"].update(limit={"$float": "1"}), fk.StorageError, "must be one of nan, inf, -inf"),
        (lambda d: d["graph"]["outputs"].clear(), fk.StorageError, "output"),
        (lambda d: d["graph"]["nodes"].pop(), fk.StorageError, "no wire 'lu_linear_1'"),
        (lambda d: d["graph"]["inputs"].update(x=[-1]), fk.StorageError, "a shape is made of positive ints"),
        (lambda d: d.update(base=None), fk.StorageError, None),
        (lambda d: d.update(base={"$graph": d["graph"]}), fk.StorageError, "its base is a graph"),
        (lambda d: d.update(base={"$": "flowkit.permute", "args": [[4]]}), fk.StorageError, "base must have log_prob"),
        (lambda d: d.update(base={"$named": "flowkit.standard_normal"}), fk.StorageError, None),
    ],
)
def test_descriptions_of_no_flow(path, description, error, message):
    fk.save(chain(), path)
    change(path, description)
    if message is None:  # the standard normal base by another spelling
        assert fk.load(path).dim == 4
    else:
        refused(path, message, error)


def weight(name, value):
    return lambda tensors: tensors.update({f"network.nodes.{name}": value})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (weight("permute_1.order", torch.tensor([0, 0, 1, 2])), "Permute: order must hold each of 0 to 3 once"),
        (weight("permute_1.order", torch.tensor([9, 0, 1, 2])), "Permute: order must hold each of 0 to 3 once"),
        (weight("permute_1.inverse_order", torch.tensor([0, 1, 3, 2])), "must be the inverse of order"),
        (weight("lu_linear_1.order", torch.tensor([0, 1, 2, 7])), "LULinear: order must hold each of 0 to 3 once"),
        (weight("lu_linear_1.sign", torch.zeros(4)), "sign must hold 1 and -1 alone"),
        (weight("fixed_rotation_1.rotation", torch.eye(4) * 2), "rotation must be an orthogonal matrix"),
        (weight("fixed_rotation_1.rotation", torch.full((4, 4), float("nan"))), "must be an orthogonal matrix"),
        (
            weight("permute_1.order", torch.zeros(4)),
            "permute_1.order' must be of torch.int64, got torch",
        ),
        (
            weight("lu_linear_1.packed", torch.zeros(4, 4, dtype=torch.int64)),
            "must be of torch.float64, got torch.int64",
        ),
        (weight("lu_linear_1.packed", torch.zeros(16)), r"must be of shape \(4, 4\), got \(16,\)"),
        (lambda t: t.pop("network.nodes.lu_linear_1.packed"), r"packed' is missing \(1 missing, 0 surplus\)"),
        (weight("\x1b[2J", torch.zeros(1)), r"x1b\[2J' belongs to no part"),
    ],
)
def test_weights_that_do_not_fit(path, tensors, message):
    torch.manual_seed(1)
    fk.save(chain(), path)
    change(path, tensors=tensors)
    refused(path, message)


def test_headers_that_claim_terabytes(path):
    fk.save(chain(), path)
    content = path.read_bytes()
    for claim in (2**40, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", claim) + content[8:])
        refused(path, f"its header would have {claim:,} bytes, the file has")
    header = {"huge": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}
    text = json.dumps({"__metadata__": {"flowkit": "{}"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path, "is not a safetensors file, or is damaged")


ABSURD = [
    lambda d: node(d)["config"]["subnet"]["kwargs"].update(hidden=10**12),
    lambda d: node(d)["config"]["subnet"]["kwargs"].update(hidden=[10**6, 10**6, 10**6]),
    lambda d: d["graph"]["inputs"].update(x=[10**12]),
    lambda d: d["graph"]["inputs"].update(x=[2**62, 2**62]),
    lambda d: d["graph"]["conditions"].update(label=[10**15]),
]


@pytest.mark.parametrize("description", ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_allocated(path, description):
    fk.save(chain(), path)
    change(path, description)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "must be of shape|cannot be read|is missing|belongs to no part")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_constants_out_of_proportion_are_refused(path):
    """They are in no file, so no weight tells that they are absurd."""
    graph = fk.Graph()
    hot = graph.features(fk.OneHot(3), graph.condition("digit", (), dtype=torch.int64))
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    x = graph.outputs.pop("z")
    graph.consumers.pop(x.index)
    graph.output("z", graph.add(fk.Coupling, x, given=hot))
    fk.save(fk.Flow(graph), path)
    change(path, lambda d: node(d)["features"].update(args=[10**10]))
    refused(path, "cannot be read|must be of shape")
    with pytest.raises(fk.StorageError, match="would allocate 80,000,000,000 bytes"), AllocationLimit(1000, 1):
        fk.OneHot(10**10)
    with pytest.raises(fk.StorageError, match="would make more than"), AllocationLimit(1000, 1), torch.device("meta"):
        nn.Sequential(*[nn.Linear(1, 1) for _ in range(10**5)])


EVERY_SIZE = """
import copy, json, resource, sys, warnings
import torch, flowkit as fk
from flowkit import storage
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

def integers(value, path=()):
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from integers(value[key], (*path, key))
    elif isinstance(value, int) and not isinstance(value, bool) and path != ("schema",):
        yield path

tried, seen = 0, set()
for name, cls in fk.registered().items():
    if not (isinstance(cls, type) and issubclass(cls, fk.Bijection)):
        continue
    for example in fk.examples_of(name):
        flow = fk.Flow(example.build(cls))
        fk.save(flow, sys.argv[1])
        file = storage.open_file(sys.argv[1])
        for path in integers(file.description["graph"]):
            kind = (name, *[key for key in path if isinstance(key, str)])
            if kind in seen:
                continue
            seen.add(kind)
            changed = copy.deepcopy(file)
            inside = changed.description["graph"]
            if path[0] == "inputs":  # the instance's own shape, too
                arguments = inside["nodes"][0].get("part", {}).get("args", [])
                for shape in arguments:
                    if isinstance(shape, list) and len(shape) > path[-1]:
                        shape[path[-1]] = 10**12
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = 10**12
            print(name, path, file=sys.stderr, flush=True)
            try:
                storage._sketch(changed, (2000, 10))
            except (fk.StorageError, fk.RegistryError) as error:
                assert "MemoryError" not in str(error), (name, path)
            tried += 1
print(tried)
"""


def test_no_size_of_any_registered_bijection_takes_time_or_memory_before_it_is_refused(tmp_path):
    command = [sys.executable, "-c", EVERY_SIZE, str(tmp_path / "flow.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


def test_shared_tensors_stay_shared(path):
    fk.registered()
    kept = dict(registry._objects)
    try:

        @fk.register("acme_tied.net")
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
                self.two.weight = self.one.weight

            def forward(self, c):
                return self.two(self.one(c))

        graph = fk.Graph()
        h = graph.features(Tied(), graph.condition("c", (3,)), name="tied")
        x = graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=h, subnet=fk.MLP(hidden=4, zero_last=False))
        graph.output("z", x)
        flow = fk.Flow(graph).eval()
        fk.save(flow, path)
        loaded = fk.load(path)
        net = loaded.network.nodes["tied"]
        assert net.two.weight is net.one.weight
        x, c = torch.randn(3, 4), torch.randn(3, 3)
        assert torch.equal(loaded.log_prob(x, given=c), flow.log_prob(x, given=c))
    finally:
        registry._objects.clear()
        registry._objects.update(kept)


def test_a_plugin_whose_constructor_needs_real_tensors_is_loaded(path):
    fk.registered()
    kept = dict(registry._objects)
    try:

        @fk.register("acme_real.shift")
        class Shift(fk.Bijection):
            constant_log_det = True

            def __init__(self, shape):
                super().__init__(shape)
                self.w = nn.Parameter(torch.tensor(torch.arange(shape[0]).tolist(), dtype=torch.get_default_dtype()))

            def forward(self, x):
                return x + self.w, x.new_zeros(len(x))

            def inverse(self, y):
                return y - self.w, y.new_zeros(len(y))

        flow = fk.Flow(Shift((3,)))
        with torch.no_grad():
            flow.network.nodes["shift_1"].w.mul_(2)
        fk.save(flow, path)
        assert fk.load(path)(torch.zeros(1, 3))[0].tolist() == [[0.0, 2.0, 4.0]]
    finally:
        registry._objects.clear()
        registry._objects.update(kept)


def test_a_description_that_could_not_be_read_again_is_not_written(path):
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    for _ in range(40):
        outer = fk.Graph()
        outer.output("z", outer.add(graph, outer.input("x", (2,))))
        graph = outer
    with pytest.raises(fk.StorageError, match="the flow's description is nested more than 200 deep"):
        fk.save(fk.Flow(graph), path)
    assert not path.exists()
    with pytest.raises(fk.StorageError, match="the graph is nested more than 200 deep"):
        fk.Graph.from_dict(graph.to_dict())


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no regular file")
    refused("/dev/zero", "is no regular file")


# ---------------------------------------------------------------------- killed while saving

SAVING = """
import sys, torch, flowkit as fk
flow = fk.Flow(fk.AffineCoupling((400,), subnet=fk.MLP(hidden=(400, 400))))
print("ready", flush=True)
while True:
    fk.save(flow, sys.argv[1])
"""


def test_killed_while_saving_leaves_the_old_file_whole(path):
    flow = chain()
    fk.save(flow, path)
    before = path.read_bytes()
    child = subprocess.Popen([sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        for _ in range(10**5):  # until a save is under way: its temporary file is there
            if len(list(path.parent.iterdir())) > 1:
                break
            time.sleep(1e-4)
        child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        child.kill()
        child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    # Whole: the old one, or one of those that the child had finished.
    loaded = fk.load(path)
    assert path.read_bytes() == before or loaded.input_shapes == {"x": (400,)}
    fk.save(flow, path)
    assert path.read_bytes() == before


KILLED_INSIDE = """
import os, signal, sys, pathlib, flowkit as fk
real = pathlib.Path.write_bytes
def killed(self, content):
    real(self, content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = killed
fk.save(fk.Flow(fk.Permute((5,))), sys.argv[1])
"""


def test_killed_half_way_leaves_the_old_file_and_no_debris_in_the_next_one_s_way(path):
    flow = chain()
    fk.save(flow, path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED_INSIDE, str(path)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    debris = [p for p in path.parent.iterdir() if p != path]
    assert len(debris) == 1
    assert debris[0].name.startswith(".flow.safetensors-")
    with pytest.raises(fk.StorageError, match="is damaged"):
        fk.load(debris[0])
    fk.save(flow, path)
    assert path.read_bytes() == before
