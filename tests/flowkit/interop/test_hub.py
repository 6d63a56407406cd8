"""The local half of the Hub: the folder, and what is handed to huggingface_hub. Nothing here touches the network."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch

import flowkit as fk
from flowkit.interop import hub


@pytest.fixture
def flow():
    return fk.flows.nsf(2, condition={"label": 3}, layers=1, hidden=(4,), bins=3).eval()


def test_the_folder(flow, tmp_path):
    folder = hub.prepare_folder(flow, tmp_path / "a" / "b", title="Moons", text="Two of them.", license="mit")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "SHA256SUMS", "flow.safetensors"]
    digest = hashlib.sha256((folder / "flow.safetensors").read_bytes()).hexdigest()
    assert (folder / "SHA256SUMS").read_text() == f"{digest}  flow.safetensors\n"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: flowkit\ntags:\n- normalizing-flow\n")
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert "license: mit\n" in front
    for part in ("# Moons\n\nTwo of them.\n", "| condition `label` | (3,) |", digest, "| density | exact |"):
        assert part in body
    assert "spline_coupling_1" in body
    x, given = torch.randn(4, 2), torch.randn(4, 3)
    loaded = fk.load(folder / "flow.safetensors")
    assert torch.equal(loaded.log_prob(x, given=given), flow.log_prob(x, given=given))
    before = (folder / "README.md").read_bytes()
    (folder / "own.txt").write_text("kept")
    hub.prepare_folder(flow, folder, title="Moons", text="Two of them.", license="mit")
    assert (folder / "README.md").read_bytes() == before
    assert (folder / "own.txt").exists()


@pytest.mark.parametrize("options", [{"title": "a\nb"}, {"title": " "}, {"license": "mit\ntags: x"}, {"license": ""}])
def test_cards_that_would_break(flow, tmp_path, options):
    with pytest.raises(fk.ConfigError, match=r"one line|an identifier"):
        hub.prepare_folder(flow, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(flow, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(fk.StorageError, match="cannot be made"):
        hub.prepare_folder(flow, tmp_path / "file")


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://a", "hf:///a/b", "hf://a/b/../c", "hf://../b/c", "hf://a/b@/c", "hf://a/b/.hidden", "hf://-a/b/c",
     "hf://a/b//c", "hf://a/b/c\n", "hf://a/b@x@y/c", "http://a/b/c"],
)  # fmt: skip
def test_addresses_that_are_none(address):
    with pytest.raises(fk.StorageError, match=r"an address is hf://owner/name\[@revision\]/file"):
        hub.parse(address)
    if address.startswith("hf://"):
        with pytest.raises(fk.StorageError, match="an address is"):
            fk.load(address)


def test_what_is_asked_of_huggingface_hub(flow, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    folder = hub.prepare_folder(flow, tmp_path)
    asked = []

    def download(repo_id, file, revision):
        asked.append((repo_id, file, revision))
        if revision == "none":
            raise OSError("no such\nrevision")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fk.load("hf://acme/moons@v1/flow.safetensors").dim == 2
    assert asked == [("acme/moons", "flow.safetensors", "v1")]
    with pytest.raises(fk.StorageError, match="cannot be had: OSError: 'no such"):
        fk.load("hf://acme/moons@none/flow.safetensors")


def test_what_is_uploaded(flow, monkeypatch):
    pytest.importorskip("huggingface_hub")
    done = []

    class Api:
        def __init__(self, token):
            done.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            done.append((repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            done.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir()), commit_message))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert flow.push_to_hub("acme/moons", private=True, title="Moons") == "hf://acme/moons/flow.safetensors"
    assert done == [
        None,
        ("acme/moons", True, True),
        ("acme/moons", ["README.md", "SHA256SUMS", "flow.safetensors"], "A flow"),
    ]
    for name in ("moons", "a/b/c", "a/b@c", "../b", ""):
        with pytest.raises(fk.ConfigError, match="a repository is named 'owner/name'"):
            flow.push_to_hub(name)


def test_without_huggingface_hub_it_is_one_sentence(flow, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(fk.MissingDependencyError, match=r"python -m pip install 'flowkit\[hub\]'"):
        fk.load("hf://acme/moons/flow.safetensors")
    with pytest.raises(fk.MissingDependencyError, match="huggingface_hub"):
        flow.push_to_hub("acme/moons")
