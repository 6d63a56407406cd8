import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit_cinn import colorization_cinn, day2night_cinn
from flowkit_cinn.models import ABLATIONS, COLORIZATION
from flowkit_cinn.pyramid import BlockCondition, ImagePyramid

TINY = {"demo": {"size": 16, "photo_size": 16}, "small": {"size": 8, "photo_size": 16}}


def little(preset="small", **overrides):
    """Every kind of part of the preset, with few enough values for a Jacobian: 4 x 4 and 2 x 2, and a vector."""
    recipe = COLORIZATION[preset]
    hidden = 4 if isinstance(recipe.dense.hidden, int) else (4, 4)
    levels = [replace(level, couplings=min(2, level.couplings), hidden=hidden) for level in recipe.levels[:2]]
    channels = (3, 4)[-sum(level.couplings > 0 for level in levels) :]
    given = {
        "levels": tuple(levels),
        "dense": replace(recipe.dense, couplings=2, hidden=hidden),
        "features": {"channels": channels, "first": 3 - len(channels), "vector": 5},
        "size": 4,
        "photo_size": 8,
    }
    return colorization_cinn(preset, **{**given, **overrides})


def redraw(flow, std=0.3):
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=std)
    for module in flow.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return flow


def data(flow, rows=2):
    return [
        torch.randn(rows, *next(iter(shapes.values())))
        for shapes in (flow.input_shapes, flow.condition_shapes)
        if shapes
    ]


def nodes(flow):
    return [node.cls.__name__ for node in flow.network.graph.nodes]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_each_takes_its_part_away_and_no_other():
    with torch.device("meta"):
        whole = colorization_cinn("demo")
        flows = {name: colorization_cinn("demo", **overrides) for name, overrides in ABLATIONS.items()}
    assert list(flows) == [
        "no conditioning net",
        "conditioning net fixed",
        "no permutations",
        "checkerboard squeeze instead of Haar",
        "no clamp",
    ]
    changed = {name: set(nodes(whole)) ^ set(nodes(flow)) for name, flow in flows.items()}
    assert changed == {
        "no conditioning net": {"FeaturePyramid", "ImagePyramid"},
        "conditioning net fixed": set(),
        "no permutations": {"Permute"},
        "checkerboard squeeze instead of Haar": {"HaarDownsample", "Squeeze"},
        "no clamp": {"ConditionalCoupling", "AffineCoupling"},
    }
    assert {flow.dim for flow in flows.values()} == {whole.dim}
    assert all(flow.latents == whole.latents for flow in flows.values())
    couplings = [m for m in flows["no clamp"].modules() if isinstance(m, fk.AffineCoupling)]
    assert {(c.clamp, len(c.subnets)) for c in couplings} == {(None, 2)}
    pyramids = {name: count(flow.network.nodes["pyramid"]) for name, flow in flows.items()}
    assert pyramids.pop("no conditioning net") == 0
    assert set(pyramids.values()) == {count(whole.network.nodes["pyramid"])}


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("preset", ["demo", "small"])
def test_inverts_and_its_log_det_is_the_jacobians(preset, name):
    flow = redraw(little(preset, **ABLATIONS[name]), 0.15 if name == "no clamp" else 0.3).eval()
    x, photo = data(flow, 1)
    z, log_det = flow(x, given=photo)
    back, log_det_back = flow.inverse(z, given=photo)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-9, rtol=1e-9)
    matrix = torch.autograd.functional.jacobian(
        lambda flat: flow(flat.reshape(x.shape), given=photo)[0][0], x.flatten()
    )
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det[0], atol=1e-8, rtol=1e-8)
    assert abs(float(log_det.detach())) > 0.01


def test_paper_codes_parts_invert_and_give_the_jacobians_log_det():
    flow = redraw(
        little("paper-code", features={"channels": (3,), "first": 1}, own=(2, 3), downsample="squeeze")
    ).eval()
    assert {"Squeeze", "FixedRotation", "BlockCondition", "Permute"} < set(nodes(flow))
    x, photo = data(flow, 1)
    z, log_det = flow(x, given=photo)
    torch.testing.assert_close(flow.inverse(z, given=photo)[0], x, atol=1e-9, rtol=1e-9)
    matrix = torch.autograd.functional.jacobian(
        lambda flat: flow(flat.reshape(x.shape), given=photo)[0][0], x.flatten()
    )
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det[0], atol=1e-8, rtol=1e-8)
    flow.log_prob(*data(flow)[:1], given=data(flow)[1]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_file_holds_it(name, tmp_path):
    flow = little("demo", **ABLATIONS[name])
    x, photo = data(flow, 8)
    redraw(flow.initialize(x, given=photo)).eval()
    fk.save(flow, tmp_path / "model.safetensors")
    loaded = fk.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.log_prob(x, given=photo), flow.log_prob(x, given=photo))
    trained = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in flow.named_parameters() if p.requires_grad]
    again = pickle.loads(pickle.dumps(copy.deepcopy(flow)))
    assert torch.equal(again.log_prob(x, given=photo), flow.log_prob(x, given=photo))


