import pytest
import torch
from FrEIA.modules import AllInOneBlock, GLOWCouplingBlock
from torch import nn

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError

MLP = fk.MLP(hidden=8, activation="silu")


def net(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 6), nn.SiLU(), nn.Linear(6, c_out))


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, c_out, 3, padding=1))


@pytest.mark.parametrize(("clamp", "limit", "theirs"), [("tanh", 1.7, "TANH"), ("atan", 1.0, "ATAN")])
@pytest.mark.parametrize(("shape", "condition", "recipe"), [((5,), (3,), net), ((3, 4, 4), (2, 4, 4), conv)])
def test_two_sided_is_freias_glow_coupling(shape, condition, recipe, clamp, limit, theirs):
    ours = fk.AffineCoupling(shape, given=(condition,), subnet=recipe, clamp=clamp, limit=limit, two_sided=True)
    block = GLOWCouplingBlock(
        [shape],
        [condition],
        subnet_constructor=recipe,
        clamp=limit,
        clamp_activation=theirs,
        split_len=shape[0] // 2,
    )
    block.subnet2.load_state_dict(ours.subnets[0].net.state_dict())  # theirs predicts the first half
    block.subnet1.load_state_dict(ours.subnets[1].net.state_dict())
    x, c = torch.randn(4, *shape), torch.randn(4, *condition)
    (y,), log_det = block([x], [c])
    torch.testing.assert_close(ours(x, c), (y, log_det), atol=1e-10, rtol=1e-10)
    (back,), log_det = block([x], [c], rev=True)
    torch.testing.assert_close(ours.inverse(x, c), (back, log_det), atol=1e-10, rtol=1e-10)


def test_one_sided_is_freias_all_in_one_coupling():
    ours = fk.AffineCoupling((4,), given=3, subnet=net, clamp="tanh", limit=1.5)
    block = AllInOneBlock([(4,)], [(3,)], subnet_constructor=net, affine_clamping=1.5).double()
    block.subnet.load_state_dict(ours.subnets[0].net.state_dict())
    with torch.no_grad():
        ours.subnets[0].net[-1].weight *= 0.1  # theirs scales the subnet's output
        ours.subnets[0].net[-1].bias *= 0.1
    x, c = torch.randn(4, 4), torch.randn(4, 3)
    (y,), log_det = block([x], [c])
    coupled, own = ours(x, c)
    wanted, after = block._permute(coupled)  # theirs goes on with a fixed scale and a permutation
    torch.testing.assert_close((y, log_det), (wanted, own + after), atol=1e-10, rtol=1e-10)
    (back,), log_det = block([y], [c], rev=True)
    torch.testing.assert_close((back, log_det + after), (x, ours.inverse(coupled, c)[1]), atol=1e-10, rtol=1e-10)


def test_the_formula_of_each_half():
    x, c = torch.randn(6, 5), torch.randn(6, 2)
    for active in ("first", "second"):
        b = fk.AffineCoupling((5,), given=2, subnet=fk.MLP(hidden=4, zero_last=False), clamp=None, active=active)
        moved, kept = (x[:, :2], x[:, 2:]) if active == "first" else (x[:, 2:], x[:, :2])
        s, t = b.subnets[0](kept, c).chunk(2, 1)
        y, log_det = b(x, c)
        new = moved * s.exp() + t
        torch.testing.assert_close(y, torch.cat((new, kept) if active == "first" else (kept, new), 1))
        torch.testing.assert_close(log_det, s.sum(1))
        torch.testing.assert_close(b.log_scales(x, c), s)


def test_two_sided_predicts_the_second_half_from_the_new_first():
    b = fk.AffineCoupling((3,), subnet=fk.MLP(hidden=4, zero_last=False), clamp="softsign", two_sided=True)
    x = torch.randn(6, 3)
    first, one = b.univariates[0](x[:, :1], *b.subnets[0](x[:, 1:]).chunk(2, 1))
    second, two = b.univariates[1](x[:, 1:], *b.subnets[1](first).chunk(2, 1))
    torch.testing.assert_close(b(x), (torch.cat((first, second), 1), one.sum(1) + two.sum(1)))
    torch.testing.assert_close(b.log_scales(x), torch.cat((one, two), 1))


