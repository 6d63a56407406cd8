"""Addresses of the Hugging Face Hub in place of files, with a Hub that is a folder: nothing touches the network."""

import sys

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit.cli.app import run

pytest.importorskip("huggingface_hub")
ADDRESS = "hf://acme/moons@v1/flow.safetensors"
COMMANDS = {
    "inspect": ["inspect", ADDRESS],
    "draw": ["draw", ADDRESS],
    "check": ["check", ADDRESS],
    "sample": ["sample", ADDRESS, "-n", "3", "-o", "samples.npz"],
    "logprob": ["logprob", ADDRESS, "data.npz"],
    "export": ["export", ADDRESS, "-o", "density.pt2"],
}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    torch.manual_seed(0)
    fk.save(fk.Flow(fk.ElementwiseAffine((2,))), tmp_path / "flow.safetensors")
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2)))
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(repo_id, file, revision):
        asked.append((repo_id, file, revision))
        if repo_id != "acme/moons":
            raise OSError("no such repository")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_addresses(asked, capsys, command):
    assert run(COMMANDS[command]) == 0
    assert asked == [("acme/moons", "flow.safetensors", "v1")]
    told = capsys.readouterr()
    if command in ("inspect", "check"):
        assert ADDRESS in "".join(told.out.split())


def test_an_address_without_a_file_is_its_flow(asked, capsys):
    assert run(["inspect", "hf://acme/moons"]) == 0
    assert run(["check", "hf://acme/moons"]) == 0
    assert asked == [("acme/moons", "flow.safetensors", None)] * 2


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_had_is_one_sentence(asked, capsys, monkeypatch, command):
    for address, expected in (
        ("hf://acme/none/flow.safetensors", "cannot be had: OSError: 'no such repository'"),
        ("hf://acme", "an address is hf://owner/name"),
    ):
        assert run([address if word == ADDRESS else word for word in COMMANDS[command]]) == 2
        told = capsys.readouterr()
        assert expected in told.err
        assert told.err.count("\n") == 1
        assert told.out == ""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(COMMANDS[command]) == 2
    assert "pip install 'flowkit[hub]'" in capsys.readouterr().err
