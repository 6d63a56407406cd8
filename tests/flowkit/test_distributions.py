"""Base distributions against torch.distributions; conditional bases through base_given."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import flowkit as fk

MLP = fk.MLP(hidden=8, activation="silu", zero_last=False)


class normal:  # Independent(Normal(...), 1), which fails on empty batches
    def __init__(self, loc, scale):
        self.each = Normal(loc, scale)

    def log_prob(self, z):
        return self.each.log_prob(z).sum(-1)


@pytest.fixture
def diagonal():
    base = fk.DiagonalNormal(3)
    with torch.no_grad():
        base.loc.copy_(torch.tensor([1.0, -2.0, 0.5]))
        base.log_scale.copy_(torch.tensor([0.3, -1.0, 0.0]))
    return base


@pytest.fixture
def conditional():
    return fk.DiagonalNormal(3, given=((2,), (1,)), subnet=MLP)


@pytest.mark.parametrize("lead", [(), (5,), (2, 5), (0,), (3, 0)])
def test_log_prob_against_torch(diagonal, lead):
    z = torch.randn(*lead, 3)
    torch.testing.assert_close(fk.StandardNormal(3).log_prob(z), normal(torch.zeros(3), torch.ones(3)).log_prob(z))
    torch.testing.assert_close(diagonal.log_prob(z), normal(diagonal.loc, diagonal.log_scale.exp()).log_prob(z))


def test_a_diagonal_normal_starts_as_the_standard_normal():
    z = torch.randn(4, 3)
    torch.testing.assert_close(fk.DiagonalNormal(3).log_prob(z), fk.StandardNormal(3).log_prob(z))
    c = torch.randn(4, 2)
    torch.testing.assert_close(fk.DiagonalNormal(3, given=2).log_prob(z, c), fk.StandardNormal(3).log_prob(z))


def test_conditional_log_prob_against_torch_with_broadcasting(conditional):
    c, d = torch.randn(5, 1, 2), torch.randn(7, 1)
    joined = torch.cat((c.expand(5, 7, 2), d.expand(5, 7, 1)), -1)
    loc, log_scale = conditional.net(joined.reshape(35, 3)).reshape(5, 7, 6).chunk(2, -1)
    z = torch.randn(4, 5, 7, 3)
    torch.testing.assert_close(conditional.log_prob(z, c, d), normal(loc, log_scale.exp()).log_prob(z))
    torch.testing.assert_close(
        conditional.log_prob(z[0, 0, 0], c, d), normal(loc, log_scale.exp()).log_prob(z[0, 0, 0])
    )
    assert conditional.sample((4, 5, 7), c, d).shape == (4, 5, 7, 3)
    assert conditional.log_prob(torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0, 1)).shape == (0,)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_temperature_scales_about_the_location(diagonal, conditional, temperature):
    torch.manual_seed(4)
    standard = fk.StandardNormal(3).sample((6,))
    for base, conditions in ((fk.StandardNormal(3), ()), (diagonal, ()), (conditional, (torch.ones(2), torch.ones(1)))):
        centre = base.sample((6,), *conditions, temperature=0.0)
        torch.manual_seed(4)
        one = base.sample((6,), *conditions)
        torch.manual_seed(4)
        scaled = base.sample((6,), *conditions, temperature=temperature)
        torch.testing.assert_close(scaled - centre, (one - centre) * temperature)
    torch.manual_seed(4)
    torch.testing.assert_close(diagonal.sample((6,)), diagonal.loc + diagonal.log_scale.exp() * standard)


def test_moments_of_samples(diagonal):
    with torch.no_grad():
        z = diagonal.sample((20000,))
    torch.testing.assert_close(z.mean(0), diagonal.loc.detach(), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), diagonal.log_scale.detach().exp(), atol=0.05, rtol=0)


def test_a_latent_in_parts_equals_the_flat_one():
    parts = [torch.randn(4, 1), torch.randn(4, 2)]
    for base in (fk.StandardNormal(3), fk.DiagonalNormal(3)):
        torch.testing.assert_close(base.log_prob_of_parts(parts), base.log_prob(torch.cat(parts, -1)))


def test_dtype_follows():
    for base in (fk.StandardNormal(3), fk.DiagonalNormal(3), fk.DiagonalNormal(3, given=2)):
        conditions = [torch.zeros(4, s[0], dtype=torch.float32) for s in base.condition_shapes]
        z = base.float().sample((4,), *conditions)
        assert z.dtype == base.log_prob(z, *conditions).dtype == torch.float32


def test_autocast_does_not_coarsen_the_samples():
    base = fk.DiagonalNormal(3, given=2, subnet=MLP).float()
    c = torch.randn(4, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        loc, log_scale = base._moments((c,))
        z = base.sample((4,), c)
    torch.manual_seed(0)
    assert z.dtype == loc.dtype == torch.float32
    noise = torch.randn(4, 3, dtype=torch.float32)
    torch.testing.assert_close((z - loc) / log_scale.exp(), noise, rtol=1e-4, atol=1e-4)  # not rounded to bfloat16


@pytest.mark.parametrize("dim", [0, -1, 2.0, True])
def test_dimensions_that_are_none(dim):
    with pytest.raises(fk.ConfigError, match=r"StandardNormal needs a positive number of dimensions"):
        fk.StandardNormal(dim)


def test_maps_are_no_conditions_of_a_diagonal_normal():
    with pytest.raises(fk.ShapeError, match=r"takes vectors as conditions, got \(\(3, 8, 8\),\): use fk.ToVector"):
        fk.DiagonalNormal(3, given=(3, 8, 8))


# ---------------------------------------------------------------------- in a flow


def flow_with_base(base_given, **kwargs):
    graph = fk.Graph()
    c, d = graph.condition("c", (3,)), graph.condition("d", (2,))
    h = graph.features(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), c, name="net")
    x = graph.add(fk.AffineCoupling, graph.input("x", (3,)), given=h, subnet=MLP, name="part")
    graph.output("z", x)
    wires = {"c": c, "d": d, "h": h, "x": x}
    given = [wires.get(name, name) for name in base_given]
    kwargs.setdefault("base", lambda dim, given: fk.DiagonalNormal(dim, given=given, subnet=MLP))
    return fk.Flow(graph, base_given=given, **kwargs)


@pytest.mark.parametrize(
    ("x_lead", "c_lead", "d_lead"),
    [
        ((5,), (5,), (5,)),
        ((7, 5), (5,), ()),
        ((5, 7), (5, 1), (5, 1)),
        ((5, 1), (5, 1), (7,)),
        ((), (), ()),
        ((), (5,), (1,)),
        ((0,), (0,), (0,)),
        ((7, 0), (0,), ()),
        ((0, 5), (5,), (5,)),
        ((5, 0), (5, 1), ()),
    ],
)
def test_a_conditional_base_sees_the_conditions_of_its_row(x_lead, c_lead, d_lead):
    flow = flow_with_base(["d", "h"])
    x, given = torch.randn(*x_lead, 3), {"c": torch.randn(*c_lead, 3), "d": torch.randn(*d_lead, 2)}
    lead = torch.broadcast_shapes(x_lead, c_lead, d_lead)
    z, log_det = flow(x, given=given)
    h = flow.network.nodes["net"](given["c"].reshape(-1, 3)).reshape(*c_lead, 4)
    expected = flow.base.log_prob(z, given["d"].expand(*lead, 2), h.expand(*lead, 4)) + log_det
    torch.testing.assert_close(flow.log_prob(x, given=given), expected)
    torch.testing.assert_close(flow.given(given).log_prob(x), expected)
    samples, log_prob = flow.given(given).sample_and_log_prob((2,))
    assert samples.shape == (2, *torch.broadcast_shapes(c_lead, d_lead), 3)
    torch.testing.assert_close(flow.log_prob(samples, given=given), log_prob)


def test_samples_of_a_conditional_base_and_their_gradients():
    flow = flow_with_base(["d", "h"])
    c, d = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    given = {"c": c, "d": d}
    torch.manual_seed(3)
    drawn = flow.sample((4,), given=given)
    torch.manual_seed(3)
    rdrawn = flow.given(given).rsample((4,))
    torch.testing.assert_close(drawn, rdrawn.detach())
    rdrawn.square().sum().backward()
    assert d.grad.abs().sum() > 0  # reached through the base alone
    flow.zero_grad()
    flow.given(given).log_prob(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.base.parameters())


def test_a_condition_used_by_the_base_alone_counts_as_used_and_names_do_as_wires():
    assert list(flow_with_base(["d"]).condition_shapes) == ["c", "d"]
    flow = flow_with_base(["d", "net"])
    assert flow._base_shapes == ((2,), (4,))
    with pytest.raises(fk.GraphError, match=r"the condition 'd' \(2,\) is never used"):
        flow_with_base([], base=None)


def test_base_given_that_depends_on_data_or_is_no_wire():
    with pytest.raises(fk.GraphError, match=r"base_given: 'part' \(3,\) depends on data"):
        flow_with_base(["d", "x"])
    with pytest.raises(fk.GraphError, match=r"the graph has no wire 'nope'"):
        flow_with_base(["nope"])
    with pytest.raises(fk.GraphError, match=r"base_given: a condition wire of this graph or its name is needed"):
        flow_with_base([fk.Graph().condition("c", (3,))])
    graph = fk.Graph()
    x = graph.input("x", (2,))
    h = graph.features(nn.Linear(2, 2), x)
    graph.output("z", x)
    with pytest.raises(fk.GraphError, match=r"'linear_1' \(2,\) depends on data"):
        fk.Flow(graph, base=fk.DiagonalNormal, base_given=h)


def test_bases_that_do_not_fit():
    part = fk.Permute((3,))
    with pytest.raises(fk.ShapeError, match=r"the base StandardNormal has 2 dimensions, the latent has 3"):
        fk.Flow(part, base=fk.StandardNormal(2))
    with pytest.raises(
        fk.ShapeError, match=r"the base DiagonalNormal takes conditions of shape '\(2,\)', base_given has none"
    ):
        fk.Flow(part, base=fk.DiagonalNormal(3, given=2))
    with pytest.raises(fk.ConfigError, match=r"Linear has no log_prob"):
        fk.Flow(part, base=nn.Linear(3, 3))
    with pytest.raises(fk.ConfigError, match=r"base must be a distribution module"):
        fk.Flow(part, base=Normal(0.0, 1.0))
    with pytest.raises(fk.ConditionError, match=r"base_given needs a conditional base"):
        flow_with_base(["d"], base=None)


class Laplace(nn.Module):
    """A base of one's own, with the two methods and nothing else."""

    def log_prob(self, z):
        return torch.distributions.Laplace(0.0, 1.0).log_prob(z).sum(-1)

    def sample(self, shape, temperature=1.0):
        return torch.distributions.Laplace(0.0, 1.0).sample((*shape, 4)) * temperature


def test_a_base_of_one_s_own():
    graph = fk.Graph()
    a, b = graph.add(fk.Split, graph.add(fk.AffineCoupling, graph.input("x", (4,)), subnet=MLP))
    graph.output("a", a)
    graph.output("b", b)
    flow = fk.Flow(graph, base=Laplace())
    x = torch.randn(3, 4)
    z, log_det = flow(x)
    torch.testing.assert_close(flow.log_prob(x), Laplace().log_prob(z) + log_det)
    samples, log_prob = flow.given().sample_and_log_prob((5,))
    torch.testing.assert_close(flow.log_prob(samples), log_prob)
    assert fk.Flow(graph, base=lambda dim: Laplace()).sample((2,)).shape == (2, 4)
