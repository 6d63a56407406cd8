import numpy as np
import pytest
import torch
from PIL import Image

import flowkit as fk

from .colorization_helpers import colorization, photograph

pytest.importorskip("lightning")
pytest.importorskip("kornia")

from flowkit.cli._examples.colorization import photographs as module

from flowkit_cinn import colorization_cinn
from flowkit_cinn.translation.color import rgb_to_lab
from flowkit_cinn.translation.images import to_tensor


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)  # the command's; conftest puts it back


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a run's model and two photographs."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "colorization"
    run.mkdir(parents=True)
    torch.manual_seed(0)
    fk.save(colorization_cinn("demo", size=16, photo_size=16), run / "model.safetensors")
    photograph(tmp_path / "wide.jpg", (120, 45))
    photograph(tmp_path / "tall.png", (30, 77), seed=1)
    return tmp_path


def test_photographs_are_colorized_at_their_own_size(place, capsys):
    assert colorization("wide.jpg", "tall.png", "--samples", 2, "--device", "cpu") == 0
    said = capsys.readouterr().out
    expected = {f"wide-colorized-{i}.jpg": (120, 45) for i in (1, 2)} | {
        f"tall-colorized-{i}.png": (30, 77) for i in (1, 2)
    }
    for name, size in expected.items():
        assert opened(name).size == size
        assert name in said
    assert "colorized-contact-sheet.png" in said
    assert {path.name for path in place.iterdir()} == {
        *expected, "wide.jpg", "tall.png", "runs", "colorized-contact-sheet.png",
    }  # fmt: skip


def test_lightness_is_kept_and_samples_differ(place):
    assert colorization("tall.png", "--samples", 2, "--temperature", 0.5, "--device", "cpu") == 0
    original, one, two = (
        rgb_to_lab(to_tensor(opened(name)).float() / 255)
        for name in ("tall.png", "tall-colorized-1.png", "tall-colorized-2.png")
    )
    assert (
        one[0] - original[0]
    ).abs().median() < 2  # colours outside the gamut are clipped, and that shifts L a little
    assert (one[1:] - two[1:]).abs().mean() > 1


def test_the_same_seed_gives_the_same_picture(place):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert colorization("tall.png", "--samples", 1, "--seed", seed, "--out", folder, "--device", "cpu") == 0
    a, b, c = (np.asarray(opened(f"{folder}/tall-colorized-1.png")) for folder in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_nothing_is_overwritten(place):
    for name in ("tall-colorized-1.png", "colorized-contact-sheet.png"):
        (place / name).write_text("mine")
    assert colorization("tall.png", "--samples", 1, "--device", "cpu") == 0
    for name in ("tall-colorized-1", "colorized-contact-sheet"):
        assert (place / f"{name}.png").read_text() == "mine"
        assert opened(place / f"{name}-2.png").size[0] > 0


def test_other_formats_become_png(place):
    photograph(place / "old.bmp", (40, 40))
    assert colorization("old.bmp", "--samples", 1, "--out", "new folder", "--device", "cpu") == 0
    assert opened(place / "new folder" / "old-colorized-1.png").size == (40, 40)


def test_a_greyscale_photograph_gets_colours(place):
    Image.linear_gradient("L").resize((60, 40)).save(place / "grey.png")
    assert colorization("grey.png", "--samples", 1, "--device", "cpu") == 0
    colours = np.asarray(opened(place / "grey-colorized-1.png")).astype(int)
    assert np.ptp(colours, axis=2).max() > 10


def test_a_map_of_colours_has_the_aspect_of_the_photograph():
    torch.manual_seed(0)
    flow = colorization_cinn("demo", size=16, photo_size=16).eval()
    ab = module.colours(flow, Image.new("RGB", (400, 100), (90, 80, 60)), 3, 1.0, 0)
    assert ab.shape == (3, 2, 4, 16)


def test_bad_photographs_are_one_sentence_and_nothing_is_written(place, capsys):
    (place / "empty.jpg").write_bytes(b"")
    (place / "cut.jpg").write_bytes((place / "wide.jpg").read_bytes()[:400])
    (place / "text.jpg").write_text("no image")
    Image.new("RGB", (7, 40)).save(place / "tiny.png")
    before = {path.name for path in place.iterdir()}
    for name, sentence in (
        ("missing.jpg", "does not exist"),
        ("empty.jpg", "is empty"),
        ("cut.jpg", "truncated"),
        ("text.jpg", "is not an image"),
        ("tiny.png", "at least 8 on each side"),
        ("runs", "is a folder"),
    ):
        assert colorization("wide.jpg", name, "--device", "cpu") == 2
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert name in said
        assert "\n" not in said
    assert {path.name for path in place.iterdir()} == before


def test_bad_models_are_one_sentence(place, capsys):
    model = place / "runs" / "colorization" / "model.safetensors"
    (place / "cut.safetensors").write_bytes(model.read_bytes()[:5000])
    (place / "text.safetensors").write_text("no model")
    graph = fk.Graph()
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,))))
    fk.save(fk.Flow(graph), place / "foreign.safetensors")
    fk.save(colorization_cinn("demo", size=16, photo_size=16, unconditional=True), place / "blind.safetensors")
    for name, sentence in (
        ("missing.safetensors", "does not exist"),
        ("runs", "is a folder"),
        ("cut.safetensors", "cut.safetensors"),
        ("text.safetensors", "text.safetensors"),
        ("foreign.safetensors", "is no colorization flow"),
        ("blind.safetensors", "has no condition 'photo'"),
    ):
        assert colorization("wide.jpg", "--model", name, "--device", "cpu") == 2
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert "\n" not in said
    model.unlink()
    assert colorization("wide.jpg") == 2
    assert "there is no trained model in runs/colorization" in capsys.readouterr().err


def test_training_options_do_not_go_with_photographs(place, capsys):
    assert colorization("wide.jpg", "--steps", 5) == 2
    assert "--steps is for training" in capsys.readouterr().err
    (place / "file").write_text("")
    assert colorization("wide.jpg", "--out", "file/folder", "--device", "cpu") == 2
    assert "the output folder 'file/folder' cannot be made" in capsys.readouterr().err


def test_the_newest_run_is_the_default(place, capsys):
    newest = place / "runs" / "colorization-10"
    newest.mkdir()
    (place / "runs" / "colorization-9").mkdir()
    (place / "runs" / "colorization" / "model.safetensors").rename(newest / "model.safetensors")
    assert colorization("tall.png", "--samples", 1, "--device", "cpu") == 0
    assert "runs/colorization-10/model.safetensors" in capsys.readouterr().out
