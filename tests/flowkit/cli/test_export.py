"""`export`: what it writes runs, an existing file is kept, the rest is refused in a sentence."""

import pytest
import torch

import flowkit as fk
from flowkit.cli.app import run
from flowkit.cli.export import KINDS, WHAT
from flowkit.interop import load_exported
from flowkit.interop.export import ENDINGS, FUNCTIONS


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "flow.safetensors"
    fk.save(fk.flows.realnvp(2, condition=3, layers=1, hidden=4).float(), path)
    return str(path)


def test_the_choices_are_those_of_the_library():
    assert WHAT == FUNCTIONS
    assert tuple(ENDINGS) == KINDS


def test_sample_as_a_program(saved, tmp_path, capsys):
    out = tmp_path / "sample.pt2"
    assert run(["export", saved, "--what", "sample", "-o", str(out)]) == 0
    assert f"sample(noise, y, temperature) -> x written to {out}" in capsys.readouterr().err
    program, y, noise = load_exported(out), torch.randn(5, 3).float(), torch.randn(5, 2).float()
    flow = fk.load(saved)
    want = flow.inverse(0.5 * noise, given=y)[0]
    torch.testing.assert_close(program(noise, y, torch.tensor(0.5).float()), want)


@pytest.mark.slow
def test_onnx_by_the_ending(saved, tmp_path):
    out = tmp_path / "density.onnx"
    assert run(["export", saved, "-o", str(out)]) == 0
    x, y = torch.randn(4, 2).float(), torch.randn(4, 3).float()
    torch.testing.assert_close(load_exported(out)(x, y), fk.load(saved).log_prob(x, given=y), atol=1e-4, rtol=1e-4)


def test_an_existing_file_is_kept(saved, tmp_path, capsys):
    out = tmp_path / "flow.pt2"
    out.write_bytes(b"mine")
    assert run(["export", saved, "-o", str(out)]) == 2
    assert "is there already, and only --force replaces it" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert run(["export", saved, "-o", str(out), "--force"]) == 0
    assert load_exported(out).what == "log_prob"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "onnx", "-o", "flow.pt2"], "has to end in .onnx"),
        (["--to", "tflite", "-o", "flow.pt2"], "'tflite' is not one of 'torch', 'onnx', 'aoti'"),
        (["--what", "loss", "-o", "flow.pt2"], "'loss' is not one of"),
        (["-o", "nowhere/flow.pt2"], "there is no folder nowhere"),
        ([], "Missing option '-o'"),
    ],
)
def test_refusals(saved, words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["export", saved, *words]) == 2
    assert expected in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["flow.safetensors"]
