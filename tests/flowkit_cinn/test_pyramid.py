import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit_cinn import FeaturePyramid, PretrainedWeightsError, backbones
from flowkit_cinn.backbones import IMAGENET_MEAN, IMAGENET_STD
from flowkit_cinn.translation.color import normalize_lightness


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(features):
    return [tuple(level.shape[1:]) for level in features]


@pytest.fixture
def no_network(monkeypatch):
    """Nobody's tests may depend on a network or a cache: both answer as a machine without them would."""
    models = pytest.importorskip("torchvision.models")

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    for name in ("vgg16", "resnet18"):
        monkeypatch.setattr(type(models.get_model_weights(name).IMAGENET1K_V1), "get_state_dict", refuse)


@pytest.fixture
def imagenet(monkeypatch):
    """torchvision's weights, as far as the shapes go: the random weights of nets of its own."""
    models = pytest.importorskip("torchvision.models")
    torch.set_default_dtype(torch.float32)
    vgg = nn.Sequential(*models.vgg.make_layers(models.vgg.cfgs["D"]))
    resnet = models.resnet18(weights=None)
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    states = {
        "vgg16": {
            **{f"features.{key}": value for key, value in vgg.state_dict().items()},
            "classifier.0.weight": torch.zeros(1),
        },
        "resnet18": resnet.state_dict(),
    }
    calls = []
    for name, state in states.items():
        enum = type(models.get_model_weights(name).IMAGENET1K_V1)
        monkeypatch.setattr(enum, "get_state_dict", lambda self, *a, state=state, **k: calls.append(1) or dict(state))
    return {"vgg16": vgg.eval(), "resnet18": resnet.eval(), "calls": calls}


def test_the_designs_example():
    pyramid = FeaturePyramid(channels=(32, 64, 64), backbone="small")
    assert shapes(pyramid(torch.zeros(2, 1, 64, 64))) == [(32, 64, 64), (64, 32, 32), (64, 16, 16)]


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        ({"channels": (4,)}, 8, [(4, 8, 8)]),
        ({"channels": (4, 4, 6), "in_channels": 3}, 16, [(4, 16, 16), (4, 8, 8), (6, 4, 4)]),
        ({"channels": (4, 6), "first": 2, "vector": 5}, 32, [(4, 8, 8), (6, 4, 4), (5,)]),
        (
            {"channels": (256, 8, 4), "backbone": "zhang", "first": 2, "vector": 3},
            32,
            [(256, 8, 8), (8, 4, 4), (4, 2, 2), (3,)],
        ),
        (
            {"channels": (2, 3, 4, 5, 6), "backbone": "vgg16"},
            16,
            [(2, 16, 16), (3, 8, 8), (4, 4, 4), (5, 2, 2), (6, 1, 1)],
        ),
        ({"channels": (4, 5), "backbone": "vgg16", "first": 1, "in_channels": 3}, 16, [(4, 8, 8), (5, 4, 4)]),
        ({"channels": (2, 3, 4), "backbone": "resnet18", "vector": 7}, 16, [(2, 16, 16), (3, 8, 8), (4, 4, 4), (7,)]),
        (
            {"channels": (4, 5, 6, 7), "backbone": "resnet18", "first": 2},
            64,
            [(4, 16, 16), (5, 8, 8), (6, 4, 4), (7, 2, 2)],
        ),
    ],
)
def test_levels_halve(config, size, expected):
    if config.get("backbone") == "resnet18":
        pytest.importorskip("torchvision")
    pyramid = FeaturePyramid(**config)
    photo = torch.randn(2, config.get("in_channels", 1), size, size)
    kept = photo.clone()
    features = pyramid(photo)
    assert shapes(features) == expected
    assert torch.equal(photo, kept)
    for level in features:  # every level is reached, and by a gradient too
        grads = torch.autograd.grad(
            level.square().sum(), list(pyramid.parameters()), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("backbone", ["small", "vgg16", "resnet18"])
def test_every_parameter_is_used(backbone):  # or DDP waits for a gradient that never comes
    if backbone == "resnet18":
        pytest.importorskip("torchvision")
    pyramid = FeaturePyramid(channels=(4, 5, 6), backbone=backbone, vector=3)
    sum(level.square().sum() for level in pyramid(torch.randn(2, 1, 16, 16))).backward()
    assert all(parameter.grad is not None for parameter in pyramid.parameters())


def test_small_is_the_authors_conditioning_net():
    pyramid = FeaturePyramid(channels=(64, 128, 128), backbone="small", vector=512).float()
    layers = [
        m for m in pyramid.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.LeakyReLU | nn.AdaptiveAvgPool2d)
    ]
    expected = [
        "Conv2d(1, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "LeakyReLU(negative_slope=0.01)",
        "Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "LeakyReLU(negative_slope=0.01)",
        "Conv2d(64, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "LeakyReLU(negative_slope=0.01)",
        "Conv2d(128, 128, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))",
        "LeakyReLU(negative_slope=0.01)",
        "Conv2d(128, 128, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))",
        "LeakyReLU(negative_slope=0.01)",
        "AdaptiveAvgPool2d(output_size=4)",
        "Linear(in_features=2048, out_features=512, bias=True)",
    ]
    assert [repr(layer) for layer in layers] == expected
    photo = torch.randn(2, 1, 64, 64, dtype=torch.float32)
    coarse, vector = pyramid(photo)[2:]
    pooled = nn.functional.avg_pool2d(nn.functional.leaky_relu(coarse), 4).flatten(1)  # their AvgPool2d(4)
    torch.testing.assert_close(vector, pyramid.head[3](pooled))
    assert count(pyramid) == 1_455_680


