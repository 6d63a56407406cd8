"""Two processes under torchrun equal one; this file, run as a script, is what they run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import flowkit as fk
from flowkit.errors import ConfigError, NonFiniteError, StorageError
from flowkit.training import FlowModule, Progress, batches, fit, read_checkpoint, streamed_batches
from flowkit.training._lightning import pl
from flowkit.training.processes import launched, synchronized_norms

if __package__:
    from .training_helpers import Points, number_shards
else:
    from training_helpers import Points, number_shards

WORLD, STEPS, TIMEOUT = 2, 5, 240
LONG, EARLY = 500, 3  # steps of a run that is interrupted, and those after which it is
SHARDS = (3, 1, 7, 5, 2, 6)  # samples in each
HELD_OUT = 20


def descent(parameters):
    """Not Adam, whose first steps turn gradients that are nothing but rounding into 1e-10."""
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def make_module():
    """Batch normalisation in a feature net and as a bijection, ActNorm, noise, an average of the weights, clipping."""
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
    graph.output("z", graph.add(fk.BatchNorm, x))
    return FlowModule(fk.Flow(graph), lr=1e-2, noise=0.1, ema=0.9, clip=1.0, optimizer=descent)


def train(checkpoint=None, steps=STEPS, bad=None, resume=False):
    """A run of batches of 8, over all processes."""
    module = make_module()
    loader = batches(Points(bad=bad), module, batch_size=8, steps=STEPS, shuffle=False)
    result = fit(
        module, loader, steps=steps, device="cpu", checkpoint=checkpoint, resume=resume, callbacks=[Progress()]
    )
    return {"flow": module.flow.state_dict(), "average": module.ema_flow().state_dict(), "losses": result.losses}


class Keep(pl.Callback):
    """What was validated."""

    def __init__(self):
        self.found = []

    def on_validation_end(self, trainer, pl_module):
        self.found.append(float(trainer.callback_metrics["val_loss"]))


def validated():
    """Validation twice in a run; each process has its share of the batches, the last of which is a small one."""
    module, keep, (rank, world) = make_module(), Keep(), place()
    held_out = DataLoader(Subset(Points(), range(rank, HELD_OUT, world)), batch_size=8 // world)
    loader = batches(Points(), module, batch_size=8, steps=4, shuffle=False)
    fit(module, loader, steps=4, device="cpu", callbacks=[keep], validation=held_out, validate_every=2)
    return keep.found


def streamed(shards, seen=None, split="items", steps=STEPS, checkpoint=None, resume=False):
    """A run of shards by two workers; `seen` are the samples that were trained on, in this process."""
    module, points = make_module(), Points()

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.extend(batch["index"].tolist())

    def decode(entries, number):
        return points[int(entries["num"])]

    loader = streamed_batches(
        shards, module, decode=decode, batch_size=8, steps=STEPS, split=split, shuffle=5, workers=2
    )
    callbacks = [] if seen is None else [Look()]
    result = fit(module, loader, steps=steps, device="cpu", callbacks=callbacks, checkpoint=checkpoint, resume=resume)
    return {"flow": module.flow.state_dict(), "losses": result.losses}


def place():
    """Rank and processes, before the first `fit` as well."""
    return (int(os.environ["RANK"]), WORLD) if launched() else (0, 1)


def close(a, b):
    return all(torch.allclose(a[name].double(), b[name].double(), rtol=1e-9, atol=1e-11) for name in a)


COMMAND = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD), __file__)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of two processes found, and what they said."""
    folder = tmp_path_factory.mktemp("processes")
    number_shards(folder, SHARDS)
    run = subprocess.run([*COMMAND, str(folder)], env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
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
    shards = [f"s-{number:02}.tar" for number in range(len(SHARDS))]
    assert answers[2] == ["0.pt", "1.pt", "c.ckpt", *shards, "shards.ckpt", "streamed.ckpt", "taken"]
    assert answers[1].count(f"training {STEPS}/{STEPS}: loss") == 2  # of the whole run and of the resumed one


def test_validation_is_that_of_all_rows(answers):
    want = validated()
    assert len(want) == 2
    assert want[0] != want[1]
    for answer in answers[0]:
        assert answer["validated"] == pytest.approx(want, rel=1e-9)


def test_streamed_shards_equal_one_process_without_loss_or_repetition(answers, tmp_path):
    want = streamed(number_shards(tmp_path, SHARDS))
    assert sorted(index for answer in answers[0] for index in answer["seen"]) == list(range(24))  # three steps of 8
    for answer in answers[0]:
        assert close(want["flow"], answer["streamed"]["flow"])
        assert answer["streamed"]["losses"] == pytest.approx(want["losses"], rel=1e-9)


def test_shards_of_ones_own_are_gone_on_with(answers):
    for answer in answers[0]:
        whole, resumed = answer["shards"]
        assert whole["losses"] == resumed["losses"]
        assert all(torch.equal(value, resumed["flow"][name]) for name, value in whole["flow"].items())
    assert answers[0][0]["shards"][0]["losses"] == answers[0][1]["shards"][0]["losses"]


def test_a_checkpoint_that_the_first_process_cannot_write_ends_all_with_a_sentence(answers):
    first, second = (answer["unwritten"] for answer in answers[0])
    assert "cannot be written (Is a directory); the one written before is kept" in first
    assert "cannot be written (in another process); the one written before is kept" in second


def test_ctrl_c_to_the_launcher_keeps_a_state_that_can_go_on(tmp_path):
    run = subprocess.Popen(
        [*COMMAND, str(tmp_path), "long"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until = time.monotonic() + TIMEOUT
        while not (tmp_path / "early").exists():
            assert run.poll() is None, run.communicate()[0][-3000:]
            assert time.monotonic() < until
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=TIMEOUT)
    finally:
        run.kill()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    assert found[0] == found[1], said[-3000:]
    assert found[0]["interrupted"]
    assert EARLY <= found[0]["steps"] < LONG
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "early", "long.ckpt"]
    steps = found[0]["steps"]
    assert len(read_checkpoint(tmp_path / "long.ckpt")["flowkit_training"]["losses"]) == steps
    whole, module = make_module(), make_module()
    fit(whole, batches(Points(), whole, batch_size=8, steps=LONG), steps=steps + 2, device="cpu")
    loader = batches(Points(), module, batch_size=8, steps=LONG)
    fit(module, loader, steps=steps + 2, device="cpu", checkpoint=tmp_path / "long.ckpt", resume=True)
    assert close(whole.flow.state_dict(), module.flow.state_dict())


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
    if sys.argv[2:] == ["long"]:

        class Early(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                time.sleep(0.1)
                if trainer.global_step == EARLY and rank == 0:
                    (folder / "early").touch()

        module = make_module()
        loader = batches(Points(), module, batch_size=8, steps=LONG)
        result = fit(module, loader, steps=LONG, device="cpu", checkpoint=folder / "long.ckpt", callbacks=[Early()])
        answer = {"interrupted": result.interrupted, "steps": result.steps}
        (folder / f"{rank}.json").write_text(json.dumps(answer))
        torch.distributed.destroy_process_group()
        sys.exit(130)
    found = {"whole": train(), "validated": validated(), "seen": []}
    shards = sorted(folder.glob("s-*.tar"))
    streamed(shards, found["seen"], steps=3, checkpoint=folder / "streamed.ckpt")
    found["streamed"] = streamed(shards, checkpoint=folder / "streamed.ckpt", resume=True)
    whole = streamed(shards, split="shards")
    streamed(shards, split="shards", steps=3, checkpoint=folder / "shards.ckpt")
    resumed = streamed(shards, split="shards", checkpoint=folder / "shards.ckpt", resume=True)
    found["shards"] = whole, resumed
    (folder / "taken").mkdir(exist_ok=True)  # where the checkpoint is to be
    try:
        train(checkpoint=folder / "taken", steps=2)
    except StorageError as error:
        found["unwritten"] = str(error)
    train(checkpoint=folder / "c.ckpt", steps=2)
    found["resumed"] = train(checkpoint=folder / "c.ckpt", resume=True)
    try:
        train(bad=11)  # the second step's fourth item: process 1's
    except NonFiniteError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
