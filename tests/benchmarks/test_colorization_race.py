"""The colorization race: all begin as one function, and see the same batches."""

import json

import pytest
import torch

pytest.importorskip("FrEIA")
pytest.importorskip("kornia")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from flowkit.cli._benchmarks._common.agreement import MismatchError
from flowkit.cli._benchmarks._common.published import small_network

from flowkit.cli._benchmarks import colorization_race
from flowkit.cli.app import run
from flowkit_cinn.translation.sources import open_source

LIMITS = {"bare subnets", "bare subnets, channels_last", "bare subnets, published form"}

pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # FrEIA's own


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def crops():
    return colorization_race.Crops(open_source("bundled"), 16, 2, seed=0)


def test_command_leaves_the_figures(tmp_path):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert run(["bench", "colorization-race", "--quick", "--json", str(path), "--plot", str(plot)]) == 0
    found = json.loads(path.read_text())
    steps, trained = (section["rows"] for section in found["sections"])
    names = [colorization_race.THEIRS, colorization_race.OURS, colorization_race.HALF]
    assert [row["network"] for row in trained] == names
    assert {row["network"] for row in steps} == {*names, *LIMITS}
    theirs, ours, half = (row["log-likelihood"] for row in trained)
    assert ours == pytest.approx(theirs, abs=0.01)
    assert trained[2]["to float32"] == half - ours
    assert all(len(losses) == 2 for losses in found["settings"]["losses"].values())
    assert plot.exists()


def test_equal_batches_give_equal_losses(crops):
    torch.manual_seed(0)
    theirs, ours, _ = colorization_race.entrants(small_network(quick=True)[0], crops)
    for number in range(3):
        batch = crops[number]  # not to 1e-6: Adam divides by small gradients, which float32 rounds
        assert ours.step(*batch) == pytest.approx(
            theirs.step(*batch), abs=5e-4
        )  # Adam divides by small gradients, which float32 rounds
    assert not torch.equal(crops[0][0], crops[1][0])
    assert torch.equal(crops[1][0], crops[1][0])


def test_another_function_is_not_raced(crops, monkeypatch):
    broken = colorization_race.FreiaTwin.forward
    monkeypatch.setattr(colorization_race.FreiaTwin, "forward", lambda self, x, photo: broken(self, 2 * x, photo))
    torch.manual_seed(0)
    with pytest.raises(MismatchError):
        colorization_race.entrants(small_network(quick=True)[0], crops)
