import functools
import json
import re
import signal

import pytest
import torch

from .colorization_helpers import colorization, photographs, started, stopped

pytest.importorskip("lightning")
pytest.importorskip("kornia")
pytest.importorskip("torchmetrics")

from flowkit.cli._examples.colorization.comparison import judging
from flowkit.cli._examples.colorization.comparison import run as comparison
from flowkit.cli._examples.colorization.comparison.systems import FIXED_NET, OURS, systems
from flowkit.cli._examples.colorization.comparison.training import train_system

import flowkit as fk
from flowkit.errors import NonFiniteError

TABLE_ONE = {"CNN", "cINN", "VAE-MDN", "cGAN"}
ABLATIONS = {
    "no conditioning net",
    "conditioning net fixed",
    "no permutations",
    "checkerboard squeeze instead of Haar",
    "no clamp",
    "no noise",
}
FILES = {"comparison.png", "chart.png", "report.html", "metrics.json", "run.json"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.set_default_dtype(torch.float32)  # the command's; conftest puts it back
    monkeypatch.setattr(comparison, "systems", functools.partial(systems, size=16, photo_size=16))


@pytest.fixture
def photos(tmp_path):
    return photographs(tmp_path / "photos", 40)


def compare(photos, out, *more):
    return colorization("--compare", "--data", photos, "--out", out, "--steps", 2, "--batch-size", 2, *more)


def read(out):
    return json.loads((out / "metrics.json").read_text())


def test_a_comparison_with_its_ablations(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare(photos, out) == 0
    said = capsys.readouterr().out
    metrics = read(out)
    assert set(metrics["systems"]) == TABLE_ONE | ABLATIONS
    models = {f"{name.lower().replace(' ', '-')}.safetensors" for name in metrics["systems"]}
    assert {path.name for path in out.iterdir()} == FILES | {"ablations.png"} | models
    for name, figures in metrics["systems"].items():
        assert figures["ab"]["best_of_n_mse"]["mean"] > 0
        assert figures["fid"]["mean"] > 0
        assert ("bits_per_dimension" in figures) == (name in ABLATIONS | {OURS})
        assert name in said
    assert metrics["systems"]["CNN"]["ab"]["variance"]["mean"] == 0
    assert metrics["systems"][OURS]["ab"]["variance"]["mean"] > 0
    fixed, ours = (metrics["systems"][name]["parameters"] for name in (FIXED_NET, OURS))
    assert fixed < ours
    for words in ("untrained net", "VGG top-5 accuracy is left out", "no units", "3.53 ± 0.04"):
        assert words in said
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert set(re.findall(r"(?:src|href)=['\"]?([^'\"\s>]{1,5})", page)) == {"data:"}
    net = fk.load(out / "conditioning-net-fixed.safetensors").network.nodes["pyramid"].state_dict()
    taught = comparison.systems("demo")[0].build()
    comparison.read_weights(taught, out / "cnn.safetensors")
    assert all(torch.equal(net[name], value) for name, value in taught.pyramid.state_dict().items())


def test_what_is_done_is_not_done_again(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert compare(photos, out, "--without-ablations") == 0
    before = read(out)
    kept = before["systems"].pop("cGAN")
    (out / "metrics.json").write_text(json.dumps(before))
    trained = []

    def counted(model, system, *args, **options):
        trained.append(system.name)
        return train_system(model, system, *args, **options)

    monkeypatch.setattr(comparison, "train_system", counted)
    assert colorization("--compare", "--resume", "--out", out) == 0
    assert trained == ["cGAN"]
    after = read(out)["systems"]
    for name in ("ab", "rgb", "fid"):
        assert after["cGAN"][name] == kept[name]
    assert {k: v for k, v in after.items() if k != "cGAN"} == before["systems"]
    (out / "cnn.safetensors").write_bytes(b"cut")
    capsys.readouterr()
    assert colorization("--compare", "--resume", "--out", out) == 2
    assert "is missing, damaged, or holds another model" in capsys.readouterr().err
    (out / "metrics.json").write_text("{")
    assert colorization("--compare", "--resume", "--out", out) == 2
    assert "metrics.json' is damaged, so the comparison cannot go on" in capsys.readouterr().err


def test_a_baseline_goes_on_exactly(photos, tmp_path):
    from flowkit.cli._examples.colorization.choices import Settings

    from flowkit_cinn.translation.sources import open_source

    source, console = open_source(photos), comparison.terminal(error=True)
    settings = Settings(steps=4, batch_size=2, lr=1e-3)
    system = next(s for s in comparison.systems("demo") if s.name == "cGAN")

    def weights(stop_after, checkpoint):
        torch.manual_seed(0)
        model = system.build()
        update, done = model.update, []

        def counted(*args):
            if len(done) == stop_after:
                signal.raise_signal(signal.SIGINT)
            done.append(1)
            return update(*args)

        model.update = counted
        result = train_system(model, system, source, settings, device="cpu", checkpoint=checkpoint, show=console)
        return result, model.state_dict()

    whole, expected = weights(None, tmp_path / "whole.ckpt")
    assert whole.steps == 4
    first, _ = weights(1, tmp_path / "parts.ckpt")
    assert (first.steps, first.interrupted) == (2, True)
    second, found = weights(None, tmp_path / "parts.ckpt")
    assert second.losses == whole.losses
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (tmp_path / "parts.ckpt").write_bytes(b"cut")
    with pytest.raises(fk.StorageError, match="is damaged, or is another system's"):
        weights(None, tmp_path / "parts.ckpt")


def test_a_system_that_diverges_is_a_row_of_the_table(tmp_path, monkeypatch, capsys):
    photos = photographs(tmp_path / "few", 6)  # one is held out: too few for a covariance

    def diverging(model, system, *args, **options):
        if system.name == "cGAN":
            raise NonFiniteError("step 2 of cGAN has the loss nan")
        return train_system(model, system, *args, **options)

    monkeypatch.setattr(comparison, "train_system", diverging)
    assert compare(photos, tmp_path / "out", "--without-ablations") == 0
    said = capsys.readouterr().out
    assert "fid" not in read(tmp_path / "out")["systems"]["CNN"]
    assert re.search(r"cGAN +diverged", said)
    assert "cGAN diverged: step 2 of cGAN has the loss nan" in said


def test_the_fixed_net_needs_the_regressions_weights(photos, tmp_path):
    out = tmp_path / "out"
    assert compare(photos, out, "--without-ablations") == 0
    (out / "cnn.safetensors").unlink()
    flow = next(s for s in comparison.systems("demo") if s.name == FIXED_NET).build()
    with pytest.raises(fk.StorageError, match=r"cnn.safetensors' is missing"):
        comparison.take_over_net(flow, comparison.systems("demo"), out)


def test_ctrl_c_keeps_what_is_done(photos, tmp_path):
    out = tmp_path / "out"
    words = ("--compare", "--without-ablations", "--data", photos, "--out", out, "--steps", 300, "--batch-size", 2)
    said = stopped(started(*words, cwd=tmp_path), "CNN ")
    assert re.search(r"Stopped in CNN after step \d+ of 300", said)
    assert "--compare --resume --out" in said
    assert (out / "cnn.ckpt").is_file()


def test_options_that_do_not_go_together(photos, tmp_path, capsys):
    out = tmp_path / "out"
    cases = [
        (("--without-ablations",), "--without-ablations is for --compare"),
        (("--compare", "--preset", "no-conditioning-net"), "needs a preset with a conditioning net"),
        (("--compare", "--resume", "--out", tmp_path / "none"), "there is no run to resume"),
        (("--compare", photos / "photo 0.png"), "--compare is for training"),
    ]
    for words, sentence in cases:
        assert colorization(*words) == 2
        assert sentence in capsys.readouterr().err
    assert compare(photos, out, "--without-ablations") == 0
    assert colorization("--compare", "--resume", "--out", out, "--steps", 9) == 2
    assert "has --steps 2, and cannot go on with 9" in capsys.readouterr().err
    assert colorization("--compare", "--resume", "--out", out, "--temperature", 0.5) == 2
    assert "has --temperature 1.0, and cannot go on with 0.5" in capsys.readouterr().err


def test_a_sample_that_is_not_finite_is_a_row_of_the_table_too(photos, tmp_path, monkeypatch, capsys):
    draw = judging.drawn

    def exploding(model, *args):
        samples = draw(model, *args)
        return samples / 0 if isinstance(model, fk.Flow) else samples

    monkeypatch.setattr(judging, "drawn", exploding)
    assert compare(photos, tmp_path / "out", "--without-ablations") == 0
    systems = read(tmp_path / "out")["systems"]
    assert systems[OURS] == {"diverged": "of the photographs from number 0 on, a sample is not finite"}
    assert all("fid" in figures for name, figures in systems.items() if name != OURS)
    assert "cINN diverged: of the photographs" in capsys.readouterr().out


def test_flows_are_judged_at_the_temperature_that_is_asked_for(photos, tmp_path, capsys):
    assert compare(photos, tmp_path / "out", "--without-ablations", "--temperature", 0) == 0
    variances = {name: figures["ab"]["variance"]["mean"] for name, figures in read(tmp_path / "out")["systems"].items()}
    assert variances[OURS] == pytest.approx(0, abs=1e-6)
    assert variances["VAE-MDN"] > 1e-3
    assert "Samples of the flows are drawn at temperature 0, all others as trained." in capsys.readouterr().out


def test_torchrun_is_refused(monkeypatch, photos, tmp_path, capsys):
    monkeypatch.setattr(comparison, "launched", lambda: (2, 2))
    assert compare(photos, tmp_path / "out") == 2
    assert "start it without torchrun" in capsys.readouterr().err
