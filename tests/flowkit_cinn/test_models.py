import math

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit_cinn import ColorizationRecipe, ConditionalCoupling, FeaturePyramid, Level, colorization_cinn
from flowkit_cinn.models import COLORIZATION
from flowkit_cinn.pyramid import BlockCondition

PARAMETERS = {
    "demo": 1_413_050,
    "tiny": 1_569_074,
    "small": 11_010_760,
    "paper": 66_104_400,
    "paper-code": 71_723_152,
    "no-conditioning-net": 471_594,
}
UNCONDITIONAL = {
    "demo": 434_058,
    "tiny": 556_722,
    "small": 6_401_160,
    "paper": 13_499_664,
    "paper-code": 8_389_200,
    "no-conditioning-net": 434_058,
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def layers(flow):
    """The data's way through the flow: each node's class and the shapes that it makes."""
    nodes = [node for node in flow.network.graph.nodes if node.kind == "bijection"]
    return [(node.cls.__name__, *(wire.shape for wire in node.outputs)) for node in nodes]


def blocks(coupling, shape, times, permuted=True):
    return [(coupling, shape), ("Permute", shape)] * times if permuted else [(coupling, shape)] * times


def test_small_layer_list():
    flow = colorization_cinn("small")
    haar = "HaarDownsample"
    assert layers(flow) == [
        *blocks("AffineCoupling", (2, 64, 64), 2, permuted=False),
        (haar, (8, 32, 32)),
        *blocks("AffineCoupling", (8, 32, 32), 4),
        ("Split", (2, 32, 32), (6, 32, 32)),
        (haar, (8, 16, 16)),
        *blocks("AffineCoupling", (8, 16, 16), 4),
        ("Split", (4, 16, 16), (4, 16, 16)),
        ("Flatten", (1024,)),
        *blocks("AffineCoupling", (1024,), 4),
    ]
    assert flow.input_shapes == {"ab": (2, 64, 64)}
    assert flow.condition_shapes == {"photo": (1, 64, 64)}
    assert {name: shape for name, (_, shape) in flow.latents.items()} == {
        "detail_32": (6, 32, 32),
        "detail_16": (4, 16, 16),
        "coarse": (1024,),
    }


def test_small_subnets_clamps_and_conditions():
    flow = colorization_cinn("small")
    couplings = [module for module in flow.network.modules() if isinstance(module, fk.AffineCoupling)]
    assert [c.limit for c in couplings] == [1.0] * 2 + [1.0] * 4 + [0.6] * 4 + [0.6] * 4
    assert {(c.clamp, len(c.subnets)) for c in couplings} == {("atan", 2)}
    assert [c.condition_shapes for c in couplings] == [
        *[((64, 64, 64),)] * 2,
        *[((128, 32, 32),)] * 4,
        *[((128, 16, 16),)] * 4,
        *[((512,),)] * 4,
    ]
    weights = [[tuple(p.shape) for p in c.subnets[0].parameters() if p.dim() > 1] for c in couplings]
    assert weights == [
        *[[(32, 65, 3, 3), (2, 32, 3, 3)]] * 2,
        *[[(64, 132, 1, 1), (8, 64, 1, 1)], [(64, 132, 3, 3), (8, 64, 3, 3)]] * 2,
        *[[(128, 132, 1, 1), (8, 128, 1, 1)], [(128, 132, 3, 3), (8, 128, 3, 3)]] * 2,
        *[[(512, 1024), (1024, 512)]] * 4,
    ]
    haars = [m for m in flow.network.modules() if type(m).__name__ == "HaarDownsample"]
    assert [(haar.rebalance, haar.group) for haar in haars] == [(0.5, "channel")] * 2


def test_small_starts_as_the_authors_do():
    flow = colorization_cinn("small")
    for coupling in (m for m in flow.network.modules() if isinstance(m, fk.AffineCoupling)):
        for parameter in coupling.parameters():
            assert parameter.abs().max() > 0
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.15)
    pyramid = next(m for m in flow.network.modules() if isinstance(m, FeaturePyramid))
    bound = 1 / math.sqrt(9 * 128)  # PyTorch's default, uniform
    assert 0.9 * bound < pyramid.backbone.stages[2][1].weight.abs().max() <= bound