def test_zhang_layer_list():
    pyramid = FeaturePyramid(channels=(256, 256), backbone="zhang", first=2)
    convolutions = [
        (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.dilation[0])
        for m in pyramid.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    widths = [(1, 64, 64, 2, 1), (64, 128, 128, 2, 1), (128, 256, 256, 256, 2, 1), (256, 512, 512, 512, 1, 1)]
    widths += [(512, 512, 512, 512, 1, 2), (512, 512, 512, 512, 1, 2), (512, 512, 512, 512, 1, 1)]
    expected = []
    for *channels, stride, dilation in widths:
        pairs = list(pairwise(channels))
        expected += [
            ("Conv2d", a, b, 3, stride if i + 1 == len(pairs) else 1, dilation) for i, (a, b) in enumerate(pairs)
        ]
    expected += [("ConvTranspose2d", 512, 256, 4, 2, 1), ("Conv2d", 256, 256, 3, 1, 1), ("Conv2d", 256, 256, 3, 2, 1)]
    assert convolutions == expected
    assert sum(isinstance(m, nn.BatchNorm2d) for m in pyramid.modules()) == 8  # seven blocks, one further level


@pytest.mark.parametrize("in_channels", [1, 3])
def test_vgg16_is_torchvisions(imagenet, in_channels):
    pyramid = FeaturePyramid(
        channels=(2, 3, 4, 5, 6), backbone="vgg16", in_channels=in_channels, weights="imagenet"
    ).eval()
    photo, rgb = photograph(in_channels)
    expected, x = [], normalised(rgb)
    for layer in imagenet["vgg16"]:
        if isinstance(layer, nn.MaxPool2d):
            expected.append(x.clone())  # torchvision's ReLU works in place
        x = layer(x)
    for theirs, ours in zip(expected, pyramid.backbone(photo), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("first", [0, 2])
def test_resnet18_is_torchvisions(imagenet, in_channels, first):
    config = {"channels": (4,) * (6 - first), "first": first, "in_channels": in_channels}
    pyramid = FeaturePyramid(**config, backbone="resnet18", weights="imagenet").eval()
    photo, rgb = photograph(in_channels)
    net, x = imagenet["resnet18"], normalised(rgb)
    stem = net.relu(net.bn1(net.conv1(x)))
    layers = [net.layer1(net.maxpool(stem))]
    for layer in (net.layer2, net.layer3, net.layer4):
        layers.append(layer(layers[-1].clone()))
    for theirs, ours in zip([x, stem, *layers][first:], pyramid.backbone(photo), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def photograph(in_channels):
    """What the pyramid takes, and the RGB in 0..1 that it stands for."""
    if in_channels == 3:
        rgb = torch.rand(2, 3, 32, 32, dtype=torch.float32)
        return rgb, rgb
    lightness = 100 * torch.rand(2, 1, 32, 32, dtype=torch.float32)
    return normalize_lightness(lightness), (lightness / 100).repeat(1, 3, 1, 1)


def normalised(rgb):
    return (rgb - torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1)) / torch.tensor(IMAGENET_STD).reshape(3, 1, 1)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18"])
def test_without_network_pretrained_weights_are_refused(no_network, backbone):
    with pytest.raises(
        PretrainedWeightsError, match=f"the ImageNet weights of {backbone} could not be had.*no route to host"
    ) as caught:
        FeaturePyramid(channels=(4, 5), backbone=backbone, weights="imagenet")
    assert isinstance(caught.value, fk.FlowkitError)
    assert "\n" not in str(caught.value)
    FeaturePyramid(channels=(4, 5), backbone=backbone)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18"])
def test_a_file_needs_no_network(imagenet, backbone, tmp_path, monkeypatch):
    pyramid = FeaturePyramid(channels=(4, 5), backbone=backbone, weights="imagenet")
    assert len(imagenet["calls"]) == 1
    graph = fk.Graph()
    level, _ = graph.features(pyramid, graph.condition("photo", (1, 8, 8)))
    graph.output(
        "z", graph.add(fk.AffineCoupling, graph.input("x", (2, 8, 8)), given=level, subnet=fk.ConvNet(hidden=4))
    )
    flow = fk.Flow(graph).float().eval()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    fk.save(flow, tmp_path / "flow.safetensors")
    assert "imagenet" not in str(graph.to_dict())
    monkeypatch.setattr(backbones, "fetch", None)  # a call would raise
    loaded = fk.load(tmp_path / "flow.safetensors")
    assert len(imagenet["calls"]) == 1
    x, photo = torch.randn(2, 2, 8, 8, dtype=torch.float32), torch.randn(2, 1, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(loaded.log_prob(x, given=photo), flow.log_prob(x, given=photo))


def test_graph_learns_the_shapes_without_computing():
    graph = fk.Graph()
    levels = graph.features(FeaturePyramid(channels=(4, 5), vector=6), graph.condition("photo", (1, 16, 16)))
    assert [wire.shape for wire in levels] == [(4, 16, 16), (5, 8, 8), (6,)]
    pyramid = FeaturePyramid(channels=(256, 8), backbone="zhang", first=2)
    before = copy.deepcopy(pyramid.state_dict())
    graph = fk.Graph()
    graph.features(pyramid, graph.condition("photo", (1, 32, 32)))
    assert pyramid.training
    assert all(torch.equal(value, before[key]) for key, value in pyramid.state_dict().items())


def test_copies_and_compiles():
    pyramid, photo = FeaturePyramid(channels=(4, 5), backbone="vgg16").eval(), torch.randn(2, 1, 8, 8)
    expected = pyramid(photo)
    for other in (copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid))):
        assert all(torch.equal(a, b) for a, b in zip(other(photo), expected, strict=True))
    compiled = torch.compile(pyramid, fullgraph=True, backend="aot_eager")(photo)
    torch.testing.assert_close(compiled, expected)


def test_construction_is_determined_by_the_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(FeaturePyramid(channels=(4, 5), vector=6).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


REFUSED = [
    ({"channels": ()}, "channels must be positive ints, one a level"),
    ({"channels": (4, 0)}, "channels must be positive ints"),
    ({"backbone": "vgg19"}, "backbone must be one of small, zhang, vgg16, resnet18, got 'vgg19'"),
    ({"first": -1}, "first at least 0"),
    ({"vector": 0}, "vector must be a positive int or None, got 0"),
    ({"weights": "mine"}, "weights must be None or 'imagenet', got 'mine'"),
    ({"weights": "imagenet"}, "weights='imagenet' exist for the backbones 'vgg16' and 'resnet18', not for Small"),
    ({"backbone": "vgg16", "in_channels": 2}, "VGG16 needs in_channels 1 .normalised L. or 3"),
    ({"backbone": "vgg16", "channels": (4, 4, 4), "first": 3}, "VGG16 has 5 levels, down to 1/16"),
    ({"backbone": "zhang"}, "'zhang' gives 256 maps at a quarter .* got first=0"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_refused_in_one_sentence(config, message):
    with pytest.raises(fk.ConfigError, match=message) as caught:
        FeaturePyramid(**config)
    assert "\n" not in str(caught.value)


def test_a_photograph_that_does_not_halve_is_refused():
    with pytest.raises(fk.ShapeError, match=r"a height and width that 4 divides, got \(1, 1, 8, 10\)"):
        FeaturePyramid(channels=(2, 2, 2))(torch.zeros(1, 1, 8, 10))
    with pytest.raises(fk.ShapeError, match="height and width that 8 divides"):
        FeaturePyramid(channels=(256,), backbone="zhang", first=2)(torch.zeros(1, 1, 12, 12))
    with pytest.raises(fk.ShapeError, match=r"photographs \(B, 3, H, W\)"):
        FeaturePyramid(channels=(2,), in_channels=3)(torch.zeros(1, 1, 8, 8))
    graph = fk.Graph()
    with pytest.raises(fk.GraphError, match="that 4 divides"):
        graph.features(FeaturePyramid(channels=(2, 2, 2)), graph.condition("photo", (1, 6, 6)))
