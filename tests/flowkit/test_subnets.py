"""Subnet recipes: what they build, that prepared parts change nothing, and that whatever is wrong is named."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.bijection import add_rows
from flowkit.subnets import build_subnet

RECIPES = [
    (fk.MLP(hidden=6, zero_last=False), (3,), ((4,), (1,))),
    (fk.MLP(hidden=(6, 5), activation="gelu", dropout=0.3, zero_last=False), (3,), ((4,),)),
    (fk.ConvNet(hidden=5, zero_last=False), (2, 7), ((3, 7),)),
    (fk.ConvNet(hidden=(5, 4), kernel=(5, 3, 1), zero_last=False), (2, 6, 5), ((3, 6, 5), (1, 6, 5))),
    (fk.ConvNet(hidden=5, norm="batch", zero_last=False), (2, 4, 3, 3), ((3, 4, 3, 3),)),
    (fk.ResidualNet(hidden=6, zero_last=False), (3,), ((4,),)),
    (fk.ResidualNet(hidden=6, blocks=1, kernel=3, zero_last=False), (2, 5, 4), ((3, 5, 4),)),
]


@pytest.mark.parametrize(("recipe", "shape", "conditions"), RECIPES)
def test_prepared_equals_plain_for_any_number_of_samples(recipe, shape, conditions):
    net = build_subnet(recipe, shape, conditions, 4).eval()
    c = torch.cat([torch.randn(3, *s) for s in conditions], 1)
    prepared = net.prepare(c)
    assert prepared.shape[0] == 3
    for samples in (1, 2, 0):
        x = torch.randn(samples * 3, *shape)
        out = net(x, c.repeat(samples, *[1] * (c.dim() - 1)))
        assert out.shape == (samples * 3, 4, *shape[1:])
        torch.testing.assert_close(net(x, prepared=prepared), out)
        assert samples == 0 or bool(out.any())


@pytest.mark.parametrize(("recipe", "shape", "conditions"), RECIPES)
def test_it_starts_at_zero_unless_told(recipe, shape, conditions):
    zero = type(recipe)(**{**recipe._built_with.kwargs, "zero_last": True})
    net = build_subnet(zero, shape, (), 4)
    assert not net(torch.randn(2, *shape)).any()
    assert all(p.requires_grad for p in net.parameters())


def test_one_weight_for_data_and_condition():
    net = fk.MLP(hidden=6).build((3,), ((4,), (1,)), 2)
    assert net.first.weight.shape == (6, 8)
    assert {n for n, _ in net.named_parameters()} == {"first.weight", "first.bias", "rest.1.weight", "rest.1.bias"}


def test_recipes_are_callables_of_channels():
    assert fk.MLP(hidden=6)(3, 4)(torch.zeros(5, 3)).shape == (5, 4)
    assert fk.ConvNet(hidden=6)(3, 4)(torch.zeros(5, 3, 2, 2)).shape == (5, 4, 2, 2)
    assert fk.ResidualNet(hidden=6, kernel=3)(3, 4)(torch.zeros(5, 3, 2, 2)).shape == (5, 4, 2, 2)


@pytest.mark.parametrize(
    ("recipe", "shape", "hint"),
    [
        (
            fk.MLP(),
            (2, 4, 4),
            r"MLP cannot take shape \(2, 4, 4\): .*fk\.ConvNet, or flatten the data with fk\.Flatten",
        ),
        (fk.ConvNet(), (4,), r"ConvNet cannot take shape \(4,\): .*fk\.MLP, or fk\.Reshape"),
        (fk.ConvNet(), (1, 2, 2, 2, 2), "ConvNet cannot take shape"),
        (fk.ResidualNet(), (2, 4, 4), "for maps pass kernel=3"),
        (fk.ResidualNet(kernel=3), (4,), "for vectors pass kernel=None"),
        (fk.MLP(), (), r"MLP cannot take shape \(\)"),
    ],
)
def test_the_wrong_rank_names_what_mends_it(recipe, shape, hint):
    with pytest.raises(fk.ShapeError, match=hint):
        recipe.build(shape, (), 4)


def test_conditions_of_another_size():
    with pytest.raises(fk.ShapeError, match=r"ConvNet needs conditions of spatial size \(4, 4\), got \(3, 2, 2\)"):
        fk.ConvNet().build((2, 4, 4), ((3, 2, 2),), 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.MLP(hidden=()), "hidden must be"),
        (lambda: fk.MLP(hidden=0), "hidden must be"),
        (lambda: fk.MLP(hidden=(3, 2.5)), "hidden must be"),
        (lambda: fk.MLP(activation="step"), "activation must be one of relu, .*got 'step'"),
        (lambda: fk.MLP(dropout=1.0), "dropout must be at least 0 and below 1"),
        (lambda: fk.ConvNet(kernel=2), "kernel must be an odd int"),
        (lambda: fk.ConvNet(kernel=(3, 3, 3)), "or 2 of them, one a convolution"),
        (lambda: fk.ConvNet(norm="layer"), "norm must be 'batch' or None"),
        (lambda: fk.ResidualNet(blocks=0), "blocks must be at least 1"),
        (lambda: fk.ResidualNet(kernel=4), "kernel must be an odd int"),
    ],
)
def test_options_outside_their_range(make, message):
    with pytest.raises(fk.ConfigError, match=message):
        make()


def test_recipes_are_shown_compared_copied_and_pickled_as_called():
    recipe = fk.MLP((8, 8), activation="silu")
    assert repr(recipe) == "MLP((8, 8), activation='silu')"
    for other in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe)), fk.MLP((8, 8), activation="silu")):
        assert other == recipe
        assert hash(other) == hash(recipe)
    assert recipe != fk.MLP((8, 4), activation="silu")
    assert recipe != 3


# ---------------------------------------------------------------------- a user's own


def test_a_callable_sees_data_and_conditions_concatenated():
    coupling = fk.AffineCoupling((5,), given=((3,), (1,)), subnet=lambda c_in, c_out: nn.Linear(c_in, c_out))
    assert coupling.subnets[0].net.weight.shape == (6, 2 + 3 + 1)
    assert coupling.prepare(torch.zeros(4, 3), torch.zeros(4, 1)) is None
    x, c, d = torch.randn(4, 5), torch.randn(4, 3), torch.randn(4, 1)
    y, _ = coupling(x, c, d)
    torch.testing.assert_close(coupling.inverse(y, c, d)[0], x)


class OwnNet(nn.Module):
    def __init__(self, c_in, c_c, c_out):
        super().__init__()
        self.x, self.c = nn.Linear(c_in, c_out), nn.Linear(c_c, c_out, bias=False)

    def prepare(self, c):
        return self.c(c)

    def forward(self, x, c=None, prepared=None):
        return add_rows(self.x(x), self.c(c) if prepared is None else prepared)


class OwnRecipe:
    def __call__(self, c_in, c_out):
        raise AssertionError("build is there")

    def build(self, in_shape, condition_shapes, c_out):
        return OwnNet(in_shape[0], sum(s[0] for s in condition_shapes), c_out)


def test_a_recipe_of_one_s_own_with_build_is_prepared_too():
    flow = fk.Flow(fk.AffineCoupling((4,), given=(3,), subnet=OwnRecipe()))
    x, c = torch.randn(6, 5, 4), torch.randn(5, 3)
    plain = torch.stack([flow.log_prob(each, given=c) for each in x])
    torch.testing.assert_close(flow.log_prob(x, given=c), plain)
    assert flow.network.nodes["affine_coupling_1"].prepare(c) is not None


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        (nn.Linear(2, 4), fk.ConfigError, "got the module Linear, already built"),
        (3, fk.ConfigError, "subnet must be a recipe.*got 3"),
        (lambda c_in, c_out: 5, fk.ConfigError, "subnet must return an nn.Module, got int"),
        (
            lambda c_in, c_out: nn.Linear(c_in, c_out + 1),
            fk.ShapeError,
            r"must turn \(2,\) into \(4,\), it gave \(5,\)",
        ),
        (
            lambda c_in, c_out: nn.Linear(c_in + 1, c_out),
            fk.ShapeError,
            r"subnet cannot take \(2,\): its dry run failed",
        ),
        (lambda c_in, c_out: nn.Conv2d(c_in, c_out, 1), fk.ShapeError, r"subnet (cannot take|must turn) \(2,\)"),
    ],
)
def test_recipes_that_are_none(recipe, error, message):
    with pytest.raises(error, match=message):
        fk.AffineCoupling((4,), subnet=recipe)


@pytest.mark.parametrize("recipe", [fk.MLP(hidden=6), fk.MLP(hidden=(6, 5)), fk.ResidualNet(hidden=6, blocks=1)])
def test_overwriting_without_gradients_changes_no_result_and_no_argument(recipe):
    net = recipe.build((3,), ((2,),), 4).eval()
    x, c = torch.randn(8, 3), torch.randn(8, 2)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    want, before = net(x, c), (x.clone(), c.clone())
    prepared = net.prepare(c)
    kept = prepared.clone()
    with torch.no_grad():
        assert torch.allclose(net(x, c), want, rtol=1e-12)
        assert torch.allclose(net(x, None, prepared), want, rtol=1e-12)
        several = net(torch.cat((x, x)), None, prepared)
    assert torch.allclose(several, torch.cat((want, want)), rtol=1e-12)
    assert torch.equal(prepared, kept)
    assert torch.equal(x, before[0])
    assert torch.equal(c, before[1])


def test_what_a_hook_was_given_is_not_overwritten():
    net, seen = fk.MLP(hidden=6).build((3,), (), 4), []
    handle = net.first.register_forward_hook(lambda module, arguments, output: seen.append(output))
    x = torch.randn(8, 3)
    with torch.no_grad():
        net(x)
        handle.remove()
        assert torch.equal(seen[0], net.first(x))
    assert (seen[0] < 0).any()


# ---------------------------------------------------------------------- in pieces


@pytest.mark.parametrize(("samples", "rows"), [(7, 1), (4, 3), (1, 9), (0, 3)])
@pytest.mark.parametrize(("recipe", "shape", "conditions"), RECIPES)
def test_without_gradients_large_batches_go_through_in_pieces(recipe, shape, conditions, samples, rows, monkeypatch):
    net = build_subnet(recipe, shape, conditions, 4).eval()
    x, c = torch.randn(samples * rows, *shape), torch.cat([torch.randn(rows, *s) for s in conditions], 1)
    repeated = c.repeat(samples, *[1] * (c.dim() - 1))
    want, shown = net(x, repeated), []  # with gradients: whole
    with torch.no_grad():
        prepared = net.prepare(c)
        kept = prepared.clone()
        for at_once in (1, 2, 4, 1000):
            hidden_bytes = 8 * net.first.weight.shape[0] * math.prod(shape[1:])
            monkeypatch.setattr("flowkit.subnet_parts.PIECE_BYTES", at_once * hidden_bytes)
            before = net.first.forward
            monkeypatch.setattr(net.first, "forward", lambda *a, f=before: shown.append(len(a[0])) or f(*a))
            torch.testing.assert_close(net(x, prepared=prepared), want)
            torch.testing.assert_close(net(x, repeated), want)
            monkeypatch.setattr(net.first, "forward", before)
            assert max(shown) == min(at_once, samples * rows)
            shown.clear()
        assert torch.equal(prepared, kept)


def test_what_sees_the_whole_batch_is_given_it_whole(monkeypatch):
    monkeypatch.setattr("flowkit.subnet_parts.PIECE_BYTES", 1)
    net = fk.ConvNet(hidden=5, norm="batch").build((2, 3, 3), (), 4)
    x, seen = torch.randn(6, 2, 3, 3), []
    with torch.no_grad():
        net.train()(x)
        torch.testing.assert_close(net.rest[0].running_mean, 0.1 * net.first(x).mean((0, 2, 3)))
        net.eval().rest[0].train()  # a norm that trains by itself
        before = net.rest[0].running_mean.clone()
        net(x)
        torch.testing.assert_close(net.rest[0].running_mean, 0.9 * before + 0.1 * net.first(x).mean((0, 2, 3)))
        net.eval().rest[-1].register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
        net(x)
    assert seen == [6]
