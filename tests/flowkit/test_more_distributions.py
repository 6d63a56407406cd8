"""Every registered base: against torch.distributions, integrated, sampled, tempered, moved, saved."""

import math

import pytest
import torch
from scipy import stats
from torch import distributions as td

import flowkit as fk
from flowkit.distributions import Base
from flowkit.interop.converted import FriendsMadeMixture

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)
STEEP = fk.MLP(hidden=16, activation="tanh", zero_last=False)


@fk.register("flowkit_tests.located_laplace")
def located_laplace(c, scale):
    """A factory with a condition: its first number is the location of every element."""
    return td.Laplace(c[..., :1], scale)


def joint_parts(dim, given=()):
    first = {"first": fk.Laplace(1, given=given, subnet=MLP) if given else fk.Laplace(1)}
    return first if dim == 1 else {**first, "rest": fk.StandardNormal(dim - 1)}


def made(dim):
    """nflows' MADE of a mixture of two, without blocks: a hidden unit for each element, and one that sees none."""
    inputs, hidden = tuple(range(1, dim + 1)), tuple(range(dim + 1))
    outputs = tuple(i for i in inputs for _ in range(6))
    first = {"layer": "Masked", "in_features": dim, "out_features": dim + 1, "degrees": (inputs, hidden)}
    last = {"layer": "Masked", "in_features": dim + 1, "out_features": 6 * dim, "degrees": (hidden, outputs)}
    context = {"layer": "Linear", "in_features": 2, "out_features": dim + 1}
    parts = {"first": first, "blocks": (), "last": {**last, "strict": True}, "context": context, "masked": True}
    return {"layer": "ContextNet", **parts, "activation": {"layer": "Tanh"}}


BASES = {
    "FriendsMadeMixture given": lambda d: FriendsMadeMixture(d, (2,), made(d), components=2),
    "StandardNormal": lambda d: fk.StandardNormal(d),
    "DiagonalNormal": lambda d: fk.DiagonalNormal(d),
    "DiagonalNormal given": lambda d: fk.DiagonalNormal(d, given=2, subnet=MLP),
    "FullNormal": lambda d: fk.FullNormal(d),
    "FullNormal given": lambda d: fk.FullNormal(d, given=((2,), (1,)), subnet=MLP),
    "LowRankNormal": lambda d: fk.LowRankNormal(d, rank=2),
    "LowRankNormal given": lambda d: fk.LowRankNormal(d, rank=1, given=2, subnet=MLP),
    "Laplace": lambda d: fk.Laplace(d),
    "Laplace given": lambda d: fk.Laplace(d, given=2, subnet=MLP),
    "Logistic": lambda d: fk.Logistic(d),
    "Logistic given": lambda d: fk.Logistic(d, given=2, subnet=MLP),
    "GeneralizedNormal": lambda d: fk.GeneralizedNormal(d, beta=3.0),
    "GeneralizedNormal given": lambda d: fk.GeneralizedNormal(d, beta=1.5, given=2, subnet=MLP),
    "StudentT given": lambda d: fk.StudentT(d, df=3.0, given=2, subnet=MLP),
    "StudentT": lambda d: fk.StudentT(d, df=6.0),
    "Uniform": lambda d: fk.Uniform(d, low=-1.0, high=[2.0] * d),
    "Uniform given": lambda d: fk.Uniform(d, low=-1.0, high=2.0, given=2, subnet=MLP),
    "ClassConditional labels": lambda d: fk.ClassConditional(d, given=((),), classes=3),
    "Resampled": lambda d: fk.Resampled(d, truncation=5, points=4096, subnet=STEEP),
    "Resampled given": lambda d: fk.Resampled(d, truncation=5, points=1024, given=2, subnet=STEEP),
    "JointBase": lambda d: fk.JointBase(joint_parts(d)),
    "JointBase given": lambda d: fk.JointBase(joint_parts(d, given=2)),
    "TorchDistribution": lambda d: fk.TorchDistribution(d, "Gumbel", loc=0.3, scale=[0.8] * d),
    "TorchDistribution given": lambda d: fk.TorchDistribution(d, located_laplace, given=2, scale=0.7),
    "UniformSphere": lambda d: fk.UniformSphere(d),
    "GaussianMixture": lambda d: fk.GaussianMixture(d, components=3),
    "GaussianMixture given": lambda d: fk.GaussianMixture(d, components=2, given=2, subnet=MLP),
    "ClassConditional": lambda d: fk.ClassConditional(d, given=3),
}
every = pytest.mark.parametrize("name", BASES)
ON_SURFACES = ("UniformSphere",)
in_the_plane = pytest.mark.parametrize("name", [name for name in BASES if name not in ON_SURFACES])


