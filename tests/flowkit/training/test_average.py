"""The moving average of the weights, and a run that is killed and resumed with it."""

import copy
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from flowkit.errors import ConfigError, StorageError
from flowkit.training import FlowModule, MovingAverage, Schedule, batches, fit, read_checkpoint
from flowkit.training._lightning import pl

if __package__:
    from .training_helpers import Points, make_flow
else:  # the run that is killed
    from training_helpers import Points, make_flow

STEPS, KILLED_AFTER, TIMEOUT = 20, 10, 120


def make_module(ema=0.9, **options):
    random.seed(0)  # every generator's state is in a checkpoint
    np.random.seed(0)  # noqa: NPY002
    schedule = Schedule("cosine", warmup=2)
    options = {"lr": 1e-2, "noise": 0.1, "clip": 1.0, "schedule": schedule, "ema": ema, **options}
    return FlowModule(make_flow(dropout=0.3, norm=True), **options)


def run(module, steps=STEPS, **options):
    return fit(module, batches(Points(), module, batch_size=8, steps=steps), steps=steps, device="cpu", **options)


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    """Whether two nests of tensors and plain data are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Watch(pl.Callback):
    """The weights and statistics after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(copied(pl_module.flow))


class Kill(pl.Callback):
    """In the middle of a step."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


def test_it_is_the_average_of_the_formula():
    module, watch = make_module(ema=0.5), Watch()
    run(module, 6, callbacks=[watch])
    for name in ("network.nodes.norm.running_mean", "network.nodes.affine_coupling_1.subnets.0.first.weight"):
        expected = watch.seen[0][name]
        for step, state in enumerate(watch.seen[1:], 2):
            decay = min(0.5, step / (step + 9))
            expected = decay * expected + (1 - decay) * state[name]
        averaged = module.ema_flow().state_dict()[name]
        assert torch.allclose(averaged, expected, rtol=1e-12, atol=0)
        assert not torch.equal(averaged, module.flow.state_dict()[name])


def test_the_average_changes_nothing_in_training():
    with_it = make_module()
    losses = run(with_it, 5).losses
    without = make_module(ema=None)
    assert run(without, 5).losses == losses
    assert same(copied(with_it.flow), copied(without.flow))


def test_the_weights_come_back_bit_for_bit_after_an_error_too():
    module = make_module()
    run(module, 5)
    before, averaged = copied(module.flow), module.ema_flow()
    with module.averaged() as flow:
        assert flow is module.flow
        assert same(copied(flow), copied(averaged))
    assert same(copied(module.flow), before)
    with pytest.raises(ZeroDivisionError), module.averaged():
        1 / 0  # noqa: B018
    assert same(copied(module.flow), before)
    assert not same(copied(averaged), before)
    assert not averaged.training


def test_counters_and_constants_are_the_flows_own():
    module = make_module()
    run(module, 5)
    name = "network.nodes.norm.num_batches_tracked"
    assert module.ema_flow().state_dict()[name] == module.flow.state_dict()[name] == 5


def test_a_bound_distribution_sees_the_averaged_weights():
    module = make_module()
    run(module, 5)
    x, label = torch.randn(3, 4), torch.eye(3)
    with torch.no_grad():
        posterior = module.flow.given(label)
        own = posterior.log_prob(x)
        with module.averaged():
            averaged = posterior.log_prob(x)
        assert torch.equal(averaged, module.ema_flow().log_prob(x, given=label))
        assert not torch.equal(own, averaged)
        assert torch.equal(posterior.log_prob(x), own)


def test_validation_with_the_average_if_it_is_asked_for():
    values = {}
    for asked in (False, True):
        module = make_module(noise=0.0, validate_average=asked)
        run(module, 5)
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.eye(3).repeat(2, 1)
        module._log = lambda found, rows, asked=asked: values.update({asked: found["val_loss"]})
        with torch.no_grad():
            module.on_validation_epoch_start()
            module.validation_step(batch, 0)
            module.on_validation_epoch_end()
            for flow, is_it in ((module.flow, not asked), (module.ema_flow(), asked)):
                expected = -flow.log_prob(batch[0], given=batch[1]).mean() / 4
                assert (values[asked] == pytest.approx(float(expected), rel=1e-12)) is is_it


def test_without_an_average():
    module = make_module(ema=None)
    with module.averaged() as flow:
        assert flow is module.flow
    with pytest.raises(ConfigError, match="no average of the weights"):
        module.ema_flow()
    with pytest.raises(ConfigError, match="validate_average needs an average"):
        make_module(ema=None, validate_average=True)
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="decay of the average"):
            make_module(ema=decay)


def test_frozen_parameters_and_other_modules_averages():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    average = MovingAverage(net, 0.9)
    average.update()
    assert average.state()["values"].keys() == {"weight"}
    with pytest.raises(StorageError, match=r"average has 'weight' of \(2, 2\), the flow has not"):
        MovingAverage(nn.Linear(3, 3), 0.9).load(average.state())


def test_a_checkpoint_without_an_average_begins_it(tmp_path):
    file = tmp_path / "c.ckpt"
    run(make_module(ema=None), 4, checkpoint=file)
    module = make_module()
    run(module, 6, checkpoint=file, resume=True)
    assert module.average.steps == 2


def test_a_run_that_was_killed_resumes_to_the_same_bits(tmp_path):
    """Weights, optimiser, schedule, average, random state, order of the data: SIGKILL in another process."""
    whole, broken = tmp_path / "whole.ckpt", tmp_path / "broken.ckpt"
    expected = run(make_module(), checkpoint=whole)
    command = [sys.executable, __file__, str(broken)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_checkpoint(broken)["flowkit_training"]["losses"]) == KILLED_AFTER
    torch.manual_seed(99)  # another process's random state
    module = make_module()
    result = run(module, checkpoint=broken, resume=True)
    assert result.losses == expected.losses
    one, other = read_checkpoint(whole), read_checkpoint(broken)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "flowkit_training", "global_step"):
        assert same(one[key], other[key]), key
    assert one["flowkit_training"]["average"]["steps"] == STEPS


def test_equality_of_checkpoints_can_fail():
    module = make_module()
    run(module, 2)
    state = copy.deepcopy(module.average.state())
    assert same(state, module.average.state())
    next(iter(state["values"].values())).view(-1)[0] += 1e-12
    assert not same(state, module.average.state())


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    run(make_module(), checkpoint=sys.argv[1], save_every=0.0, callbacks=[Kill()])  # saved before every step


def test_the_average_can_be_installed_for_good():
    net = torch.nn.Linear(2, 2)
    average = MovingAverage(net, 0.9)
    for _ in range(3):
        with torch.no_grad():
            net.weight.add_(1.0)
        average.update()
    with average.applied():
        expected = net.weight.detach().clone()
    assert not torch.equal(net.weight, expected)
    average.install()
    assert torch.equal(net.weight, expected)
