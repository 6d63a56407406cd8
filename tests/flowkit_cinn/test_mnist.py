"""The digits' network: its layers, its size, its start, and that it is one flow in both directions."""

import math

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit_cinn import mnist_cinn
from flowkit_cinn.models import MNIST

PARAMETERS = {"digits": 220_160, "small": 6_093_120, "paper": 24_341_120}
UNCONDITIONAL = {"digits": 199_680, "small": 6_041_920, "paper": 24_136_320}


def layers(flow):
    nodes = [node for node in flow.network.graph.nodes if node.kind == "bijection"]
    return [(node.cls.__name__, *(wire.shape for wire in node.outputs)) for node in nodes]


def test_paper_layer_list():
    with torch.device("meta"):
        flow = mnist_cinn("paper")
    assert layers(flow) == [("Flatten", (784,)), *[("Permute", (784,)), ("AffineCoupling", (784,))] * 20]
    assert flow.input_shapes == {"digit": (1, 28, 28)}
    assert flow.condition_shapes == {"label": ()}
    couplings = [m for m in flow.network.modules() if isinstance(m, fk.AffineCoupling)]
    assert {(c.clamp, c.limit, len(c.subnets), c.condition_shapes) for c in couplings} == {("atan", 1.0, 2, ((10,),))}
    for coupling in couplings:
        for subnet in coupling.subnets:
            assert [tuple(p.shape) for p in subnet.parameters()] == [(512, 392 + 10), (512,), (784, 512), (784,)]
            assert sum(isinstance(module, nn.ReLU) for module in subnet.modules()) == 1


@pytest.mark.parametrize("preset", list(MNIST))
def test_parameter_counts(preset):
    for expected, unconditional in ((PARAMETERS, False), (UNCONDITIONAL, True)):
        with torch.device("meta"):
            flow = mnist_cinn(preset, unconditional=unconditional)
        assert sum(p.numel() for p in flow.parameters()) == expected[preset]
        assert bool(flow.condition_shapes) is not unconditional
    assert f"{PARAMETERS[preset]:,}" in mnist_cinn.__doc__


def test_the_counts_are_those_of_the_recipe():
    for name, recipe in MNIST.items():
        half, classes = recipe.size**2 // 2, recipe.classes
        subnet = (half + classes + 1) * recipe.hidden + (recipe.hidden + 1) * 2 * half
        assert PARAMETERS[name] == recipe.blocks * 2 * subnet


def test_it_starts_as_the_authors_do():
    flow = mnist_cinn("digits")
    for parameter in flow.parameters():
        assert parameter.abs().max() > 0
        if parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.15)
    assert all(p.abs().max() == 0 for n, p in mnist_cinn("digits", start=None).named_parameters() if "rest" in n)


def test_the_clamp_is_the_authors():
    """log-scale = clamp x 0.636 x atan(r / clamp), FrEIA's."""
    flow = mnist_cinn("digits", blocks=1, start=0.3)
    coupling = next(m for m in flow.network.modules() if isinstance(m, fk.AffineCoupling))
    x, label = torch.randn(3, 64), torch.eye(10)[:3]
    r, _ = coupling.subnets[0](x[:, 32:], label).chunk(2, 1)
    expected = 0.636 * torch.atan(r)
    torch.testing.assert_close(coupling.log_scales(x, label)[:, :32], expected, rtol=2e-3, atol=0)


def test_it_is_exact_and_the_label_matters():
    flow = mnist_cinn("digits", size=4, blocks=3, hidden=8, start=0.3)
    x, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 8, 9])
    z, log_det = flow(x, given=labels)
    back, log_det_back = flow.inverse(z, given=labels)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det, -log_det_back)
    jacobian = torch.autograd.functional.jacobian(lambda one: flow(one, given=labels[:1])[0].flatten(), x[:1])
    torch.testing.assert_close(jacobian.reshape(16, 16).slogdet()[1], log_det[0])
    assert (flow.log_prob(x, given=labels) - flow.log_prob(x, given=labels.flip(0)))[[0, 1, 3, 4]].abs().min() > 1e-3
    assert math.isfinite(flow.log_prob(x, given=labels).sum().item())


def test_labels_out_of_range_and_unknown_presets_are_refused():
    flow = mnist_cinn("digits", blocks=1)
    with pytest.raises(fk.ConditionError, match="labels from 0 to 9, got 10"):
        flow.log_prob(torch.zeros(2, 1, 8, 8), given=torch.tensor([3, 10]))
    with pytest.raises(fk.ConfigError, match="preset must be one of digits, small, paper"):
        mnist_cinn("huge")
    with pytest.raises(fk.ConfigError, match="mnist_cinn can override size, classes"):
        mnist_cinn("digits", depth=3)


def test_it_is_saved_and_loaded(tmp_path):
    flow = mnist_cinn("digits")
    fk.save(flow, tmp_path / "model.safetensors")
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([4, 7])
    loaded = fk.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.log_prob(x, given=labels), flow.log_prob(x, given=labels))