def drawn(name, dim):
    base = BASES[name](dim)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    conditions = [torch.randn(s) for s in base.condition_shapes]
    if name == "ClassConditional":
        conditions = [torch.eye(3)[1]]
    if name == "ClassConditional labels":
        conditions = [torch.tensor(1)]
    return base, conditions


def test_every_registered_base_is_here():
    things = fk.registered("flowkit").values()
    classes = {thing.__name__ for thing in things if isinstance(thing, type) and issubclass(thing, Base)}
    assert classes == {name.split()[0] for name in BASES}


@in_the_plane
def test_density_integrates_to_one(name):
    base, conditions = drawn(name, 2)
    grid = torch.linspace(-1, 1, 401)
    grid = 40 * grid * grid.square()  # dense in the middle, wide enough for heavy tails
    weights = (grid[2:] - grid[:-2]) / 2
    points = torch.cartesian_prod(grid[1:-1], grid[1:-1])
    with torch.no_grad():
        density = base.log_prob(points, *conditions).exp().reshape(399, 399)
    total = (density * weights[:, None] * weights).sum().item()
    # A box's edges fall between grid points.
    assert total == pytest.approx(1, abs=0.02 if name.startswith("Uniform") else 3e-3)


@in_the_plane
def test_samples_have_the_density(name):
    """The sampled share of a box is its integrated density; 4 standard errors, a false alarm once in 16,000."""
    base, conditions = drawn(name, 1)
    torch.manual_seed(2)
    with torch.no_grad():
        z = base.sample((40_000,), *conditions)
        grid = torch.linspace(-0.3, 0.9, 4001)
        share = torch.trapezoid(base.log_prob(grid[:, None], *conditions).exp(), grid).item()
    seen = ((z > -0.3) & (z < 0.9)).double().mean().item()
    assert abs(seen - share) < 4 * math.sqrt(share * (1 - share) / 40_000)


@every
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)])
def test_shapes_and_broadcasting(name, lead):
    base, conditions = drawn(name, 3)
    many = [c.expand((*lead, *c.shape)) for c in conditions]
    z = base.sample(lead, *conditions)
    assert z.shape == (*lead, 3)
    assert base.sample(lead, *many).shape == z.shape
    torch.testing.assert_close(base.log_prob(z, *conditions), base.log_prob(z, *many))
    assert base.log_prob(z, *conditions).shape == lead


# An autoregressive base has no one location: each element's depends on the elements before it.
@pytest.mark.parametrize("name", [name for name in BASES if not name.startswith("FriendsMadeMixture")])
def test_temperature_scales_about_the_location(name):
    base, conditions = drawn(name, 3)
    drawn_at = []
    for temperature in (0.0, 1.0, 0.5):
        torch.manual_seed(5)
        drawn_at.append(base.sample((6,), *conditions, temperature=temperature))
    centre, one, half = drawn_at
    torch.testing.assert_close(half - centre, 0.5 * (one - centre))


@every
def test_gradients_reach_every_parameter(name):
    base, conditions = drawn(name, 2)
    z = base.sample((16,), *conditions).detach().requires_grad_()
    base.log_prob(z, *conditions).sum().backward()
    for label, parameter in base.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().sum() > 0, label
    assert z.grad.shape == z.shape


@every
def test_full_precision_under_autocast(name):
    base, conditions = drawn(name, 3)
    base, conditions = base.float(), [c.float() if c.is_floating_point() else c for c in conditions]
    if any("net." in key for key in base.state_dict()):
        return  # what a net predicts is half precision's by choice
    z = base.sample((4,), *conditions).detach()
    with torch.autocast("cpu", torch.bfloat16):
        inside = base.log_prob(z, *conditions)
        torch.manual_seed(3)
        drawn_inside = base.sample((4,), *conditions)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn_inside, base.sample((4,), *conditions), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inside, base.log_prob(z, *conditions), atol=1e-5, rtol=1e-5)


def test_a_uniform_draw_is_never_outside():
    box = fk.Uniform(2, low=0.1, high=0.1 + 1e-6).float()
    assert box.log_prob(box.sample((100_000,))).isfinite().all()