def test_paper_layer_list():
    with torch.device("meta"):
        flow = colorization_cinn("paper")
    haar, ccb = "HaarDownsample", "ConditionalCoupling"
    assert layers(flow) == [
        *blocks(ccb, (2, 64, 64), 4),
        (haar, (8, 32, 32)),
        ("Split", (4, 32, 32), (4, 32, 32)),
        *blocks(ccb, (4, 32, 32), 6),
        (haar, (16, 16, 16)),
        ("Split", (8, 16, 16), (8, 16, 16)),
        *blocks(ccb, (8, 16, 16), 6),
        (haar, (32, 8, 8)),
        ("Split", (16, 8, 8), (16, 8, 8)),
        *blocks(ccb, (16, 8, 8), 6),
        ("Flatten", (1024,)),
        *blocks(ccb, (1024,), 8),
    ]
    couplings = [m for m in flow.network.modules() if isinstance(m, ConditionalCoupling)]
    assert len(couplings) == 22 + 8
    assert [c.subnets[0].first.weight.shape[0] for c in couplings] == [32] * 4 + [64] * 6 + [128] * 6 + [256] * 6 + [
        512
    ] * 8
    assert couplings[-1].condition_shapes == ((512,),)
    assert flow.condition_shapes == {"photo": (1, 256, 256)}


def test_paper_code_layer_list():
    with torch.device("meta"):
        flow = colorization_cinn("paper-code")

    def turned(shape, times):
        return [("AffineCoupling", shape), ("FixedRotation", shape)] * times

    assert layers(flow) == [
        *turned((2, 64, 64), 4),
        ("Squeeze", (8, 32, 32)),
        *turned((8, 32, 32), 2 + 6),
        ("Squeeze", (32, 16, 16)),
        *turned((32, 16, 16), 2),
        ("Split", (16, 16, 16), (16, 16, 16)),
        *turned((16, 16, 16), 6),
        ("Squeeze", (64, 8, 8)),
        *turned((64, 8, 8), 2),
        ("Split", (32, 8, 8), (32, 8, 8)),
        *turned((32, 8, 8), 6),
        ("HaarDownsample", (128, 4, 4)),
        *turned((128, 4, 4), 2),
        ("Split", (32, 4, 4), (96, 4, 4)),
        ("Flatten", (512,)),
        *blocks("AffineCoupling", (512,), 8),
    ]
    couplings = [m for m in flow.network.modules() if isinstance(m, fk.AffineCoupling)]
    assert {(c.clamp, c.limit, len(c.subnets)) for c in couplings} == {("atan", 1.5, 2)}
    mixers = [c for c in couplings if not c.condition_shapes]
    assert [(c.in_shapes[0][0], tuple(c.subnets[0].first.weight.shape)) for c in mixers] == [
        *[(8, (64, 4, 1, 1))] * 2,
        *[(32, (128, 16, 1, 1))] * 2,
        *[(64, (256, 32, 1, 1))] * 2,
        *[(128, (256, 64, 1, 1))] * 2,
    ]
    assert [c.condition_shapes for c in couplings if c.condition_shapes] == [
        *[((128, 64, 64),)] * 4,
        *[((128, 32, 32),)] * 6,
        *[((128, 16, 16),)] * 6,
        *[((128, 8, 8),)] * 6,
        *[((512,),)] * 8,
    ]
    own = [node for node in flow.network.graph.nodes if node.cls is BlockCondition]
    assert len(own) == 22 + 8
    assert len({id(node.module) for node in own}) == 22 + 8  # nobody shares one
    strides = [[m.stride[0] for m in node.module.modules() if isinstance(m, nn.Conv2d)] for node in own]
    assert strides == [[1]] * 4 + [[2]] * 6 + [[2, 2]] * 6 + [[2, 2, 2]] * 6 + [[2, 1]] * 8
    assert {wire.shape for node in own for wire in node.inputs} == {(256, 64, 64)}
    assert {name: shape for name, (_, shape) in flow.latents.items()} == {
        "detail_16": (16, 16, 16),
        "detail_8": (32, 8, 8),
        "detail_4": (96, 4, 4),
        "coarse": (512,),
    }


def test_demo_layer_list():
    flow = colorization_cinn("demo")
    expected = []
    for couplings, size in ((2, 32), (3, 16), (4, 8), (4, 4)):
        expected += [
            ("HaarDownsample", (8, size, size)),
            ("ActNorm", (8, size, size)),
            ("Split", (2, size, size), (6, size, size)),
            *blocks("ConditionalCoupling", (6, size, size), couplings),
        ]
    assert layers(flow) == [*expected, ("Flatten", (32,)), *blocks("ConditionalCoupling", (32,), 6)]
    couplings = [m for m in flow.network.modules() if isinstance(m, ConditionalCoupling)]
    assert [c.condition_shapes for c in couplings] == [
        *[((16, 32, 32), (2, 32, 32))] * 2,
        *[((32, 16, 16), (2, 16, 16))] * 3,
        *[((48, 8, 8), (2, 8, 8))] * 4,
        *[((64, 4, 4), (2, 4, 4))] * 4,
        *[((96,),)] * 6,
    ]


