"""`flowkit examples latent`: a picture for each name, and refusals in one sentence."""

import pytest
import torch
from PIL import Image

import flowkit as fk
from flowkit.cli import app
from flowkit_cinn import colorization_cinn

from .colorization_helpers import photograph

PICTURES = ["diverse", "failures", "features", "interpolation", "most-likely", "resample", "temperature", "transfer"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a model, two photographs, and float32 as for a user."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    fk.save(colorization_cinn("demo", size=16, photo_size=16).eval(), tmp_path / "m.safetensors")
    photograph(tmp_path / "a.png", seed=1)
    photograph(tmp_path / "b.png", seed=2, size=(60, 80))
    return tmp_path


def run(*words):
    return app.run(["examples", "latent", *words])


def test_every_picture_and_nothing_overwritten(folder):
    assert run("--model", "m.safetensors", "--device", "cpu", "a.png", "b.png") == 0
    made = sorted((folder / "runs/latent").iterdir())
    assert [path.stem for path in made] == PICTURES
    for path in made:
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert len(image.getcolors(1 << 24)) > 50
    before = (folder / "runs/latent/transfer.png").read_bytes()
    assert run("--model", "m.safetensors", "--what", "transfer", "--seed", "3", "a.png", "b.png") == 0
    assert (folder / "runs/latent-2/transfer.png").is_file()
    assert (folder / "runs/latent/transfer.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.png"], "no trained model"),
        (["--model", "gone.safetensors", "a.png"], "does not exist"),
        (["--model", "m.safetensors", "--what", "transfer", "a.png"], "two PHOTOs or more"),
        (["--model", "other.safetensors", "a.png"], "no colorization flow"),
        (["--model", "m.safetensors", "--what", "resample", "--level", "sharp", "a.png"], "no 'sharp'"),
        (["--model", "m.safetensors", "gone.png"], "gone.png"),
    ],
)
def test_refused(folder, capsys, words, said):
    fk.save(fk.Flow(fk.Identity((3,))), folder / "other.safetensors")
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (folder / "runs").exists()
