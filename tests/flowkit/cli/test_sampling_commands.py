"""`sample` and `logprob`, on a small conditional flow and a plain one."""

import math

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit.cli.app import run


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.safetensors"
    fk.save(fk.Flow(fk.ElementwiseAffine((2,))), path)
    return str(path)


@pytest.fixture
def conditional(tmp_path):
    torch.manual_seed(0)
    graph = fk.Graph()
    label, x = graph.condition("label", (3,)), graph.input("x", (4,))
    graph.output("z", graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=8, zero_last=False)))
    path = tmp_path / "conditional.safetensors"
    fk.save(fk.Flow(graph), path)
    return str(path)


def loaded(path):
    with np.load(path) as file:
        return dict(file)


def test_log_prob_of_samples_is_what_is_stored(conditional, tmp_path):
    labels, out, again = tmp_path / "y.csv", tmp_path / "s.npz", tmp_path / "l.npz"
    np.savetxt(labels, np.eye(3), delimiter=",")
    assert run(["sample", conditional, "--given", str(labels), "-n", "5", "--batch", "4", "-o", str(out)]) == 0
    made = loaded(out)
    assert {name: value.shape for name, value in made.items()} == {"label": (15, 3), "x": (15, 4), "log_prob": (15,)}
    np.testing.assert_array_equal(made["label"], np.eye(3).repeat(5, 0))
    assert run(["logprob", conditional, str(out), "--batch", "7", "-o", str(again)]) == 0
    np.testing.assert_allclose(loaded(again)["log_prob"], made["log_prob"], rtol=1e-12)
    expected = fk.load(conditional).log_prob(torch.tensor(made["x"]), given=torch.tensor(made["label"]))
    np.testing.assert_allclose(made["log_prob"], expected.detach().numpy(), rtol=1e-12)


def test_seeds_and_temperature(plain, tmp_path):
    def sample(*words):
        assert run(["sample", plain, "-n", "6", "-o", str(tmp_path / "s.npz"), "--force", *words]) == 0
        return loaded(tmp_path / "s.npz")["x"]

    np.testing.assert_array_equal(sample("--seed", "3"), sample("--seed", "3"))
    assert (sample("--seed", "3") != sample("--seed", "4")).all()
    np.testing.assert_allclose(sample("--temperature", "0.5"), sample() / 2)


def test_summary(plain, tmp_path, capsys):
    np.savez(tmp_path / "d.npz", anything=np.zeros((3, 2)))
    assert run(["logprob", plain, str(tmp_path / "d.npz")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    nats = -math.log(2 * math.pi)
    assert f"mean {nats:.6g} {-nats / (2 * math.log(2)):.6g} standard error 0 0" in shown


def test_an_existing_file_is_kept(plain, tmp_path, capsys):
    (tmp_path / "s.npz").write_bytes(b"mine")
    assert run(["sample", plain, "-o", str(tmp_path / "s.npz")]) == 2
    assert (tmp_path / "s.npz").read_bytes() == b"mine"
    assert "--force" in capsys.readouterr().err
    assert run(["sample", plain, "-o", str(tmp_path / "s.npz"), "--force"]) == 0
    assert loaded(tmp_path / "s.npz")["x"].shape == (1, 2)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros(3)}, "lacks the array x"),
        ({"x": np.zeros((3, 4))}, "got (3, 4)"),
        ({"x": np.zeros((0, 2))}, "at least one"),
        ({"x": np.array([[0.0, 1.0], [2.0, math.nan]])}, "got nan at (1, 1)"),
        ({"x": np.array([[{}, 1]], dtype=object)}, "without pickles"),
        ({"x": np.array([["a", "b"]])}, "real numbers"),
    ],
)
def test_data_refused(plain, tmp_path, capsys, arrays, expected):
    np.savez(tmp_path / "d.npz", **arrays)
    assert run(["logprob", plain, str(tmp_path / "d.npz")]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1


def test_files_refused(plain, conditional, tmp_path, capsys):
    (tmp_path / "bad.npz").write_bytes(b"no arrays")
    np.save(tmp_path / "y.npy", np.zeros((2, 3)))
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    (tmp_path / "empty.csv").write_text("")
    bad, y, x, out = (str(tmp_path / name) for name in ("bad.npz", "y.npy", "x.npy", "o.npz"))
    for words, expected in (
        (["logprob", plain, bad], "cannot be read"),
        (["logprob", plain, str(tmp_path / "none.npz")], "there is no file"),
        (["logprob", plain, str(tmp_path / "empty.csv")], "it is empty"),
        (["logprob", plain, plain], "has to end in"),
        (["logprob", conditional, x], "needs --given"),
        (["logprob", conditional, x, "--given", y], "1 row or the data's 3"),
        (["sample", conditional, "-o", out], "needs --given"),
        (["sample", plain, "--given", y, "-o", out], "no conditions"),
        (["sample", plain, "-o", str(tmp_path / "no" / "o.npz")], "there is no folder"),
        (["sample", plain, "-o", str(tmp_path / "o.txt")], "end in .npz"),
    ):
        assert run(words) == 2
        told = capsys.readouterr().err
        assert expected in told
        assert told.count("\n") == 1
