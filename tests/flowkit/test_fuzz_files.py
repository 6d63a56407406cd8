"""Mutated files: each is loaded rightly or refused in one sentence of flowkit's own, whatever was changed in it."""

import copy
import functools
import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

import flowkit as fk
from flowkit.container import checksum

# A file takes hundredths of a second, so 2,100 are tried in every run, and 10,000 for each kind in the long one.
MANY = 10_000 if settings.get_current_profile_name() == "long" else 700
REFUSALS = (fk.StorageError, fk.RegistryError)


def tiny():
    """A flow of four nodes: a feature net, an instance that two nodes share, a nested graph, and a conditional base."""
    inner = fk.Graph()
    inner.output("z", inner.add(fk.Permute, inner.input("x", (2,)), order=(1, 0)))
    graph = fk.Graph()
    label, x = graph.condition("label", (), dtype=torch.int64), graph.input("x", (2,))
    hot = graph.features(fk.OneHot(2), label, name="hot")
    part = fk.AffineCoupling((2,), given=(2,), subnet=fk.MLP(hidden=3), clamp="atan")
    x = graph.add(part, graph.add(part, x, given=hot, name="once"), given=hot, name="twice")
    graph.output("z", graph.add(inner, graph.add(fk.ActNorm, x), name="inner"))
    return fk.Flow(graph, base=fk.DiagonalNormal, base_given="hot")


@functools.cache
def original():
    """The file's bytes, its description and its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        fk.save(tiny().double(), path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return path.read_bytes(), json.loads(file.metadata()["flowkit"]), tensors


def load(content, folder=None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.safetensors"
        path.write_bytes(content)
        state = torch.get_rng_state()
        try:
            return fk.load(path)
        except REFUSALS as error:
            sentence = str(error)
            assert sentence.isprintable()
            assert len(sentence) < 700
            return None
        finally:
            assert torch.get_default_dtype() == torch.float64
            assert torch.equal(torch.get_rng_state(), state)


def is_original(flow):
    _, description, tensors = original()
    state = flow.state_dict()
    same = all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
    return same and json.loads(json.dumps(flow.network.graph.to_dict())) == description["graph"]


def test_the_original_is_loaded():
    assert is_original(load(original()[0]))


@settings(max_examples=MANY)
@given(st.data())
def test_flipped_bytes_and_cuts(data):
    """What is loaded is the original: a change of a weight is found by the checksum."""
    content = bytearray(original()[0])
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = st.one_of(st.integers(0, 15), st.integers(0, header - 1), st.integers(header, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(places)
        content[place] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:end] = data.draw(st.binary(max_size=20))
    if data.draw(st.integers(0, 4)) == 0:
        del content[data.draw(st.integers(0, len(content))) :]
    flow = load(bytes(content))
    assert flow is None or is_original(flow)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([0, -1, 2**31, 2**63, 10**12, 10**30, 0.5, -1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "x", "hot", "once", "../../etc/passwd", "__class__", "a.b", "os.system", "\x1b[2J\n", "é" * 999]
    ),
    st.sampled_from(["flowkit.permute", "flowkit.mlp", "flowkit.act_norm", "flowkit.nope", "nope.op", "torch.load"]),
    st.sampled_from([{"$": "flowkit.mlp"}, {"$same": 0}, {"$named": "flowkit.mlp"}, {"$dtype": "load"}, {"$": []}]),
    st.sampled_from(
        [{"$graph": {}}, {"$float": "nan"}, {"$dict": {"$": 1}}, {"$repr": "<lambda>"}, {"$": "a", "b": 1}]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda s: st.one_of(st.lists(s, max_size=3), st.dictionaries(st.text(max_size=4), s, max_size=3)),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def mutate(data, description):
    """The description with one place replaced, removed, renamed, doubled or exchanged for another's value."""
    path = data.draw(st.sampled_from(list(places(description))))
    if not path:
        return copy.deepcopy(data.draw(VALUES))
    owner, key = at(description, path[:-1]), path[-1]
    how = data.draw(st.sampled_from(["replace", "replace", "other", "delete", "rename", "double"]))
    if how == "replace":
        owner[key] = copy.deepcopy(data.draw(VALUES))  # a later mutation must not reach the strategy
    elif how == "other":
        owner[key] = copy.deepcopy(at(description, data.draw(st.sampled_from(list(places(description))))))
    elif how == "delete":
        del owner[key]
    elif how == "rename" and isinstance(owner, dict):
        owner[data.draw(st.text(max_size=5))] = owner.pop(key)
    elif isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    return description


