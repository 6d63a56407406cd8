"""The mnist example: its data is checked, its figures are right, it resumes, and it says what is wrong."""

import gzip
import json
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import flowkit as fk
from flowkit.cli import app

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from flowkit.cli._examples.mnist import digits as module
from flowkit.cli._examples.mnist import judging, training
from flowkit.cli._examples.mnist.choices import Settings

from flowkit_cinn import mnist_cinn

QUICK = ("--steps", 3, "--batch-size", 4, "--device", "cpu")
PICTURES = {"samples.png": 10, "transfer.png": 11, "reliability.png": 5}
CHECKPOINTS = {"checkpoint.ckpt", "checkpoint-without-label.ckpt"}
FILES = {"metrics.json", "model.safetensors", "report.html", "run.json", *PICTURES, *CHECKPOINTS}


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)  # the command's; conftest puts it back


def mnist(*words):
    """The exit code of `flowkit examples mnist ...`."""
    return app.run(["examples", "mnist", *map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("mnist")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert mnist("--out", folder / "run", *QUICK) == 0
    torch.set_default_dtype(before)
    return folder


def figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name != "seconds"}


def idx(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape) + array.tobytes()


def idx_folder(folder, labels=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), side=28, packed=False):
    """Files as MNIST's, with noise for digits."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), side, side))
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if packed:
                (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / name).write_bytes(idx(array))
    return folder


def test_what_a_run_leaves(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} == FILES
    flow = fk.load(run / "model.safetensors")
    assert flow.input_shapes == {"digit": (1, 8, 8)}
    assert flow.condition_shapes == {"label": ()}
    held_out = figures(run)["held_out"]
    assert held_out["digits"] == 359
    assert 0 <= held_out["accuracy"]["mean"] <= 1
    assert 0 <= held_out["expected_calibration_error"] <= 1
    assert sum(each["digits"] for each in held_out["reliability"]) == 359
    assert len(held_out["accuracy_of_label"]) == 10
    gain = held_out["bits_per_dimension_without_label"]["mean"] - held_out["bits_per_dimension"]["mean"]
    assert held_out["gain"]["mean"] == pytest.approx(gain, abs=1e-6)
    for picture, columns in PICTURES.items():
        with Image.open(run / picture) as image:
            assert image.width > columns * 64


def test_the_report_is_one_file(place):
    report = (place / "run" / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4
    assert "<svg" in report
    assert set(re.findall(r"(?:src|href)=['\"]?([^'\"\s>]{1,5})", report)) == {"data:"}
    for words in ("flowkit examples mnist", "expected calibration error", "without the label", "PyTorch"):
        assert words in report


def test_the_same_seed_gives_the_same_numbers_in_a_new_folder(place):
    assert mnist("--out", place / "run", *QUICK) == 0
    assert figures(place / "run-2") == figures(place / "run")


def test_a_run_goes_on_to_more_steps(place):
    assert mnist("--out", place / "short", "--steps", 2, *QUICK[2:], "--seed", 3) == 0
    before = fk.load(place / "short" / "model.safetensors").state_dict()
    assert mnist("--resume", "--out", place / "short", "--steps", 4, "--device", "cpu", "--samples", 2) == 0
    after = fk.load(place / "short" / "model.safetensors").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert figures(place / "short")["training"]["steps"] == 4


def test_a_finished_run_can_be_drawn_again(place):
    model = (place / "run-again" / "model.safetensors", place / "run" / "model.safetensors")
    assert mnist("--out", place / "run-again", *QUICK) == 0
    before = fk.load(model[0]).state_dict()
    assert mnist("--resume", "--out", place / "run-again", "--device", "cpu", "--samples", 3) == 0
    after = fk.load(model[0]).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert figures(place / "run-again")["held_out"] == figures(place / "run")["held_out"]


def test_resume_without_the_second_checkpoint_trains_the_blind_flow(place):
    assert mnist("--out", place / "half", *QUICK) == 0
    whole = figures(place / "half")
    (place / "half" / "checkpoint-without-label.ckpt").unlink()
    assert mnist("--resume", "--out", place / "half", "--device", "cpu") == 0
    assert figures(place / "half") == whole


def test_the_label_is_worth_something():
    """In bits per dimension on held-out digits, the flow with the label beats the same one without, trained alike."""
    found = module.open_digits(None)
    settings = Settings(steps=120, batch_size=128, lr=5e-3, noise=0.08)
    bits = []
    for unconditional in (False, True):
        torch.manual_seed(0)
        flow = mnist_cinn("digits", unconditional=unconditional, blocks=4, hidden=64)
        training.train(flow, found, settings, device="cpu")
        bits.append(judging.bits_of_each(flow, *found.held_out.tensors).mean())
        if not unconditional:
            posterior = judging.posteriors(judging.log_prob_of_labels(flow, found.held_out.tensors[0]))
    assert bits[0] < bits[1] - 0.02
    assert (posterior.argmax(1) == found.held_out.tensors[1]).double().mean() > 0.6  # chance is 0.1


def test_the_classifier_is_bayes_rule():
    flow = mnist_cinn("digits", blocks=2, hidden=8, start=0.3)
    x = torch.randn(3, 1, 8, 8)
    log_prob = judging.log_prob_of_labels(flow, x)
    assert log_prob.shape == (3, 10)
    torch.testing.assert_close(log_prob[1, 7], flow.log_prob(x[1:2], given=torch.tensor([7]))[0])
    posterior = judging.posteriors(log_prob)
    torch.testing.assert_close(posterior.sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(posterior.argmax(1), log_prob.argmax(1))
    z, log_det = flow(x, given=torch.tensor([1, 2, 3]))
    printed = (z.square().sum(1) / 2 - log_det) / 64
    torch.testing.assert_close(judging.loss_of_each(flow, x, torch.tensor([1, 2, 3])), printed)


def test_calibration_by_hand():
    posterior = torch.tensor([[0.9, 0.1], [0.85, 0.15], [0.4, 0.6], [0.0, 1.0]], dtype=torch.float64)
    bins = judging.reliability(posterior, torch.tensor([0, 1, 1, 1]), bins=5)
    assert [(each["digits"], round(each["confidence"], 4), round(each["accuracy"], 4)) for each in bins] == [
        (1, 0.6, 1.0),
        (3, 0.9167, 0.6667),
    ]
    assert judging.calibration_error(bins) == pytest.approx(0.25 * 0.4 + 0.75 * 0.25)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read(tmp_path, packed):
    found = module.open_digits(str(idx_folder(tmp_path, packed=packed)))
    x, labels = found.train.tensors
    assert x.shape == (10, 1, 28, 28)
    assert labels.tolist() == list(range(10))
    expected = np.random.default_rng(0).integers(0, 256, (10, 28, 28)) / 255
    np.testing.assert_allclose(module.grey_of(x)[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(x[:, 0], (expected - 0.128) / 0.305, atol=1e-5)
    assert found.size == 28


def test_scikit_learns_digits_are_split_without_overlap():
    found = module.open_digits(None)
    x, held_out = (part.tensors[0].flatten(1) for part in (found.train, found.held_out))
    assert (len(x), len(held_out), found.size) == (1438, 359, 8)
    assert torch.cdist(held_out, x).amin() > 0


def test_bad_digits_are_one_sentence(tmp_path, capsys):
    one_class = idx_folder(tmp_path / "one class", labels=(3, 3, 3))
    strange = idx_folder(tmp_path / "strange", labels=(0, 1, 12, 200))
    small = idx_folder(tmp_path / "small", side=8)
    cut, short, other, lacking = (idx_folder(tmp_path / n, packed=True) for n in ("cut", "short", "other", "lacking"))
    packed = cut / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-2000])
    content = gzip.decompress((short / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").read_bytes())
    (short / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content[:-100]))
    (other / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"no labels at all"))
    (lacking / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    uneven = idx_folder(tmp_path / "uneven")
    (uneven / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx([0, 1, 2]))
    for data, sentence in (
        (tmp_path / "nothing", "holds no digits"),
        (one_class, "all have the label 3: with one class there is nothing to condition on"),
        (strange, "labels must be 0 to 9, got 12 at digit 2 (2 of 4 are out of range)"),
        (small, "the preset 'small' is for digits of 28 x 28, and these are 8 x 8"),
        (cut, "is cut short"),
        (short, "is cut short, or has something behind its end: 7,840 bytes are needed for 10 x 28 x 28, got 7,740"),
        (other, "is no IDX file of bytes in 1 dimensions"),
        (lacking, "has no t10k-labels-idx1-ubyte"),
        (uneven, "one label for each digit is needed, got 10 digits and 3 labels"),
    ):
        assert mnist("--data", data, "--out", tmp_path / "out", *QUICK) == 2, data
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_download_that_fails_is_one_sentence(tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")

    def broken(root, download):
        raise RuntimeError("Error downloading train-images\nTried a mirror, got:\nno network")

    monkeypatch.setattr(datasets, "MNIST", broken)
    assert mnist("--data", tmp_path / "here", "--download", "--out", tmp_path / "out", *QUICK) == 2
    said = capsys.readouterr().err.strip()
    assert "MNIST could not be downloaded" in said
    assert "Error downloading train-images" in said
    assert "\n" not in said


def test_bad_options_are_one_sentence(place, tmp_path, capsys):
    cases = [
        (("--steps", 0), "--steps must be at least 1, got 0"),
        (("--samples", 0), "--samples must be at least 1"),
        (("--lr", "nan"), "--lr must be positive"),
        (("--preset", "paper"), "the preset 'paper' is for digits of 28 x 28, and these are 8 x 8"),
        (("--download",), "--download needs --data"),
        (("--device", "abacus"), "must be auto, cpu, cuda or cuda:N"),
        (("--resume",), "there is no run to resume"),
        (("--resume", "--out", place / "run", "--preset", "small"), "has --preset digits, and cannot go on with small"),
        (("--resume", "--out", place / "run", "--seed", 5), "has --seed 0, and cannot go on with 5"),
        (("--resume", "--out", place / "run", "--steps", 1), "it can go on to more, not to 1"),
    ]
    for words, sentence in cases:
        where = () if "--out" in words else ("--out", tmp_path / "out")
        assert mnist(*words, *where) == 2, words
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_preset_is_refused(place, tmp_path, capsys):
    settings = json.loads((place / "run" / "run.json").read_text())
    settings["settings"]["lr"] = 1e-3
    (tmp_path / "run.json").write_text(json.dumps(settings))
    (tmp_path / "checkpoint.ckpt").write_bytes((place / "run" / "checkpoint-without-label.ckpt").read_bytes())
    assert mnist("--resume", "--out", tmp_path, "--device", "cpu") == 2
    said = capsys.readouterr().err.strip()
    assert "checkpoint.ckpt" in said
    assert "\n" not in said
