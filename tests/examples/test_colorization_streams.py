"""`--stream` and `--pretrain` of `flowkit examples colorization`."""

import json
import re
import tarfile

import pytest
import torch

from .colorization_helpers import colorization, photographs, started, stopped

pytest.importorskip("lightning")
pytest.importorskip("kornia")
pytest.importorskip("webdataset")

from flowkit.cli._examples.colorization.choices import Settings
from flowkit.cli._examples.colorization.pretraining import pretrain

from flowkit.cli.output import console
from flowkit_cinn import colorization_cinn
from flowkit_cinn.pyramid import FeaturePyramid
from flowkit_cinn.translation.sources import open_source

QUICK = ("--preset", "tiny", "--batch-size", 2, "--samples", 2, "--device", "cpu")


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)  # the command's; conftest puts it back


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards for training, one of held-out photographs, and the folder that they were made of."""
    folder = tmp_path_factory.mktemp("shards")
    photos = sorted(photographs(folder / "photos", count=9).iterdir())
    for name, kept in (("train-0", photos[:3]), ("train-1", photos[3:6]), ("val-0", photos[6:])):
        with tarfile.open(folder / f"{name}.tar", "w") as shard:
            for photo in kept:
                shard.add(photo, photo.name)
    return folder


def test_a_streamed_run_goes_on_where_it_stopped(shards, tmp_path):
    data = ("--data", shards / "train-*.tar", "--stream", *QUICK)
    assert colorization(*data, "--steps", 1, "--pretrain", 2, "--out", tmp_path / "two") == 0
    short = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert short["data"] == {
        "name": str(shards / "train-*.tar"),
        "images": None,
        "held_out": 3,
        "split": "the shards val-* beside them",
        "skipped": [],
    }
    assert short["pretraining"]["steps"] == 2
    assert "streamed for training" in (tmp_path / "two" / "report.html").read_text()
    assert colorization("--resume", "--out", tmp_path / "two", "--steps", 4) == 0
    run = json.loads((tmp_path / "two" / "run.json").read_text())["settings"]
    assert (run["stream"], run["pretrain"], run["steps"]) == (True, 2, 4)
    with tarfile.open(tmp_path / "all.tar", "w") as shard:
        for photo in sorted((shards / "photos").iterdir())[6:]:
            shard.add(photo, photo.name)
    elsewhere = ("--held-out", tmp_path / "all.tar")
    assert colorization(*data, "--steps", 4, "--pretrain", 2, *elsewhere, "--out", tmp_path / "one") == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["pretraining"] == two["pretraining"]
    # The schedule knows the number of steps, so only the first step's loss is that of a run of one step.
    assert one["training"]["bits_per_dimension_first"] == short["training"]["bits_per_dimension_first"]
    assert one["held_out"]["images"] == two["held_out"]["images"] == 3


def test_the_net_is_trained_before_the_flow(shards, tmp_path):
    source, settings = open_source(shards / "photos"), Settings(preset="tiny", pretrain=3, batch_size=2, steps=9)
    torch.manual_seed(0)
    flow = colorization_cinn("tiny")
    (pyramid,) = [node for node in flow.network.modules() if isinstance(node, FeaturePyramid)]
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    done = pretrain(flow, source, settings, device="cpu", folder=tmp_path, show=console(error=True))
    assert len(done.losses) == 3
    assert not done.interrupted
    trained = torch.load(tmp_path / "pretraining.ckpt", weights_only=True)["model"]
    after = pyramid.state_dict()
    taken = [name for name in after if f"pyramid.{name}" in trained]
    assert taken
    assert all(torch.equal(after[name], trained[f"pyramid.{name}"]) for name in taken)
    assert any(not torch.equal(after[name], before[name]) for name in taken)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in taken)
    again = pretrain(flow, source, settings, device="cpu", folder=tmp_path, show=console(error=True))
    assert again.losses == done.losses


def test_ctrl_c_while_the_net_is_trained(shards, tmp_path):
    words = ("--data", shards / "train-*.tar", "--stream", *QUICK, "--steps", 1, "--out", tmp_path / "run")
    said = stopped(started(*words, "--pretrain", 300, cwd=tmp_path), "conditioning net ")
    done = int(re.search(r"Stopped after step (\d+) of 300 of pre-training", said)[1])
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    settings["settings"]["pretrain"] = done + 1  # so that the test need not wait for 300
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    assert colorization("--resume", "--out", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["pretraining"]["steps"] == done + 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stream", "--compare"), "--stream does not go together with --compare"),
        (("--pretrain", 3, "--compare"), "--pretrain does not go together with --compare"),
        (("--pretrain", 0), "--pretrain must be at least 1, got 0"),
        (("--pretrain", 2, "--preset", "no-conditioning-net"), "and 'no-conditioning-net' has none"),
        (("--held-out", "elsewhere"), "--held-out is for --stream"),
        (("--data", "nowhere-*.tar", "--stream"), "no shards are there: 'nowhere-*.tar' matches nothing"),
        (("--data", "pipe:cat a.tar", "--stream"), "no shards val-* lie beside it; name some by --held-out"),
        (("--data", "a.tar", "--stream", "--held-out", "nowhere"), "'nowhere' matches nothing"),
    ],
)
def test_what_does_not_go(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert colorization(*words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_torchrun_trains_no_net(monkeypatch, shards, tmp_path, capsys):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("TORCHELASTIC_RUN_ID", "a")):
        monkeypatch.setenv(name, value)
    assert colorization("--data", shards / "photos", *QUICK, "--pretrain", 1, "--out", tmp_path / "run") == 2
    assert "--pretrain runs in one process" in " ".join(capsys.readouterr().err.split())