@every
def test_in_a_flow_to_a_file_and_back(name, tmp_path):
    base, conditions = drawn(name, 2)
    graph = fk.Graph()
    wires = [
        graph.condition(f"c{i}", c.shape, dtype=None if c.is_floating_point() else c.dtype)
        for i, c in enumerate(conditions)
    ]
    x = graph.input("x", (2,))
    if wires and conditions[0].is_floating_point():
        x = graph.add(fk.AffineCoupling, x, given=wires)
    else:
        x = graph.add(fk.AffineCoupling, x)
    if name.startswith("JointBase"):
        for part, wire in zip(("first", "rest"), graph.add(fk.Split, x), strict=True):
            graph.output(part, wire)
    else:
        graph.output("z", x)
    flow = fk.Flow(graph, base=base, base_given=wires or None)
    given = {f"c{i}": c for i, c in enumerate(conditions)} or None
    data = 0.3 * torch.randn(5, 2)
    fk.save(flow, tmp_path / "flow.safetensors")
    again = fk.load(tmp_path / "flow.safetensors")
    assert torch.equal(again.log_prob(data, given=given), flow.log_prob(data, given=given))
    narrow = flow.float()
    narrow_given = {k: v.float() if v.is_floating_point() else v for k, v in given.items()} if given else None
    assert narrow.log_prob(data.float(), given=narrow_given).dtype == torch.float32