@pytest.mark.parametrize("name", ABLATIONS)
def test_initialize_and_unconditional(name):
    for unconditional in (False, True):
        flow = colorization_cinn("demo", **TINY["demo"], unconditional=unconditional, **ABLATIONS[name])
        x, *given = data(flow, 16)
        flow.initialize(5 * x + 3, *given)
        z = flow.split(flow(5 * x + 3, *given)[0])
        scales = torch.cat([part.flatten(1) for part in z.values()], 1)
        assert (
            scales.mean().abs() < 0.05
        )  # each map is standardised at its own level, and the couplings start as nothing
        assert 0.9 < scales.std() < 1.1
    assert ("pyramid" in flow.network.nodes) is False


def test_a_fixed_net_does_not_train():
    torch.set_default_dtype(torch.float32)  # Zhang et al.'s net has 30 million parameters
    overrides = {"features": {"channels": (256, 8), "backbone": "zhang", "first": 2, "vector": 5}}
    flow = little("small", size=8, photo_size=32, conditioning="fixed", **overrides)
    pyramid = flow.network.nodes["pyramid"]
    assert any(isinstance(m, nn.BatchNorm2d) for m in pyramid.modules())
    redraw(flow, 0.1).train()
    assert flow.training
    assert not any(m.training for m in pyramid.modules())
    before = copy.deepcopy(pyramid.state_dict())
    rest = {name: p.detach().clone() for name, p in flow.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        x, photo = data(flow, 4)
        optimizer.zero_grad()
        (-flow.log_prob(x, given=photo).mean()).backward()
        optimizer.step()
    assert all(p.grad is None for p in pyramid.parameters())
    assert all(torch.equal(value, before[key]) for key, value in pyramid.state_dict().items())
    assert all(p.grad is not None for p in flow.parameters() if p.requires_grad)
    assert any(not torch.equal(p, rest[name]) for name, p in flow.named_parameters() if p.requires_grad)
    assert len(rest) == len(list(flow.parameters())) - len(list(pyramid.parameters()))


def test_a_fixed_net_takes_another_nets_weights(tmp_path):
    trained = redraw(little("small"))
    flow = little("small", conditioning="fixed")
    pyramid = flow.network.nodes["pyramid"]
    pyramid.load_state_dict(trained.network.nodes["pyramid"].state_dict())
    assert not any(p.requires_grad for p in pyramid.parameters())
    fk.save(flow, tmp_path / "model.safetensors")
    loaded = fk.load(tmp_path / "model.safetensors").train().network.nodes["pyramid"]
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(m.training for m in loaded.modules())
    photo = data(flow)[1]
    for got, wanted in zip(loaded(photo), trained.network.nodes["pyramid"](photo), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("mode", ["reverse", "checkpoint"])
@pytest.mark.parametrize("name", ["no conditioning net", "conditioning net fixed"])
def test_reverse_modes_gradients_are_plain_ones(name, mode):
    flow = redraw(little("demo", **ABLATIONS[name]))
    x, photo = data(flow)
    trained = [p for p in flow.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(flow.log_prob(x, given=photo).sum(), trained)
    flow.backprop = mode
    got = torch.autograd.grad(flow.log_prob(x, given=photo).sum(), trained)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_the_image_at_each_level_is_its_average():
    flow = colorization_cinn("no-conditioning-net")
    pyramid = flow.network.nodes["pyramid"]
    photo = torch.randn(2, 1, 64, 64)
    *maps, vector = pyramid(photo)
    assert [tuple(m.shape[1:]) for m in maps] == [(1, 32, 32), (1, 16, 16), (1, 8, 8), (1, 4, 4)]
    for level in maps:
        block = 64 // level.shape[2]
        means = photo.unflatten(3, (-1, block)).unflatten(2, (-1, block)).mean((3, 5))
        torch.testing.assert_close(level, means)
    torch.testing.assert_close(vector, maps[-1].flatten(1))
    assert list(pyramid.state_dict()) == []
    given = [node.given for node in flow.network.graph.nodes if node.cls.__name__ == "ConditionalCoupling"]
    assert [wires[0].shape for wires in given] == [
        *[(1, 32, 32)] * 2,
        *[(1, 16, 16)] * 3,
        *[(1, 8, 8)] * 4,
        *[(1, 4, 4)] * 4,
        *[(16,)] * 6,
    ]


def test_the_image_of_a_larger_photograph():
    with torch.device("meta"):
        flow = colorization_cinn("paper", conditioning="image")
    pyramid = flow.network.nodes["pyramid"]
    assert (pyramid.factors, pyramid.vector) == ((4, 8, 16, 32), 32)
    assert torch.equal(ImagePyramid((1,))(torch.ones(1, 1, 3, 5))[0], torch.ones(1, 1, 3, 5))


def test_a_squeeze_keeps_a_pixel_of_each_channel():
    flow = colorization_cinn("demo", **TINY["demo"], downsample="squeeze", normalize=False)
    x, photo = data(flow)
    z = flow.split(flow(x, given=photo)[0])  # the couplings start as the identity, then permute
    assert z["coarse"].sort(1)[0].allclose(x[:, :, ::16, ::16].flatten(1).sort(1)[0])
    details = z["detail_8"].flatten(2).sort(1)[0]
    others = torch.cat([x[:, :, 0::2, 1::2], x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]], 1).flatten(2).sort(1)[0]
    torch.testing.assert_close(details, others)


def test_resized_with_the_image_as_the_condition():
    flow = redraw(little("small", dense=None, conditioning="image")).eval()
    larger = flow.resized(ab=(2, 8, 8), photo=(1, 16, 16))
    x, photo = data(larger)
    torch.testing.assert_close(larger.inverse(larger(x, given=photo)[0], given=photo)[0], x, atol=1e-9, rtol=1e-9)


def test_day2night_has_them_too():
    for overrides in ABLATIONS.values():
        flow = day2night_cinn("demo", size=16, photo_size=16, **overrides)
        assert flow.log_prob(*data(flow)[:1], given=data(flow)[1]).shape == (2,)


def test_the_parts_compile_and_export():
    photo = torch.randn(2, 1, 16, 16)
    shared = torch.randn(2, 3, 16, 16)
    nets = [
        (ImagePyramid((1, 2), 4), photo),
        (BlockCondition(3, 4, 2), shared),
        (BlockCondition(3, 4, vector=5), shared),
    ]
    for net, argument in nets:
        net.eval()
        wanted = net(argument)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(argument), wanted)
        torch.testing.assert_close(torch.export.export(net, (argument,)).module()(argument), wanted)
        assert pickle.loads(pickle.dumps(net))(argument)[0].shape == wanted[0].shape


REFUSED = [
    ({"conditioning": "none"}, "conditioning must be 'pyramid', 'image' or 'fixed', got 'none'"),
    ({"mixing": "shuffle"}, "mixing must be 'permutation' or 'rotation', got 'shuffle'"),
    ({"downsample": "pool"}, "downsample must be 'haar' or 'squeeze', or 4 of them, .* got 'pool'"),
    ({"downsample": ("haar",)}, r"or 4 of them, one before each level but the first, got \('haar',\)"),
    ({"conditioning": "image", "photo_size": 12}, r"photo_size must be a multiple of 8, 4, 2, 1, .* got 12"),
    ({"clamp": "relu"}, "clamp must be 'tanh', 'atan', 'softsign' or None, got 'relu'"),
    ({"own": (4, 5)}, "need 1 map, and features=.* gives 5 features in all"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_refused_in_one_sentence(overrides, message):
    with pytest.raises(fk.FlowkitError, match=message) as caught:
        colorization_cinn("demo", **{**TINY["demo"], **overrides})
    assert "\n" not in str(caught.value)


def test_parts_refuse_in_one_sentence():
    with pytest.raises(fk.ConfigError, match=r"factors must be positive ints, got \(0,\) and None"):
        ImagePyramid((0,))
    with pytest.raises(fk.ShapeError, match=r"that \(1, 4\) divide, got \(1, 1, 6, 8\)"):
        ImagePyramid((1,), vector=4)(torch.zeros(1, 1, 6, 8))
    with pytest.raises(fk.ConfigError, match="halvings at least 0, got 3, 4, None and -1"):
        BlockCondition(3, 4, halvings=-1)
