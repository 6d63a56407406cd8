"""Graphs written by hand: the defaults, every word of the format, and the sentence of each refusal."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowkit as fk


@pytest.fixture
def read(tmp_path):
    def made(text):
        path = tmp_path / "flow.toml"
        path.write_text(text, encoding="utf-8")
        return fk.Graph.from_toml(path)

    return made


CHAIN = """
[inputs]
x = 2

[conditions]
label = 10

[[nodes]]
repeat = 3

  [[nodes.nodes]]
  type = "affine_coupling"
  given = "label"
  subnet = { type = "mlp", hidden = [16, 16] }

  [[nodes.nodes]]
  type = "permute"
"""


def test_a_chain_is_what_python_declares(read):
    graph = fk.Graph()
    label, x = graph.condition("label", (10,)), graph.input("x", (2,))
    for _ in range(3):
        x = graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=(16, 16)))
        x = graph.add(fk.Permute, x)
    graph.output("z", x)
    assert read(CHAIN).to_dict() == graph.to_dict()


def test_every_word(tmp_path):
    text = """
    [inputs]
    image = [2, 4, 4]
    extra = 3

    [conditions]
    photo = [1, 8, 8]
    digit = { shape = [], dtype = "int64" }

    [[nodes]]
    type = "flowkit.resize"
    name = "small"
    inputs = "photo"
    size = [4, 4]

    [[nodes]]
    type = "one_hot"
    inputs = ["digit"]
    n = 5
    name = "hot"

    [[nodes]]
    type = "spline_coupling"
    inputs = "image"
    given = ["small"]
    config = { bins = 4 }
    subnet = { type = "conv_net", hidden = 4 }

    [[nodes]]
    type = "split"
    outputs = ["fine", ""]

    [[nodes]]
    type = "coupling"
    name = "last"
    given = "small"
    univariate = { type = "rational_quadratic_spline", bins = 3 }
    split = "checkerboard"

    [outputs]
    rest = "last"
    side = "extra"
    """
    path = tmp_path / "base.toml"
    path.write_text(text + '\n[base]\ntype = "diagonal_normal"\ngiven = "hot"\n')
    with pytest.raises(fk.GraphError, match=r"has a \[base\], which no graph has: fk.Flow.from_toml reads both"):
        fk.Graph.from_toml(path)
    flow = fk.Flow.from_toml(path)
    assert flow.input_shapes == {"image": (2, 4, 4), "extra": (3,)}
    assert list(flow.latents) == ["fine", "rest", "side"]
    assert flow.network.graph.nodes[2].config["bins"] == 4
    assert type(flow.base).__name__ == "DiagonalNormal"
    given_ = {"photo": torch.zeros(5, 1, 8, 8), "digit": torch.arange(5)}
    assert flow.log_prob(flow.sample(given=given_), given=given_).shape == (5,)
    fk.save(flow, tmp_path / "flow.safetensors")
    assert fk.load(tmp_path / "flow.safetensors").latents == flow.latents


INPUT = "[inputs]\nx = 4\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", fk.StorageError, r"flow.toml': \[inputs\] must name at least one input"),
        ("x = ", fk.StorageError, "is no TOML"),
        ("a = " + "[" * 5000, fk.StorageError, "is no TOML"),
        ("inputs = 5", fk.StorageError, r"\[inputs\] must be a table, got 5"),
        ("[inputs]\nx = 'a'", fk.StorageError, r"\[inputs\] x must be a shape, an int or a list of ints, got 'a'"),
        ("[inputs]\nx = [2, 0]", fk.ShapeError, r"\[inputs\]: a shape is made of positive ints, got \(2, 0\)"),
        (INPUT + "[more]\n", fk.StorageError, "the file has the unknown key 'more'; its keys are 'inputs', "),
        (INPUT + "[conditions]\nc = {shape = 2, kind = 1}", fk.StorageError, "c has the unknown key 'kind'"),
        (INPUT + "[conditions]\nc = {dtype = 'load'}", fk.StorageError, "c: 'load' is not the name of a dtype"),
        (INPUT + "[nodes]\ntype = 'permute'", fk.StorageError, r"\[\[nodes\]\] must be tables in double brackets"),
        (INPUT + "[[nodes]]\nname = 'a'", fk.StorageError, r"\[\[nodes\]\] number 1: it needs a type, or nodes to re"),
        (INPUT + "[[nodes]]\ntype = 'nope'", fk.RegistryError, r"number 1: 'flowkit.nope' is not registered"),
        (INPUT + "[[nodes]]\ntype = 'acme.nope'", fk.RegistryError, "install or import the plugin 'acme'"),
        (INPUT + "[[nodes]]\ntype = 5", fk.StorageError, "a type must be the name of a registered part, got 5"),
        (INPUT + "[[nodes]]\ntype = 'mlp'", fk.GraphError, "number 1: .*a Bijection, an instance of one"),
        (INPUT + "[[nodes]]\ntype = 'permute'\nwrong = 1", fk.GraphError, "Permute has no option 'wrong'; its options"),
        (INPUT + "[[nodes]]\ntype = 'permute'\ndim = 1\nconfig = {dim = 2}", fk.StorageError, "'dim' is there twice"),
        (INPUT + "[[nodes]]\ntype = 'permute'\nconfig = 3", fk.StorageError, "config must be a table of options, got"),
        (INPUT + "[[nodes]]\ntype = 'permute'\ninputs = 3", fk.StorageError, "inputs must be a wire's name or a list"),
        (INPUT + "[[nodes]]\ntype = 'permute'\ninputs = 'y'", fk.GraphError, "number 1: the graph has no wire 'y'"),
        (INPUT + "[[nodes]]\nrepeat = 0\nnodes = []", fk.StorageError, "repeat must be an int of at least 1, got 0"),
        (INPUT + "[[nodes]]\nrepeat = 2\nnodes = []\nx = 1", fk.StorageError, "has the unknown key 'x'"),
        (
            INPUT + "[[nodes]]\nrepeat = 1000000000\n[[nodes.nodes]]\ntype = 'identity'",
            fk.StorageError,
            r"\[\[nodes.nodes\]\] number 1: a graph has at most 10,000 nodes",
        ),
        (INPUT + "[[nodes]]\ntype = 'split'", fk.GraphError, r"\[outputs\] must name what is left over: 'split_1.0' "),
        (INPUT + "[[nodes]]\ntype = 'split'\noutputs = 'a'", fk.StorageError, "outputs must be 2 names, one for each"),
        (INPUT + "[outputs]\nz = 5", fk.StorageError, r"\[outputs\] z must be the name of a wire, got 5"),
        (INPUT + "[outputs]\nz = 'y'", fk.GraphError, r"\[outputs\]: the graph has no wire 'y'"),
        (INPUT + "[base]\ngiven = 'x'", fk.StorageError, r"\[base\] needs a type; it has 'given'"),
        (INPUT + "[base]\ntype = 'nope'", fk.RegistryError, r"\[base\]: 'flowkit.nope' is not registered"),
        (INPUT + "[[nodes]]\ntype = 'one_hot'\nn = 3", fk.StorageError, "OneHot is a feature net and needs inputs"),
        (
            INPUT + "[[nodes]]\ntype = 'affine_coupling'\nsubnet = {type = 'mlp', wide = 3}",
            fk.StorageError,
            "number 1: 'mlp' cannot be made: .*'wide'",
        ),
    ],
)
def test_refusals(read, text, error, message):
    with pytest.raises(error, match=message) as raised:
        read(text)
    assert "flow.toml'" in str(raised.value)
    assert str(raised.value).isprintable()


def test_files_that_are_none(tmp_path):
    with pytest.raises(fk.StorageError, match="cannot be read: No such file or directory"):
        fk.Graph.from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(fk.StorageError, match="is no TOML"):
        fk.Graph.from_toml(tmp_path / "bad.toml")


@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path, data):
    text = bytearray(CHAIN.replace("repeat = 3", "repeat = 1").encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        end = start + data.draw(st.integers(0, 12))
        text[start:end] = data.draw(st.sampled_from([b"", b"=", b"[", b"]", b"9", b'"', b"\n", b"x", b"[[nodes]]\n"]))
    path = tmp_path / "mutated.toml"
    path.write_bytes(bytes(text))
    with contextlib.suppress(fk.FlowkitError):
        fk.Graph.from_toml(path).check()