def test_tiny_layer_list():
    flow = colorization_cinn("tiny")
    expected = []
    for couplings, size in ((2, 16), (3, 8), (4, 4)):
        expected += [
            ("HaarDownsample", (8, size, size)),
            ("ActNorm", (8, size, size)),
            ("Split", (2, size, size), (6, size, size)),
            *blocks("ConditionalCoupling", (6, size, size), couplings),
        ]
    assert layers(flow) == [*expected, ("Flatten", (32,)), *blocks("ConditionalCoupling", (32,), 10)]
    assert flow.condition_shapes == {"photo": (1, 64, 64)}


@pytest.mark.parametrize("preset", list(COLORIZATION))
def test_parameter_counts(preset):
    for unconditional, expected in ((False, PARAMETERS), (True, UNCONDITIONAL)):
        with torch.device("meta"):
            assert count(colorization_cinn(preset, unconditional=unconditional)) == expected[preset]


def test_parameter_count_of_small_by_hand():
    convolution = lambda c_in, c_out, k: k * k * c_in * c_out + c_out  # noqa: E731
    pyramid = (
        convolution(1, 64, 3)
        + convolution(64, 64, 3)
        + convolution(64, 128, 3)
        + 2 * convolution(128, 128, 3)
        + 2048 * 512
        + 512
    )
    full = 2 * 2 * (convolution(1 + 64, 32, 3) + convolution(32, 2, 3))
    half = 2 * 2 * sum(convolution(4 + 128, 64, k) + convolution(64, 8, k) for k in (1, 3))
    quarter = 2 * 2 * sum(convolution(4 + 128, 128, k) + convolution(128, 8, k) for k in (1, 3))
    dense = 4 * 2 * ((512 + 512) * 512 + 512 + 512 * 1024 + 1024)
    assert PARAMETERS["small"] == pyramid + full + half + quarter + dense


