"""A flow at another size: the weights shared, the original untouched, and whatever depends on the size named."""

import copy

import pytest
import torch
from torch import nn

import flowkit as fk

CONV = fk.ConvNet(hidden=4, zero_last=False)


class Untold(nn.Module):
    """A net that no dry run can follow."""

    def forward(self, c):
        if not c.abs().sum():
            raise RuntimeError("zeros")
        return c.mean((2, 3))


@pytest.fixture
def flow():
    inner = fk.Graph()
    p, x = inner.condition("p", (3, 8, 8)), inner.input("x", (2, 8, 8))
    inner.output("z", inner.add(fk.AffineCoupling, inner.add(fk.ActNorm, x), given=p, subnet=CONV))
    graph = fk.Graph()
    photo = graph.condition("photo", (1, 8, 8))
    h = graph.features(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)), photo, name="net")
    x = graph.add(inner, graph.input("ab", (2, 8, 8)), given=h, name="inner")
    shared = fk.AffineCoupling((2, 8, 8), given=(3, 8, 8), subnet=CONV)
    x = graph.add(shared, x, given=h, name="once")
    x = graph.add(shared, x, given=h, name="twice")
    x = graph.add(fk.FixedRotation, graph.add(fk.Squeeze, x))
    x = graph.add(fk.Permute, graph.add(fk.LULinear, x))
    a, b = graph.add(fk.Split, x, sizes=(2, 6))
    graph.output("fine", b)
    graph.output("coarse", graph.add(fk.ElementwiseAffine, a))
    return fk.Flow(graph).eval()


def test_every_weight_is_shared(flow):
    big = flow.resized(ab=(2, 16, 12), photo=(1, 16, 12))
    assert big.input_shapes == {"ab": (2, 16, 12)}
    assert big.condition_shapes == {"photo": (1, 16, 12)}
    assert big.latents["coarse"] == (slice(6 * 48, 8 * 48), (2, 8, 6))
    assert [(n, id(p)) for n, p in big.named_parameters()] == [(n, id(p)) for n, p in flow.named_parameters()]
    old, new = flow.state_dict(keep_vars=True), big.state_dict(keep_vars=True)
    assert {n: id(t) for n, t in new.items()} == {n: id(t) for n, t in old.items()}
    assert big.network.nodes["once"] is big.network.nodes["twice"]


def test_it_is_the_same_map_exact_at_its_size(flow):
    big = flow.resized(ab=(2, 16, 12), photo=(1, 16, 12))
    x, c = torch.randn(3, 2, 16, 12), torch.randn(3, 1, 16, 12)
    z, log_det = big(x, given=c)
    back, inverse_log_det = big.inverse(z, given=c)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det, -inverse_log_det)
    assert big.sample((2,), given=c).shape == (2, 3, 2, 16, 12)
    same = flow.resized()
    x, c = torch.randn(3, 2, 8, 8), torch.randn(3, 1, 8, 8)
    assert torch.equal(same.log_prob(x, given=c), flow.log_prob(x, given=c))


def test_training_one_trains_the_other(flow):
    big = flow.resized(ab=(2, 16, 16), photo=(1, 16, 16))
    x, c = torch.randn(3, 2, 8, 8), torch.randn(3, 1, 8, 8)
    before = flow.log_prob(x, given=c)
    big.log_prob(torch.randn(3, 2, 16, 16), given=torch.randn(3, 1, 16, 16)).sum().backward()
    torch.optim.SGD(big.parameters(), 1e-3).step()
    assert not torch.allclose(flow.log_prob(x, given=c), before)
    big.initialize(torch.randn(3, 2, 16, 16), given=torch.randn(3, 1, 16, 16))
    assert flow.network.nodes["inner"].nodes["act_norm_1"].initialized


