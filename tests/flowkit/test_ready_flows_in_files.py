"""Every ready flow, and every preset of the plugin, to a file and back to the last bit."""

import pytest
import torch

import flowkit as fk
import flowkit_cinn
from flowkit.flows import __all__ as READY
from flowkit.storage import named_state
from flowkit_cinn.models import COLORIZATION, DAY2NIGHT, MNIST

SHAPES = [4, (2, 8, 8)]  # what a ready flow does not take, it refuses
CONDITIONS = [None, 3, {"a": 2, "b": (1,)}]


def same(flow, path):
    fk.save(flow.eval(), path)
    loaded = fk.load(path)
    assert loaded.network.graph.to_dict() == flow.network.graph.to_dict()
    assert repr(loaded) == repr(flow)
    ours, theirs = dict(named_state(flow)), dict(named_state(loaded))
    assert list(ours) == list(theirs)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    return loaded


def seeded(flow, x, given):
    """z and log-det; the log-dets of some are estimates, which are drawn."""
    torch.manual_seed(0)
    return flow(x, given=given)


@pytest.mark.parametrize("name", READY)
def test_every_ready_flow(name, tmp_path):
    make, tried = getattr(fk.flows, name), 0
    for shape in SHAPES:
        for condition in CONDITIONS:
            try:
                flow = make(shape, condition=condition)
            except (fk.FlowkitError, TypeError):
                continue
            tried += 1
            with torch.no_grad():
                for p in flow.parameters():
                    p.add_(0.1 * torch.randn_like(p))
            loaded = same(flow, tmp_path / "flow.safetensors")
            x = 0.3 + 0.4 * torch.rand(2, *flow.input_shapes["x"])
            given = {n: torch.randn(2, *s) for n, s in flow.condition_shapes.items()} or None
            with torch.no_grad():
                for a, b in zip(seeded(flow, x, given), seeded(loaded, x, given), strict=True):
                    assert torch.equal(a, b)
    assert tried > 0


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        (name, preset)
        for name, presets in (("colorization_cinn", COLORIZATION), ("day2night_cinn", DAY2NIGHT), ("mnist_cinn", MNIST))
        for preset in presets
    ],
)
def test_every_preset(name, preset, tmp_path):
    torch.set_default_dtype(torch.float32)
    flow = getattr(flowkit_cinn, name)(preset)
    same(flow, tmp_path / "flow.safetensors")