def without_empty(value):
    """Empty options are written by nobody, and mean nothing; a list of one wire is its wire."""
    if isinstance(value, dict):
        return {
            k: without_empty(v) for k, v in value.items() if not (k in ("given", "config", "args", "kwargs") and not v)
        }
    return [without_empty(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=MANY)
@given(st.data())
def test_changed_descriptions_with_a_right_checksum(data):
    """What is loaded is what the description says, with the file's weights."""
    _, description, tensors = original()
    changed = copy.deepcopy(description)
    for _ in range(data.draw(st.integers(1, 2))):
        if isinstance(changed, dict):
            changed = mutate(data, changed)
    if isinstance(changed, dict) and data.draw(st.booleans()):
        changed["sha256"] = checksum(changed, tensors)
    elif isinstance(changed, dict):
        changed.pop("sha256", None)
    flow = load(save(tensors, {"flowkit": json.dumps(changed)}))
    if flow is not None:
        assert without_empty(json.loads(json.dumps(flow.network.graph.to_dict()))) == without_empty(changed["graph"])
        state = flow.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())


@settings(max_examples=MANY)
@given(st.data())
def test_changed_headers(data):
    """Tensors renamed, of another shape or dtype, elsewhere in the file, missing, surplus, or of terabytes."""
    content, _, _ = original()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    how = data.draw(st.sampled_from(["name", "shape", "dtype", "data_offsets", "drop", "more", "anything", "swap"]))
    if how == "name":
        header[data.draw(st.one_of(st.text(max_size=9), st.just("../x")))] = header.pop(name)
    elif how == "shape":
        sizes = st.one_of(st.integers(-1, 4), st.sampled_from([2**40, 2**62, 2**64, "2", None, 1.5]))
        header[name]["shape"] = data.draw(st.lists(sizes, max_size=4))
    elif how == "dtype":
        header[name]["dtype"] = data.draw(
            st.sampled_from(["F32", "I64", "BOOL", "U8", "C64", "F8_E4M3", "F4", "", 5, None])
        )
    elif how == "data_offsets":
        ends = st.one_of(st.integers(-1, 400), st.sampled_from([2**40, 2**63, 2**64, -(2**63)]))
        header[name]["data_offsets"] = data.draw(st.lists(ends, max_size=3))
    elif how == "drop":
        del header[name]
    elif how == "more":
        header["more"] = {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}
    elif how == "anything":
        header[name] = copy.deepcopy(data.draw(VALUES))
    else:
        other = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        header[name], header[other] = header[other], header[name]
    text = json.dumps(header).encode()
    if data.draw(st.booleans()):
        text = text.replace(b'"dtype"', b'"dtype": "F64", "dtype"', 1)  # a key twice
    size = data.draw(
        st.one_of(st.just(len(text)), st.sampled_from([0, 2**40, 2**64 - 1, len(text) - 1, len(text) + 1]))
    )
    flow = load(struct.pack("<Q", size) + text + content[8 + length :])
    assert flow is None or is_original(flow)


@pytest.mark.parametrize("name", ["", "a b", "../up", "a\nb", "__a", "x" * 5000])
def test_names_of_files_are_only_names(name, tmp_path):
    with pytest.raises(fk.StorageError, match=r"does not exist|is not a safetensors file"):
        fk.load(tmp_path / f"{name}.none")
