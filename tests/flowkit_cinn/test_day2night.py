"""The day-to-night network: its layers, its size, and that it is one flow in both directions."""

import math

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit_cinn import ConditionalCoupling, HaarDownsample, day2night_cinn
from flowkit_cinn.models import DAY2NIGHT

PARAMETERS = {"demo": 1_487_359, "paper": 20_938_819}
SIZES = (128, 64, 32, 16, 8, 4)


def nodes(flow, kind):
    return [m for m in flow.network.modules() if isinstance(m, kind)]


def test_paper_has_eight_couplings_and_five_downsamplings():
    with torch.device("meta"):
        flow = day2night_cinn("paper")
    couplings = nodes(flow, ConditionalCoupling)
    assert [c.in_shapes[0] for c in couplings] == [
        (3, 128, 128),
        (6, 64, 64),
        *[(12, 32, 32)] * 2,
        *[(24, 16, 16)] * 2,
        (48, 8, 8),
        (96, 4, 4),
    ]
    assert [h.in_shapes[0] for h in nodes(flow, HaarDownsample)] == [
        (3, 128, 128),
        (6, 64, 64),
        (12, 32, 32),
        (24, 16, 16),
        (48, 8, 8),
    ]
    assert {c.condition_shapes[0][1] for c in couplings} == set(SIZES)
    for coupling in couplings:
        for subnet in coupling.subnets:
            kinds = [type(layer) for layer in (subnet.first, *subnet.rest)][1:]
            assert kinds == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]


def test_paper_looks_at_a_resnet_18():
    with torch.device("meta"):
        pyramid = day2night_cinn("paper").network.nodes["pyramid"]
    assert pyramid.backbone.widths == (3, 64, 64, 128, 256, 512)
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in pyramid.backbone.modules()) == 16


@pytest.mark.parametrize("preset", list(DAY2NIGHT))
def test_parameter_counts(preset):
    with torch.device("meta"):
        assert sum(p.numel() for p in day2night_cinn(preset).parameters()) == PARAMETERS[preset]
    assert f"{PARAMETERS[preset]:,}" in day2night_cinn.__doc__


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("demo", {"size": 16, "photo_size": 16}), ("paper", {"size": 32, "photo_size": 32})],
)
def test_forward_and_inverse_are_one_flow(preset, sizes):
    flow = day2night_cinn(preset, **sizes)
    night, day = torch.randn(3, *flow.input_shapes["night"]), torch.rand(3, *flow.condition_shapes["day"])
    flow.initialize(night, given=day)
    flow.eval()
    for parameter in flow.network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3 / math.sqrt(parameter[0].numel()))
    z, log_det = flow(night, given=day)
    back, log_det_back = flow.inverse(z, given=day)
    torch.testing.assert_close(back, night, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det)
    other, _ = flow(night, given=day.flip(0))
    assert not torch.allclose(other[0], z[0])


def test_unconditional_is_the_same_flow_without_the_day():
    flow = day2night_cinn("demo", unconditional=True, size=16, photo_size=16)
    assert flow.condition_shapes == {}
    assert flow.latents == day2night_cinn("demo", size=16, photo_size=16).latents


def test_wrong_presets_and_overrides_are_named():
    with pytest.raises(fk.ConfigError, match=r"preset must be one of demo, paper, got 'big'"):
        day2night_cinn("big")
    with pytest.raises(fk.ConfigError, match=r"day2night_cinn can override .*, not depth"):
        day2night_cinn("demo", depth=3)
