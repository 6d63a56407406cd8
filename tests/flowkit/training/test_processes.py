"""Two processes under torchrun equal one; this file, run as a script, is what they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.errors import ConfigError, NonFiniteError
from flowkit.training import FlowModule, Progress, batches, fit
from flowkit.training.processes import launched, synchronized_norms

if __package__:
    from .training_helpers import Points
else:
    from training_helpers import Points

WORLD, STEPS, TIMEOUT = 2, 5, 240


def descent(parameters):
    """Not Adam, whose first steps turn gradients that are nothing but rounding into 1e-10."""
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def make_module():
    """Batch normalisation, ActNorm, noise, an average of the weights, clipping."""
    torch.manual_seed(0)
    graph = fk.Graph()
    label = graph.condition("label", (3,))
    feature = graph.features(
        nn.Sequential(nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh()), label, name="net"
    )
    x = graph.add(fk.ActNorm, graph.input("x", (4,)))
    for _ in range(2):
        x = graph.add(fk.AffineCoupling, x, given=feature, subnet=fk.MLP(hidden=(8,)))
        x = graph.add(fk.Permute, x)
    graph.output("z", x)
    return FlowModule(fk.Flow(graph), lr=1e-2, noise=0.1, ema=0.9, clip=1.0, optimizer=descent)


def train(checkpoint=None, steps=STEPS, bad=None, resume=False):
    """A run of batches of 8, over all processes."""
    module = make_module()
    loader = batches(Points(bad=bad), module, batch_size=8, steps=STEPS, shuffle=False)
    result = fit(
        module, loader, steps=steps, device="cpu", checkpoint=checkpoint, resume=resume, callbacks=[Progress()]
    )
    return {"flow": module.flow.state_dict(), "average": module.ema_flow().state_dict(), "losses": result.losses}


def close(a, b):
    return all(torch.allclose(a[name].double(), b[name].double(), rtol=1e-9, atol=1e-11) for name in a)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of two processes found, and what they said."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    run = subprocess.run(
        [*command, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]
    return found, run.stderr + run.stdout, sorted(path.name for path in folder.iterdir())


def test_two_processes_equal_one(answers):
    want = train()
    assert not close(want["flow"], make_module().flow.state_dict())
    for answer in answers[0]:
        assert close(want["flow"], answer["whole"]["flow"])
        assert close(want["average"], answer["whole"]["average"])
        assert answer["whole"]["losses"] == pytest.approx(want["losses"], rel=1e-10)


def test_all_processes_have_the_same_bits_also_after_a_restart(answers):
    first, second = answers[0]
    for kind in ("flow", "average"):
        for name, value in first["whole"][kind].items():
            assert torch.equal(value, second["whole"][kind][name])
            assert torch.equal(value, first["resumed"][kind][name])
    assert first["resumed"]["losses"] == first["whole"]["losses"] == second["resumed"]["losses"]


def test_the_process_with_bad_data_is_named_in_all(answers):
    for answer in answers[0]:
        assert "step 2 was not applied" in answer["error"]
        assert "the data 'x' has nan at index (1, 0) of the batch (in process 1)" in answer["error"]


def test_only_the_first_writes_and_prints(answers):
    assert answers[2] == ["0.pt", "1.pt", "c.ckpt"]
    assert answers[1].count(f"training {STEPS}/{STEPS}: loss") == 2  # of the whole run and of the resumed one


def test_the_environment(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launched() == (4, 2)
    with pytest.raises(ConfigError, match="every process its own device"):
        fit(make_module(), [], steps=1, device="cuda:0")
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match="RANK=4"):
        launched()


def test_norms_are_as_before_afterwards():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2))
    names, x = list(net.state_dict()), torch.randn(5, 2)
    with synchronized_norms(net):
        assert type(net[0]) is not nn.BatchNorm1d
        assert list(net.state_dict()) == names
        alone = net[0](x)
    assert [type(norm) for norm in net] == [nn.BatchNorm1d, nn.BatchNorm2d]
    assert torch.equal(alone, nn.BatchNorm1d(2)(x))

    class Mine(nn.BatchNorm1d):
        pass

    with pytest.raises(ConfigError, match="'0' is a Mine, which cannot be synchronised"):
        synchronized_norms(nn.Sequential(Mine(2))).__enter__()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    found = {"whole": train()}
    train(checkpoint=folder / "c.ckpt", steps=2)
    found["resumed"] = train(checkpoint=folder / "c.ckpt", resume=True)
    try:
        train(bad=11)  # the second step's fourth item: process 1's
    except NonFiniteError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
