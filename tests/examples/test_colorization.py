import json
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

import flowkit as fk

from .colorization_helpers import colorization, photographs, started, stopped

pytest.importorskip("lightning")
pytest.importorskip("kornia")

from flowkit.cli._examples.colorization import training
from flowkit.cli._examples.colorization.choices import Settings, runs_at

from flowkit_cinn import colorization_cinn
from flowkit_cinn.translation.sources import open_source

QUICK = ("--steps", 3, "--batch-size", 2, "--samples", 2, "--device", "cpu")
PICTURES = {"colorizations.png", "temperature.png"}
FILES = {"checkpoint.ckpt", "metrics.json", "model.safetensors", "report.html", "run.json", *PICTURES}


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)  # the command's; conftest puts it back


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs and one finished run."""
    folder = tmp_path_factory.mktemp("colorization")
    photographs(folder / "photos")
    (folder / "photos" / "notes.jpg").write_text("no image")
    Image.new("RGB", (80, 80), (90, 90, 90)).save(folder / "photos" / "grey.png")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert colorization("--data", folder / "photos", "--out", folder / "run", *QUICK) == 0
    torch.set_default_dtype(before)
    return folder


def figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name != "seconds"}


def test_what_a_run_leaves(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} == FILES
    flow = fk.load(run / "model.safetensors")
    assert flow.input_shapes == {"ab": (2, 64, 64)}
    assert flow.condition_shapes == {"photo": (1, 64, 64)}
    metrics = figures(run)
    held_out = metrics["held_out"]
    assert held_out["images"] == 1
    assert held_out["ab"]["variance"]["mean"] > 0
    assert held_out["ab"]["best_of_n_mse"]["mean"] > 0
    assert "noise of standard deviation 0.05" in held_out["bits_per_dimension_of"]
    assert {name for name, _ in metrics["data"]["skipped"]} == {"notes.jpg", "grey.png"}
    for picture, columns in (("colorizations.png", 4), ("temperature.png", 7)):
        with Image.open(run / picture) as image:
            assert image.width > columns * 160


def test_the_report_is_one_file(place):
    report = (place / "run" / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    assert "<svg" in report
    assert set(re.findall(r"(?:src|href)=['\"]?([^'\"\s>]{1,5})", report)) == {"data:"}
    for words in (
        "flowkit examples colorization",
        "bits per dimension",
        "normalised ab with noise",
        "notes.jpg",
        "PyTorch",
        "FID",
    ):
        assert words in report


def test_the_same_seed_gives_the_same_numbers_in_a_new_folder(place):
    assert colorization("--data", place / "photos", "--out", place / "run", *QUICK) == 0
    assert runs_at(place / "run") == [place / "run", place / "run-2"]
    assert figures(place / "run-2") == figures(place / "run")


def test_a_run_goes_on_to_more_steps(place, capsys):
    out = place / "longer"
    assert colorization("--data", place / "photos", "--out", out, *QUICK[2:], "--steps", 1) == 0
    assert colorization("--resume", "--out", out, "--steps", 2) == 0
    assert figures(out)["training"]["steps"] == 2
    assert colorization("--resume", "--out", out, "--seed", 5) == 2
    assert "has --seed 0, and cannot go on with 5" in capsys.readouterr().err
    assert colorization("--resume", "--out", out, "--steps", 1) == 2
    assert "it can go on to more, not to 1" in capsys.readouterr().err


def test_a_checkpoint_of_another_preset_is_named(place, capsys):
    out = place / "other preset"
    assert colorization("--data", place / "photos", "--out", out, *QUICK[2:], "--steps", 1) == 0
    run = json.loads((out / "run.json").read_text())
    run["settings"]["preset"] = "tiny"
    (out / "run.json").write_text(json.dumps(run))
    assert colorization("--resume", "--out", out, "--steps", 2) == 2
    assert (
        "is of the preset 'demo', and the run that is to go on from it has the preset 'tiny'" in capsys.readouterr().err
    )


def test_ctrl_c_keeps_the_state_and_the_run_goes_on(place):
    out = place / "interrupted"
    words = ("--data", place / "photos", "--out", out, *QUICK[2:])
    said = stopped(started(*words, "--steps", 400, cwd=place), "training ")
    assert re.search(r"Stopped after step \d+ of 400; its state is kept", said)
    assert f"flowkit examples colorization --resume --out {out}" in said
    assert {path.name for path in out.iterdir()} == {"run.json", "checkpoint.ckpt"}
    settings = json.loads((out / "run.json").read_text())
    done = int(re.search(r"after step (\d+)", said)[1])
    settings["settings"]["steps"] = done + 1  # so that the test need not wait for 400
    (out / "run.json").write_text(json.dumps(settings))
    assert colorization("--resume", "--out", out) == 0
    assert figures(out)["training"]["steps"] == done + 1
    assert {path.name for path in out.iterdir()} == FILES


def test_any_flow_can_be_trained_and_judged(place):
    source = open_source(place / "photos")
    settings = Settings(steps=2, batch_size=2, lr=1e-3, noise=0.05)
    small = {"size": 16, "photo_size": 16}
    for unconditional in (False, True):
        torch.manual_seed(0)
        flow = colorization_cinn("demo", unconditional=unconditional, **small)
        bits = training.train_and_judge(flow, source, settings, device="cpu")
        assert bits.shape == (1,)
        assert bits.isfinite().all()
    graph = fk.Graph()
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,))))
    with pytest.raises(fk.ConfigError, match="is no colorization flow"):
        training.train_and_judge(fk.Flow(graph), source, settings)


def test_bad_training_options_are_one_sentence(place, tmp_path, capsys):
    photos, out = place / "photos", tmp_path / "out"
    few, file = photographs(tmp_path / "few", 2), tmp_path / "file"
    file.write_text("")
    cases = [
        (("--steps", 0), "--steps must be at least 1, got 0"),
        (("--batch-size", -1), "--batch-size must be at least 1"),
        (("--samples", 0), "--samples must be at least 1"),
        (("--lr", "nan"), "--lr must be positive"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--temperature", -1), "--temperature must be at least 0"),
        (("--preset", "huge"), "demo"),
        (("--model", "model.safetensors"), "name at least one PHOTO"),
        (("--data", tmp_path / "nothing-*.tar"), "matches nothing"),
        (("--data", few), "too few photographs"),
        (("--data", photos, "--out", file / "run"), "the output folder"),
        (("--data", photos, "--device", "abacus"), "must be auto, cpu, cuda or cuda:N"),
        (("--resume",), "there is no run to resume"),
    ]
    if not torch.cuda.is_available():
        cases.append((("--data", photos, "--device", "cuda"), "this PyTorch sees no CUDA"))
    for words, sentence in cases:
        where = () if "--out" in words else ("--out", out)
        assert colorization(*words, *where) == 2, words
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert "\n" not in said
        assert "Traceback" not in said
    assert not out.exists()


def test_a_run_without_its_settings_cannot_go_on(place, tmp_path, capsys):
    (tmp_path / "checkpoint.ckpt").write_bytes(b"nonsense")
    assert colorization("--resume", "--out", tmp_path) == 2
    assert "is missing or damaged" in capsys.readouterr().err
    (tmp_path / "run.json").write_text((place / "run" / "run.json").read_text())
    assert colorization("--resume", "--out", tmp_path, "--device", "cpu") == 2
    assert "is damaged, or is no checkpoint" in capsys.readouterr().err


def test_the_command_is_there_without_torch():
    code = "import sys\nfrom flowkit.cli._examples.colorization import command\n"
    code += "print(command.name, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["command", "False"]
