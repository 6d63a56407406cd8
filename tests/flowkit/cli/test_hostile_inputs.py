"""The commands that read files, on broken and hostile ones: one sentence and an exit code, never a traceback."""

import json
import zipfile

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

import flowkit as fk
from flowkit.cli.app import run


@pytest.fixture
def whole(tmp_path):
    graph = fk.Graph()
    x = graph.add(fk.AffineCoupling, graph.input("x", (4,)), subnet=fk.MLP(hidden=3))
    graph.output("z", graph.add(fk.Permute, x))
    path = tmp_path / "whole.safetensors"
    fk.save(fk.Flow(graph), path)
    return path


def described(path, **changes):
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["flowkit"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    del description["sha256"]
    return save(tensors, {"flowkit": json.dumps({**description, **changes})})


def broken_files(whole):
    content = whole.read_bytes()
    graph = fk.load(whole).network.graph.to_dict()
    escapes = {**graph, "outputs": {"\x1b[2J\n": "permute_1"}}
    unknown = {**graph, "nodes": [{"name": "a", "op": "acme.nope", "inputs": ["x"]}]}
    huge = {**graph, "inputs": {"x": [10**12]}}
    return {
        "empty": b"",
        "cut": content[:-9],
        "half": content[: len(content) // 2],
        "text": b"not a file\n" * 99,
        "terabytes": b"\xff" * 8 + content[8:],
        "flipped": content[:-2] + bytes([content[-2] ^ 4]) + content[-1:],
        "foreign": save({"w": torch.zeros(2)}),
        "newer": described(whole, schema=7),
        "escapes": described(whole, graph=escapes),
        "unknown": described(whole, graph=unknown),
        "huge": described(whole, graph=huge),
        "none": described(whole, graph=None),
    }


COMMANDS = {
    "inspect": ["inspect", "FILE"],
    "check": ["check", "FILE"],
    "draw": ["draw", "FILE"],
    "draw svg": ["draw", "FILE", "-o", "OUT.svg"],
    "sample": ["sample", "FILE", "-o", "OUT.npz"],
    "logprob": ["logprob", "FILE", "DATA", "-o", "OUT.npz"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_broken_and_hostile_files(command, whole, tmp_path, capsys):
    data = tmp_path / "data.npy"
    numpy.save(data, numpy.zeros((2, 4)))
    for name, content in broken_files(whole).items():
        path = tmp_path / f"{name}\x1b[31m.safetensors"
        path.write_bytes(content)
        words = {"FILE": str(path), "DATA": str(data), "OUT.npz": str(tmp_path / "o.npz")}
        words["OUT.svg"] = str(tmp_path / "o.svg")
        assert run([words.get(word, word) for word in COMMANDS[command]]) == 2, name
        told = capsys.readouterr()
        assert told.out == "", name
        assert told.err.count("\n") == 1, name
        assert told.err.rstrip("\n").isprintable(), name
        assert "Traceback" not in told.err, name
        assert "unexpected" not in told.err, name
    assert not list(tmp_path.glob("o.*"))


@pytest.mark.parametrize("temperature", ["nan", "inf", "-inf", "-1", "-0.5", "NaN", "1e999", "hot"])
def test_temperatures_that_are_none(temperature, whole, tmp_path, capsys):
    output = tmp_path / "o.npz"
    assert run(["sample", str(whole), "-o", str(output), f"--temperature={temperature}"]) == 2
    told = capsys.readouterr()
    assert "--temperature" in told.err
    assert told.err.count("\n") == 1
    assert not output.exists()


def test_temperature_zero_is_one(whole, tmp_path):
    assert run(["sample", str(whole), "-n", "3", "-o", str(tmp_path / "o.npz"), "--temperature", "0"]) == 0
    x = numpy.load(tmp_path / "o.npz")["x"]
    assert (x == x[0]).all()


def npz_of_claims(path):
    """An .npy header that claims a shape of terabytes, over eight bytes."""
    claim = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 4), }"
    header = b"\x93NUMPY\x01\x00" + (len(claim) + 1).to_bytes(2, "little") + claim + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header + b"\x00" * 8)


def damaged_zip(path):
    numpy.savez_compressed(path, x=numpy.random.default_rng(0).normal(size=(50, 4)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 - 40 : len(content) // 2] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize("make", [npz_of_claims, damaged_zip])
def test_broken_data(make, whole, tmp_path, capsys):
    make(tmp_path / "data.npz")
    assert run(["logprob", str(whole), str(tmp_path / "data.npz")]) == 2
    told = capsys.readouterr()
    assert "cannot be read as .npz" in told.err
    assert told.err.count("\n") == 1