def test_the_original_is_left_as_it_was(flow):
    flow.train()
    flow.network.nodes["net"].eval()  # a frozen part
    flow.network.nodes["net"].float()  # of a dtype of its own
    flow.network.nodes["once"].subnets.eval()
    state = torch.get_rng_state()
    modes = {n: m.training for n, m in flow.named_modules()}
    before = {n: (t.dtype, t.clone()) for n, t in flow.state_dict().items()}
    big = flow.resized(ab=(2, 16, 16), photo=(1, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert {n: m.training for n, m in flow.named_modules()} == modes
    assert {n: m.training for n, m in big.named_modules()} == modes
    assert all(t.dtype == before[n][0] and torch.equal(t, before[n][1]) for n, t in flow.state_dict().items())


def test_dtype_and_device_and_options_follow(flow):
    flow.float()
    flow.backprop = "reverse"
    big = flow.resized(ab=(2, 16, 16), photo=(1, 16, 16))
    assert {t.dtype for t in (*big.parameters(), *big.buffers()) if t.is_floating_point()} == {torch.float32}
    assert big.sample((2,), given=torch.zeros(1, 1, 16, 16, dtype=torch.float32)).dtype == torch.float32
    assert big.backprop == "reverse"
    meta = copy.deepcopy(flow).to("meta").resized(ab=(2, 16, 16), photo=(1, 16, 16))
    assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}
    assert torch.get_default_dtype() == torch.float64


def test_names_and_shapes_that_are_none(flow):
    with pytest.raises(fk.GraphError, match=r"the flow has no input or condition 'x'; it has 'ab' and 'photo'"):
        flow.resized(x=(2, 4, 4))
    with pytest.raises(fk.ShapeError, match=r"a shape is"):
        flow.resized(ab=(2, 0, 4))
    with pytest.raises(fk.ShapeError, match=r"'photo' \(1, 16, 16\)|\(3, 8, 8\)"):
        flow.resized(ab=(2, 16, 16))
    with pytest.raises(fk.ShapeError, match=r"multiples of 2"):
        flow.resized(ab=(2, 7, 7), photo=(1, 7, 7))


def sized(*add, shape=(2, 4, 4)):
    graph = fk.Graph()
    x = graph.input("x", shape)
    for part, options in add:
        x = graph.add(part, x, **options)
    graph.output("z", x)
    return fk.Flow(graph)


@pytest.mark.parametrize(
    ("flow", "to", "message"),
    [
        (
            lambda: sized((fk.Flatten, {}), (fk.AffineCoupling, {"subnet": fk.MLP(4), "name": "part"})),
            (2, 8, 8),
            r"resized: 'part.subnets.0.first.weight' depends on the size, it is \(4, 16\) and would be \(4, 64\)",
        ),
        (lambda: sized((fk.Permute, {"name": "swap"})), (3, 4, 4), r"'swap.order' depends on the size, it is \(2,\)"),
        (
            lambda: sized((fk.Permute((2, 4, 4), dim=1), {"name": "rows"})),
            (2, 8, 4),
            "'rows.order' depends on the size",
        ),
        (
            lambda: sized((fk.Inverse(fk.LULinear((2, 4, 4))), {"name": "back"})),
            (2, 8, 8),
            "node 'back' is an instance of Inverse",
        ),
        (
            lambda: sized((type("Own", (fk.Permute,), {})((2, 4, 4)), {"name": "own"})),
            (2, 8, 8),
            "node 'own' is an instance of Own",
        ),
    ],
)
def test_parts_that_depend_on_the_size_are_named(flow, to, message):
    with pytest.raises(fk.ShapeError, match=message):
        flow().resized(x=to)


def test_a_base_with_parameters_of_the_size_is_named():
    flow = fk.Flow(fk.ElementwiseAffine((2, 4, 4)), base=fk.DiagonalNormal)
    with pytest.raises(fk.ShapeError, match=r"the base DiagonalNormal has 32 dimensions, the latent has 128"):
        flow.resized(x=(2, 8, 8))
    assert flow.resized().base is flow.base


def test_feature_nets_whose_shapes_were_declared_keep_them():
    graph = fk.Graph()
    h = graph.features(Untold(), graph.condition("c", (3, 4, 4)), shapes=(3,))
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=h, subnet=fk.MLP(4)))
    flow = fk.Flow(graph)
    x, c = torch.randn(2, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(flow.resized().log_prob(x, given=c), flow.log_prob(x, given=c))
    with pytest.raises(fk.GraphError, match=r"pass shapes= to say what it returns"):
        flow.resized(c=(3, 8, 8))


def test_a_conditional_base_stays():
    graph = fk.Graph()
    photo, c = graph.condition("photo", (1, 4, 4)), graph.condition("c", (3,))
    x = graph.add(
        fk.AffineCoupling, graph.input("x", (4,)), given=graph.features(fk.ToVector(), photo), subnet=fk.MLP(4)
    )
    graph.output("z", x)
    flow = fk.Flow(graph, base=fk.DiagonalNormal, base_given=c)
    big = flow.resized(photo=(1, 8, 8))
    assert big.base is flow.base
    assert big.log_prob(torch.zeros(2, 4), given={"photo": torch.zeros(2, 1, 8, 8), "c": torch.zeros(2, 3)}).shape == (
        2,
    )
