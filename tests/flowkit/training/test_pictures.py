"""Looking at a flow while it is trained changes nothing, and sees what it should."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowkit.errors import ConfigError
from flowkit.training import FlowModule, Pictures, batches, fit

from .training_helpers import Points, make_flow


def run(*callbacks, ema=0.9):
    module = FlowModule(make_flow(dropout=0.3, norm=True), lr=1e-2, noise=0.1, ema=ema)
    fit(module, batches(Points(), module, batch_size=8, steps=6), steps=6, device="cpu", callbacks=callbacks)
    return module


def test_a_run_with_pictures_gives_the_bits_of_one_without():
    seen = []

    def draw(flow, step):
        seen.append((step, flow.sample((2,), given=torch.eye(3)).shape, flow.training, torch.is_grad_enabled()))
        np.random.random(), random.random()  # noqa: NPY002

    with_pictures = run(Pictures(draw, every=3, at=(1,)))
    assert seen == [(step, (2, 3, 4), False, False) for step in (1, 3, 6)]
    without = run()
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_pictures.state_dict()[name])
    assert with_pictures.losses == without.losses


def test_it_sees_the_averaged_weights():
    seen = {}
    average = run(Pictures(lambda flow, step: seen.update(copied(flow)), at=(6,)))
    for name, value in average.ema_flow().state_dict().items():
        assert torch.equal(value, seen[name])
    assert any(not torch.equal(value, seen[name]) for name, value in average.flow.state_dict().items())
    plain = run(Pictures(lambda flow, step: seen.update(copied(flow)), at=(6,)), ema=None)
    for name, value in plain.flow.state_dict().items():
        assert torch.equal(value, seen[name])


def test_modes_and_random_numbers_are_put_back_where_drawing_fails():
    module = FlowModule(make_flow(norm=True)).train()
    next(iter(module.flow.network.modules())).eval()  # a mode of its own
    before, state = [m.training for m in module.flow.modules()], torch.get_rng_state()

    def fail(flow, step):
        flow.sample((2,), given=torch.eye(3))
        raise RuntimeError("no colours left")

    with pytest.raises(RuntimeError, match="no colours left"):
        Pictures(fail, every=1).on_train_batch_end(
            SimpleNamespace(global_step=1, is_global_zero=True), module, None, None, 0
        )
    assert [m.training for m in module.flow.modules()] == before
    assert len(set(before)) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_never_is_refused():
    for options in ({}, {"every": 0}, {"at": (0,)}):
        with pytest.raises(ConfigError, match="must be 1 or more"):
            Pictures(print, **options)


def copied(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}
