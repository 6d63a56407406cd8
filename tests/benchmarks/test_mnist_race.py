"""The MNIST race: both begin as one function, see the same batches, and are clocked and judged alike."""

import json
import math

import pytest
import torch

pytest.importorskip("FrEIA")
pytest.importorskip("sklearn")

from flowkit.cli._benchmarks._common import racers
from flowkit.cli._benchmarks._common.agreement import MismatchError
from flowkit.cli._benchmarks._common.options import Options
from flowkit.cli._examples.mnist.digits import open_digits
from torch.nn import functional as F

import flowkit as fk
from flowkit.cli._benchmarks import mnist_race
from flowkit.cli.app import run

pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # FrEIA's own


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def both():
    """The two racers at the start, small, on scikit-learn's digits."""
    settings = mnist_race.Race(0.01, 0.1, 16, "no", None, 0)
    return mnist_race.entrants(open_digits(None), settings, Options(None, None, True, 0))[0]


def test_command_leaves_the_figures(tmp_path, capsys):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    words = ("--minutes", "0.012", "--json", str(path), "--plot", str(plot))
    assert run(["bench", "mnist-race", "--quick", *words]) == 0
    assert "flowkit's alone: torch.optim.Adam(fused=True)" in " ".join(capsys.readouterr().out.split())
    found = json.loads(path.read_text())
    raced, judged, steps = (section["rows"] for section in found["sections"])
    assert [row["network"] for row in raced] == [mnist_race.THEIRS, mnist_race.OURS]
    assert raced[1]["times the steps"] == raced[1]["steps"] / raced[0]["steps"]
    assert raced[1]["met"] == (raced[1]["times the steps"] >= 1.5)
    for row in raced:
        turns = found["settings"]["turns"][row["network"]]
        assert sum(turn["seconds"] for turn in turns) >= 0.72
        assert sum(turn["steps"] for turn in turns) == row["steps"]
        curve = found["settings"]["curves"][row["network"]]
        assert len(curve["loss"]) == len(curve["seconds"]) == row["steps"]
        assert curve["seconds"][-1] == pytest.approx(sum(turn["seconds"] for turn in turns))
    theirs, ours, gain = judged
    assert gain["log-likelihood"] == pytest.approx(ours["log-likelihood"] - theirs["log-likelihood"], abs=1e-6)
    assert theirs["loss"] == pytest.approx(-theirs["log-likelihood"] - 0.5 * math.log(2 * math.pi))
    assert {row["training step"] for row in steps} >= {mnist_race.THEIRS, "FrEIA, Adam fused", "bare subnets"}
    assert plot.exists()


def test_both_take_the_same_steps(both):
    theirs, ours = both
    for number in range(6):
        a, b = (racer.step(*racer.batches[number]) for racer in both)
        assert a == pytest.approx(b, rel=1e-5)
    x, labels = theirs.batches[7]
    with torch.no_grad():
        torch.testing.assert_close(
            ours.density.log_prob(x, labels), theirs.density.log_prob(x, labels), rtol=1e-4, atol=0
        )


def test_authors_network_is_the_recipe():
    network = racers.authors_network(28, 20, 512, 1.0)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 24_341_120
    couplings = [m for m in network.modules() if type(m).__name__ == "GLOWCouplingBlock"]
    assert len(couplings) == sum(type(m).__name__ == "PermuteRandom" for m in network.modules()) == 20
    assert all(m.clamp == 1.0 and m.conditional for m in couplings)


def test_networks_that_differ_are_not_raced(monkeypatch):
    monkeypatch.setattr(mnist_race, "begin_alike", lambda network, flow: None)
    settings = mnist_race.Race(0.01, 0.1, 16, "no", None, 0)
    with pytest.raises(MismatchError, match="log-likelihood"):
        mnist_race.entrants(open_digits(None), settings, Options(None, None, True, 0))


def test_batches_depend_on_their_number_alone():
    x, labels = torch.arange(10.0).reshape(10, 1), torch.arange(10)
    a, b = (racers.Batches(x, labels, 4, seed=3) for _ in range(2))
    backwards = [b[number] for number in (3, 2, 1, 0)][::-1]
    for number, (noisy, of) in enumerate(backwards):
        torch.testing.assert_close(a[number][0], noisy, rtol=0, atol=0)
        torch.testing.assert_close(a[number][1], of, rtol=0, atol=0)
        assert (noisy.flatten() - of).abs().max() < 1  # a digit with its own label
        assert (noisy.flatten() - of).abs().max() > 0
    assert len(torch.cat([backwards[0][1], backwards[1][1]]).unique()) == 8  # an epoch repeats nothing
    assert not torch.equal(torch.cat([b[0][1], b[1][1]]), torch.cat([b[2][1], b[3][1]]))


class Slow:
    """A racer's training that takes so many seconds a step, by a clock of its own."""

    def __init__(self, seconds, order):
        self.seconds, self.clock, self.turns, self.order = seconds, 0.0, [], order

    def train(self, seconds):
        steps = max(1, math.ceil(seconds / self.seconds))
        self.clock += steps * self.seconds
        self.turns.append(steps)
        self.order.append(self)


def test_turns_give_each_the_same_time():
    order = []
    slow, fast = Slow(0.5, order), Slow(0.25, order)
    done = list(racers.race([slow, fast], 10.0, 2.0))
    assert sum(done) == pytest.approx(20.0)
    assert (sum(slow.turns), sum(fast.turns)) == (20, 40)
    assert order == [slow, fast, fast, slow] * 2 + [slow, fast]  # neither is always first


def test_gradients_are_scaled_only_above_the_limit():
    for norm in (3.0, 10.0, 40.0):
        ours, theirs = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
        for parameter in (ours, theirs):
            parameter.grad = torch.full((4,), norm / 2)
        racers.clip_where_needed(racers.CLIP)([ours])
        torch.nn.utils.clip_grad_norm_([theirs], racers.CLIP)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)


def test_freia_has_the_names_of_a_flow(both):
    theirs, ours = both
    x, labels = theirs.batches[0]
    wanted = -theirs.loss(x, labels) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(theirs.density.log_prob(x, labels).mean() / theirs.density.dim, wanted)
    z, log_jacobian = theirs.density.network(x, c=[F.one_hot(labels, 10).float()])
    torch.testing.assert_close(z, ours.density(x, given=labels)[0], rtol=1e-4, atol=1e-4)
    assert log_jacobian.shape == (16,)


def test_race_without_freia(monkeypatch):
    monkeypatch.setattr(mnist_race.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fk.MissingDependencyError, match="needs FrEIA"):
        mnist_race.command.callback(
            data=None,
            minutes=1,
            turn=1,
            batch_size=2,
            compiled="no",
            count=None,
            rounds=1,
            json=None,
            plot=None,
            force=False,
            quick=True,
            threads=None,
            seed=0,
        )