def test_parameter_count_of_paper_code_by_hand():
    def convolution(c_in, c_out, k=3):
        return k * k * c_in * c_out + c_out

    zhang = FeaturePyramid(channels=(256,), backbone="zhang", first=2)
    own = [convolution(256, 128) + halvings * convolution(128, 128) + 2 * 128 for halvings in (0, 0, 1, 2)]
    vector = convolution(256, 128) + convolution(128, 128) + 2048 * 512 + 512
    expected = count(zhang) + sum(each * times for each, times in zip(own, (4, 6, 6, 6), strict=True)) + 8 * vector
    for couplings, channels, hidden in ((4, 2, 32), (6, 8, 64), (6, 16, 128), (6, 32, 256)):
        expected += couplings * 2 * (convolution(channels // 2 + 128, hidden) + convolution(hidden, channels))
    for channels, hidden in ((8, 64), (32, 128), (64, 256), (128, 256)):
        expected += 2 * 2 * (convolution(channels // 2, hidden, 1) + convolution(hidden, channels, 1))
    expected += 8 * 2 * ((256 + 512) * 512 + 512 + 512 * 512 + 512)
    assert PARAMETERS["paper-code"] == expected


@pytest.mark.parametrize("preset", ["demo", "small"])
def test_unconditional_is_the_same_flow_without_conditions(preset):
    conditional, unconditional = colorization_cinn(preset), colorization_cinn(preset, unconditional=True)
    assert unconditional.condition_shapes == {}
    assert unconditional.latents == conditional.latents

    def same(name):  # CCBs are affine couplings that insist on a condition
        return name.replace("ConditionalCoupling", "AffineCoupling")

    assert [(same(n), *s) for n, *s in layers(unconditional)] == [(same(n), *s) for n, *s in layers(conditional)]
    assert unconditional.sample((2,)).shape == (2, 2, 64, 64)


def redraw(flow, gain=0.2):
    """Every parameter anew, such that the log-scales have a standard deviation of about 0.1 to 0.3."""
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1)
    for coupling in (m for m in flow.network.modules() if isinstance(m, fk.AffineCoupling)):
        for subnet in coupling.subnets:
            last = subnet.rest[-1]  # decides the log-scales
            nn.init.normal_(last.weight, std=gain / math.sqrt(last.weight[0].numel()))
        for univariate in coupling.univariates:
            if univariate.clamp == "tanh":
                nn.init.normal_(univariate.gamma, mean=1.0, std=0.1)
    return flow


def log_scale_stds(flow, x, photo):
    """Of every coupling, on what it sees."""
    stds, hooks = [], []

    def note(coupling, arguments):
        stds.append(coupling.log_scales(*arguments).std().item())

    for coupling in (m for m in flow.network.modules() if isinstance(m, fk.AffineCoupling)):
        hooks.append(coupling.register_forward_pre_hook(note))
    flow(x, given=photo)
    for hook in hooks:
        hook.remove()
    return stds


@pytest.mark.parametrize("preset", ["demo", "small"])
def test_float32_round_trip_with_all_weights_redrawn(preset):
    torch.set_default_dtype(torch.float32)
    flow = redraw(colorization_cinn(preset), gain=0.8 if preset == "small" else 0.25).eval()
    x, photo = torch.randn(2, 2, 64, 64), torch.randn(2, 1, 64, 64)
    z, log_det = flow(x, given=photo)
    back, log_det_back = flow.inverse(z, given=photo)
    assert (back - x).abs().max() <= 1e-5
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-5, atol=1e-2)
    stds = log_scale_stds(flow, x, photo)
    assert 0.1 < sum(stds) / len(stds) < 0.3
    assert min(stds) > 0.03


def test_log_det_is_the_jacobians():
    flow = colorization_cinn("demo", size=16, photo_size=16)
    redraw(flow).eval()
    x, photo = torch.randn(1, 2, 16, 16), torch.randn(1, 1, 16, 16)
    matrix = torch.autograd.functional.jacobian(
        lambda flat: flow(flat.reshape(x.shape), given=photo)[0][0], x.flatten()
    )
    log_det = flow(x, given=photo)[1]
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det[0], atol=1e-9, rtol=1e-9)


def test_gradients_reach_every_parameter():
    flow = redraw(colorization_cinn("demo", size=16, photo_size=16))
    flow.log_prob(torch.randn(2, 2, 16, 16), given=torch.randn(2, 1, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_a_file_holds_it(tmp_path):
    flow = redraw(colorization_cinn("demo", size=16, photo_size=16)).eval()
    fk.save(flow, tmp_path / "model.safetensors")
    loaded = fk.load(tmp_path / "model.safetensors")
    x, photo = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded.log_prob(x, given=photo), flow.log_prob(x, given=photo))


def test_the_seed_determines_it():
    flows = []
    for _ in range(2):
        torch.manual_seed(5)
        flows.append(colorization_cinn("demo").state_dict())
    assert list(flows[0]) == list(flows[1])
    assert all(torch.equal(flows[0][key], flows[1][key]) for key in flows[0])


def test_overrides_change_the_recipe():
    flow = colorization_cinn("small", size=32, photo_size=32, rebalance=1.0)
    assert flow.input_shapes == {"ab": (2, 32, 32)}
    assert COLORIZATION["small"].size == 64
    tiny = colorization_cinn(
        "demo",
        size=8,
        photo_size=8,
        levels=(Level(), Level(couplings=1, hidden=4, keep=2)),
        dense=Level(couplings=1, hidden=4),
        features={"channels": (3,), "first": 1, "vector": 2},
        normalize=False,
    )
    assert layers(tiny) == [
        ("HaarDownsample", (8, 4, 4)),
        ("Split", (2, 4, 4), (6, 4, 4)),
        *blocks("ConditionalCoupling", (6, 4, 4), 1),
        ("Flatten", (32,)),
        *blocks("ConditionalCoupling", (32,), 1),
    ]
    assert isinstance(COLORIZATION["demo"], ColorizationRecipe)


def test_refused_in_one_sentence():
    with pytest.raises(fk.ConfigError, match=r"preset must be one of demo, tiny, small, paper, .*, got 'large'"):
        colorization_cinn("large")
    with pytest.raises(fk.ConfigError, match=r"colorization_cinn can override levels, dense, .* not depth"):
        colorization_cinn("demo", depth=3)
    with pytest.raises(fk.ConfigError, match=r"need 4 maps and a vector, and features=.* gives 2 features in all"):
        colorization_cinn("demo", features={"channels": (4, 4)})
    with pytest.raises(fk.ConfigError, match="couple must be 'all', 'rest' or 'details', got 'none'"):
        colorization_cinn("demo", couple="none")