@pytest.mark.parametrize("two_sided", [False, True])
def test_starts_as_the_identity(two_sided):
    for shape in ((3,), (3, 4, 4)):
        x = torch.randn(2, *shape)
        y, log_det = fk.AffineCoupling(shape, two_sided=two_sided)(x)
        assert torch.equal(y, x)
        assert not log_det.any()


def test_the_default_subnet_follows_the_rank():
    assert fk.AffineCoupling((4,)).subnets[0].first.weight.dim() == 2
    assert [fk.AffineCoupling((4,) + (4,) * n).subnets[0].first.weight.dim() for n in (1, 2, 3)] == [3, 4, 5]


def test_state_names_are_readable():
    assert set(fk.AffineCoupling((3,), subnet=MLP, two_sided=True).state_dict()) == {
        f"{name}"
        for i in (0, 1)
        for name in (
            f"subnets.{i}.first.weight",
            f"subnets.{i}.first.bias",
            f"subnets.{i}.rest.1.weight",
            f"subnets.{i}.rest.1.bias",
            f"univariates.{i}.gamma",
        )
    }


def test_both_halves_have_their_own_gamma():
    b = fk.AffineCoupling((5, 2, 2), two_sided=True, limit=0.7)
    assert [tuple(u.gamma.shape) for u in b.univariates] == [(2, 1, 1), (3, 1, 1)]
    assert all(torch.equal(u.gamma, torch.full_like(u.gamma, 0.7)) for u in b.univariates)


def test_a_subnet_that_cannot_prepare_takes_the_conditions():
    b = fk.AffineCoupling((4,), given=3, subnet=net)
    c = torch.randn(2, 3)
    assert b.prepare(c) is None
    assert fk.AffineCoupling((4,), subnet=MLP).prepare() is None
    assert fk.AffineCoupling((4,), given=3, subnet=MLP, two_sided=True).prepare(c)[1].shape == (2, 8)


def test_conditions_run_through_the_first_layer_once(redraw):
    b = redraw(fk.AffineCoupling((4,), given=3, subnet=MLP))
    c, x = torch.randn(2, 3), torch.randn(6, 4)
    prepared = fk.Prepared(b.prepare(c))
    for method in (b.forward, b.inverse):
        torch.testing.assert_close(method(x, prepared), method(x, c.repeat(3, 1)))
    torch.testing.assert_close(b.inverse_only(x, prepared), b.inverse(x, prepared)[0])


class Scale(fk.Univariate):
    parameters_per_element = 1

    def forward(self, x, p):
        return x * p.exp(), p

    def inverse(self, y, p):
        return y * (-p).exp(), -p


class ScaleCoupling(fk.Coupling):
    def make_univariate(self, shape):
        return Scale(shape)


def test_another_univariate_is_one_subclass(redraw, arguments, log_abs_det):
    b = redraw(ScaleCoupling((3, 2), given=((1, 2),), subnet=fk.ConvNet(hidden=3, activation="silu"), two_sided=True))
    inputs, conditions = arguments(b)
    y, log_det = b(*inputs, *conditions)
    torch.testing.assert_close(log_det, log_abs_det(b, inputs, conditions))
    torch.testing.assert_close(b.inverse(y, *conditions), (inputs[0], -log_det))
    assert b.subnets[1].rest[-1].weight.shape[0] == 2


def test_what_is_no_univariate_map_is_refused():
    with pytest.raises(fk.ConfigError, match=r"Coupling: univariate must be a class of fk.Univariate or its recipe"):
        fk.Coupling((4,), univariate="affine")
    with pytest.raises(fk.ConfigError, match="Affine has no setting 'clump'; it has clamp, limit"):
        fk.Affine.recipe(clump="atan")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("quarters", "split must be one of halves, alternating, checkerboard or the channels"),
        ((), "at least one"),
        ((0, 4), "channels from 0 to 3"),
        ((1, 1), "each channel once"),
        ((0, 1, 2, 3), "leave at least one out"),
    ],
)
def test_a_split_that_is_none_is_refused(split, message):
    with pytest.raises(fk.ConfigError, match=message):
        fk.Coupling((4,), split=split)