def test_against_torch():
    z = torch.randn(7, 3)
    full, _ = drawn("FullNormal", 3)
    loc, _, factor = full._moments(())
    torch.testing.assert_close(full.log_prob(z), td.MultivariateNormal(loc, scale_tril=factor).log_prob(z))
    low_rank, _ = drawn("LowRankNormal", 3)
    loc, log_scale, factor = low_rank._moments(())
    theirs = td.LowRankMultivariateNormal(loc, factor, (2 * log_scale).exp())
    torch.testing.assert_close(low_rank.log_prob(z), theirs.log_prob(z))
    for name, law in (("Laplace", td.Laplace), ("StudentT", lambda m, s: td.StudentT(6.0, m, s))):
        base, _ = drawn(name, 3)
        m, s = base.numbers.chunk(2)
        torch.testing.assert_close(base.log_prob(z), law(m, s.exp()).log_prob(z).sum(-1))
    for name, law in (("Logistic", stats.logistic), ("GeneralizedNormal", stats.gennorm)):
        base, _ = drawn(name, 3)
        m, s = base.numbers.detach().chunk(2)
        shape = {"beta": 3.0} if name == "GeneralizedNormal" else {}
        theirs = law.logpdf(z.numpy(), loc=m.numpy(), scale=s.exp().numpy(), **shape).sum(-1)
        torch.testing.assert_close(base.log_prob(z).detach(), torch.from_numpy(theirs))
    mixture, _ = drawn("GaussianMixture", 3)
    log_weights, means, log_scales = mixture._parts(())
    parts = td.Independent(td.Normal(means, log_scales.exp()), 1)
    theirs = td.MixtureSameFamily(td.Categorical(logits=log_weights), parts).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z), theirs)
    labelled, (one_hot,) = drawn("ClassConditional", 3)
    theirs = td.Normal(labelled.means[1], labelled.log_scales[1].exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(labelled.log_prob(z, one_hot), theirs)
    box = fk.Uniform(2, low=-1.0, high=(2.0, 3.0))
    inside = td.Uniform(torch.tensor([-1.0, -1.0]), torch.tensor([2.0, 3.0])).log_prob(torch.zeros(2)).sum()
    assert box.log_prob(torch.zeros(2)).item() == pytest.approx(inside.item())
    assert box.log_prob(torch.tensor([[0.0, 4.0], [math.nan, 0.0]]))[0] == -math.inf
    assert box.log_prob(torch.tensor([[0.0, 4.0], [math.nan, 0.0]]))[1].isnan()


@pytest.mark.parametrize("df", [0.1, 399.0, 401.0, 1e6, 1e12, 1e30])
def test_student_t_keeps_its_digits_up_to_the_normal(df):
    z = torch.linspace(-3, 3, 7).unsqueeze(1)
    theirs = torch.as_tensor(stats.t(df).logpdf(z.numpy())).sum(-1)
    torch.testing.assert_close(fk.StudentT(1, df=df).log_prob(z).detach(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.Uniform(2, low=1.0, high=0.0), "low must be below high"),
        (lambda: fk.Uniform(2, low=[0.0, 0.0, 0.0]), "a number or 2 of them"),
        (lambda: fk.LowRankNormal(2, rank=0), "rank must be an int of at least 1, got 0"),
        (lambda: fk.GeneralizedNormal(2, beta=0.0), "beta must be positive and finite, got 0.0"),
        (lambda: fk.StudentT(2, df=0.0), "degrees of freedom, must be at least 0.1 and finite, got 0.0"),
        (lambda: fk.DiagonalNormal(2, subnet=MLP), "DiagonalNormal: a subnet needs conditions"),
        (lambda: fk.JointBase({"a.b": fk.StandardNormal(1)}), "outputs have identifiers for names, got 'a.b'"),
        (
            lambda: fk.JointBase({"a": fk.StandardNormal(1)}, takes={"a": 0}),
            "JointBase: takes must be tuples of ints",
        ),
        (lambda: fk.GaussianMixture(2, components=0), "components must be an int of at least 1, got 0"),
        (lambda: fk.GaussianMixture(2, spread=-1.0), "spread must be at least 0"),
        (lambda: fk.ClassConditional(2), r"takes one condition \(classes,\)"),
        (lambda: fk.Laplace(2, given=(1, 4, 4)), r"Laplace takes vectors as conditions.*ToVector"),
        (lambda: fk.Laplace(2, subnet=MLP), "a subnet needs conditions"),
        (lambda: fk.FullNormal(0), "positive number of dimensions, got 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()


@every
def test_a_sample_is_a_function_of_noise(name):
    """The same at a temperature that is a tensor; a base may have no such noise (then its `sample` is its own)."""
    base, conditions = drawn(name, 3)
    if type(base).from_noise is Base.from_noise:
        assert type(base).sample is not Base.sample
        return
    for temperature in (0.7, 1.5):
        torch.manual_seed(3)
        z = base.sample((6,), *conditions, temperature=temperature)
        torch.manual_seed(3)
        noise = base.noise((6,))
        assert torch.equal(base.from_noise(noise, *conditions, temperature=torch.tensor(temperature)), z)
        assert torch.equal(base.from_noise(noise, *conditions, temperature=temperature), z)


def test_a_base_without_samples_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match="Base has no noise"):
        Base(2).sample((3,))
    with pytest.raises(NotImplementedError, match="Base has no from_noise"):
        Base(2).from_noise(torch.zeros(3, 2))


@pytest.mark.parametrize(("dim", "area"), [(2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)])
def test_the_uniform_sphere(dim, area):
    """Its density is one over the area; every coordinate of a draw has mean 0 and variance 1 / dim."""
    torch.manual_seed(0)
    base = fk.UniformSphere(dim)
    z = base.sample((50_000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(50_000))
    torch.testing.assert_close(base.log_prob(z).exp(), torch.full((50_000,), 1 / area))
    torch.testing.assert_close(z.T @ z / 50_000, torch.eye(dim) / dim, atol=0.01, rtol=0)
    assert base.log_prob(z[0] * math.nan).isnan()
    with pytest.raises(fk.ConfigError, match="two or more coordinates, got 1"):
        fk.UniformSphere(1)


@pytest.mark.parametrize("beta", [0.5, 1.0, 20.0, 50.0])
def test_draws_of_generalized_normals_follow_scipy_s_law_in_float32(beta):
    torch.manual_seed(0)
    z = fk.GeneralizedNormal(1, beta=beta).float().sample((4000,)).detach().double()
    assert stats.kstest(z[:, 0].numpy(), stats.gennorm(beta).cdf).pvalue > 0.01


def test_draws_of_a_generalized_normal_like_a_box_are_uniform():
    torch.manual_seed(0)
    z = fk.GeneralizedNormal(1, beta=1e6).float().sample((4000,)).detach().double()
    assert stats.kstest(z[:, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("rank", [2, 5])
def test_a_low_rank_normal_of_nearly_no_noise_has_its_density_in_float32(rank):
    """More causes than dimensions, or two that are nearly one: no Cholesky factor was found in float32."""
    torch.manual_seed(0)
    base = fk.LowRankNormal(3, rank=rank)
    with torch.no_grad():
        base.numbers[3:6] = -9.0
        factor = torch.randn(3, rank)
        factor[:, 1] = factor[:, 0] * (1 + 1e-6)
        base.numbers[6:] = factor.flatten()
        z = base.sample((20,))
    wanted = base.log_prob(z)
    assert torch.linalg.norm(wanted).isfinite()
    single = fk.LowRankNormal(3, rank=rank).float()
    single.load_state_dict(base.state_dict())
    near = z.float().requires_grad_()
    found = single.log_prob(near)
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), [near, single.numbers])[1].isfinite().all()