def test_a_split_leaves_the_passive_part_alone(redraw):
    x = torch.randn(3, 5)
    for split, passive in (("alternating", [0, 2, 4]), ((0, 3), [1, 2, 4])):
        b = redraw(fk.AffineCoupling((5,), subnet=MLP, split=split))
        changed = (b(x)[0] != x).all(0)
        assert [i for i in range(5) if not changed[i]] == passive
    board = redraw(fk.AffineCoupling((1, 3, 4), subnet=fk.ConvNet(hidden=3, activation="silu"), split="checkerboard"))
    m = torch.randn(3, 1, 3, 4)
    changed = (board(m)[0] != m).all(0)[0]
    assert torch.equal(changed, (torch.arange(3)[:, None] + torch.arange(4)) % 2 == 1)


def test_a_checkerboards_gaps_lie_in_the_domain_of_a_bounded_map(redraw):
    """A gap of 0 was refused as data outside of [1, 2]."""
    univariate = fk.BoundedRationalQuadraticSpline.recipe(bins=3, low=1.0, high=2.0)
    subnet = fk.ConvNet(hidden=3, activation="silu")
    b = redraw(fk.Coupling((1, 4), subnet=subnet, univariate=univariate, split="checkerboard", two_sided=True))
    x = 1 + torch.rand(3, 1, 4)
    y, log_det = b(x)
    torch.testing.assert_close(b.inverse(y), (x, -log_det))
    grads = []
    for mode in ("plain", "reverse"):
        flow = fk.Flow(b, backprop=mode)
        grads.append(torch.autograd.grad(flow.log_prob(x).sum(), list(flow.parameters())))
    torch.testing.assert_close(*grads)


def test_additive_and_gin_keep_the_volume(redraw, arguments, log_abs_det):
    for b in (fk.AdditiveCoupling((4,), subnet=MLP), fk.GINCoupling((5,), subnet=MLP, two_sided=True)):
        inputs, _ = arguments(redraw(b))
        assert not torch.allclose(b(*inputs)[0], inputs[0])
        torch.testing.assert_close(log_abs_det(b, inputs, ()), torch.zeros(len(inputs[0])), atol=1e-10, rtol=0)
    with pytest.raises(fk.ConfigError, match="leaves gaps in the mean log-scale"):
        fk.GINCoupling((2, 4, 4), split="checkerboard")


@pytest.mark.parametrize("shape", [(), 1, (1, 8, 8)])
def test_one_channel_is_refused_with_what_works(shape):
    with pytest.raises(
        ShapeError, match=r"AffineCoupling needs at least two channels.*fk.ElementwiseAffine with a cond"
    ):
        fk.AffineCoupling(shape)


@pytest.mark.parametrize(
    ("shape", "condition", "message"),
    [
        (
            (4, 8, 8),
            (10,),
            r"needs conditions that are maps \(channels, 8, 8\), got one of shape \(10,\).*ToMap\(\(8, 8\)\)",
        ),
        ((4, 8, 8), (3, 4, 4), r"got one of shape \(3, 4, 4\).*fk.Resize\(\(8, 8\)\)"),
        (
            (4,),
            (3, 4, 4),
            r"needs conditions that are vectors \(channels,\), got one of shape \(3, 4, 4\).*fk.ToVector",
        ),
        ((4, 8), (3, 8, 8), r"got one of shape \(3, 8, 8\): it must be a map \(channels, 8\)"),
        ((4,), (), r"got one of shape \(\).*fk.OneHot\(n\)"),
    ],
)
def test_a_condition_of_another_size_is_refused_with_its_adaptor(shape, condition, message):
    with pytest.raises(ShapeError, match=message):
        fk.AffineCoupling(shape, given=(condition,))


def test_a_bad_configuration_is_refused():
    for config, message in (
        ({"active": "both"}, "AffineCoupling: active must be 'first' or 'second', got 'both'"),
        ({"clamp": "relu"}, "clamp must be"),
        ({"limit": 0}, "limit.*must be positive"),
        ({"subnet": nn.Linear(2, 4)}, "subnet must be a recipe"),
    ):
        with pytest.raises(ConfigError, match=message):
            fk.AffineCoupling((4,), **config)
    with pytest.raises(ShapeError, match="subnet must turn"):
        fk.AffineCoupling((4,), subnet=lambda c_in, c_out: nn.Linear(c_in, c_out + 1))


def test_the_repr_says_what_is_transformed():
    assert repr(fk.AffineCoupling((5,), two_sided=True)).startswith("AffineCoupling(\n  2 | 3, active='both'")
    assert "1 | 2, active='first'" in repr(fk.AffineCoupling((3,), active="first"))
