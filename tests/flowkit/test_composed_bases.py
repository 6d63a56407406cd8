"""Resampled, joint and wrapped bases, and labels: what the one test over every base cannot know of them."""

import copy
import math

import pytest
import torch
from torch import distributions as td

import flowkit as fk

MLP = fk.MLP(hidden=6, activation="silu", zero_last=False)
STEEP = fk.MLP(hidden=16, activation="tanh", zero_last=False)


def test_resampled_against_its_formula_and_its_fixed_points():
    """With D = 1 all integrals are sums: the density is that of T proposals, and the points give Z to 1e-3."""
    torch.manual_seed(0)
    base = fk.Resampled(1, truncation=4, points=4096, subnet=STEEP)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(2)
        grid = torch.linspace(-8, 8, 8001)[:, None]
        accept = base._log_accept(grid, []).exp()
        normal = td.Normal(0.0, 1.0).log_prob(grid[:, 0]).exp()
        z_true = torch.trapezoid(accept * normal, grid[:, 0])
        assert 0.05 < z_true < 0.95
        assert accept.max() / accept.min() > 2
        torch.testing.assert_close(base.normalizer(), z_true, atol=1e-3, rtol=0)
        rejected = (1 - z_true) ** 3
        by_hand = normal * accept / z_true * (1 - rejected) + normal * rejected
        torch.testing.assert_close(base.log_prob(grid).exp(), by_hand, atol=2e-3, rtol=0)
        before = base.points.clone()
        base.redraw()
        assert not torch.equal(before, base.points)
        torch.testing.assert_close(base.normalizer(), z_true, atol=1e-3, rtol=0)


def test_a_hole_of_a_resampled_base_is_deep_not_infinitely_so_in_float32():
    """An acceptance below 1e-38 is 0 in float32: its logarithm is not, nor are its gradients."""
    torch.manual_seed(0)
    wide = fk.Resampled(2, truncation=100, points=256, subnet=MLP)
    with torch.no_grad():
        wide.net.rest[-1].weight.mul_(1000)
    narrow = copy.deepcopy(wide).float()
    z = (2 * torch.randn(500, 2)).float().requires_grad_()
    log_prob = narrow.log_prob(z)
    assert narrow._log_accept(z, []).min() < -110
    torch.testing.assert_close(log_prob, wide.log_prob(z.double()).float(), rtol=1e-3, atol=1e-3)
    grads = torch.autograd.grad(log_prob.sum(), [z, *narrow.parameters()])
    assert all(grad.isfinite().all() for grad in grads)


def test_labels_under_vmap():
    base = fk.ClassConditional(2, given=((),), classes=3)
    z, labels = torch.randn(4, 2), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(torch.func.vmap(base.log_prob)(z, labels), base.log_prob(z, labels))


def test_student_t_beyond_the_root_of_the_largest_float32():
    z = torch.tensor([[1e20], [-1e30]], dtype=torch.float32)
    wanted = td.StudentT(5.0).log_prob(z.double())[:, 0]
    torch.testing.assert_close(fk.StudentT(1).float().log_prob(z).double(), wanted, rtol=1e-6, atol=0)


def test_resampling_starts_as_the_normal():
    z = torch.randn(5, 3)
    torch.testing.assert_close(fk.Resampled(3).log_prob(z), fk.StandardNormal(3).log_prob(z), atol=1e-12, rtol=0)
    once = fk.Resampled(3, truncation=1, subnet=STEEP)
    torch.testing.assert_close(once.log_prob(z), fk.StandardNormal(3).log_prob(z))


def test_a_joint_base_passes_on_conditions_and_temperature():
    torch.manual_seed(0)
    labelled = fk.ClassConditional(2, given=3)
    free, vector = fk.StandardNormal(1), fk.DiagonalNormal(3, given=2, subnet=MLP)
    base = fk.JointBase({"a": labelled, "b": free, "c": vector}, given=((3,), (2,)), takes={"a": [0], "c": [1]})
    one_hot, c, z = torch.eye(3)[:2], torch.randn(2, 2), torch.randn(2, 6)
    wanted = labelled.log_prob(z[:, :2], one_hot) + free.log_prob(z[:, 2:3]) + vector.log_prob(z[:, 3:], c)
    torch.testing.assert_close(base.log_prob(z, one_hot, c), wanted)
    torch.testing.assert_close(base.log_prob_of_parts([z[:, :2], z[:, 2:3], z[:, 3:]], one_hot, c), wanted)
    torch.testing.assert_close(base.log_prob_of_parts([z[:, :4], z[:, 4:]], one_hot, c), wanted)
    cold = base.sample((2,), one_hot, c, temperature=0.0)
    torch.testing.assert_close(cold[:, :2], labelled.means[:2])
    assert not cold[:, 2].any()


def test_a_joint_base_must_fit_the_outputs():
    graph = fk.Graph()
    for name, wire in zip(("fine", "coarse"), graph.add(fk.Split, graph.input("x", (3,))), strict=True):
        graph.output(name, wire)
    base = fk.JointBase({"fine": fk.Laplace(1), "coarse": fk.StudentT(2)})
    flow = fk.Flow(graph, base=base)
    assert flow.log_prob(torch.zeros(4, 3)).shape == (4,)
    for parts in ({"coarse": fk.Laplace(2), "fine": fk.Laplace(1)}, {"fine": fk.Laplace(2), "coarse": fk.Laplace(1)}):
        with pytest.raises(fk.ShapeError, match=r"in this order, the flow's outputs are \{'fine': 1, 'coarse': 2\}"):
            fk.Flow(graph, base=fk.JointBase(parts))


def test_torch_distributions_of_several_kinds():
    covariance = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    z = torch.rand(7, 2)
    base = fk.TorchDistribution(2, "MultivariateNormal", loc=[0.0, 1.0], covariance_matrix=covariance.tolist())
    theirs = td.MultivariateNormal(torch.tensor([0.0, 1.0]), covariance)
    torch.testing.assert_close(base.log_prob(z), theirs.log_prob(z))
    positive = fk.TorchDistribution(2, "Gamma", concentration=2.0, rate=[1.0, 3.0])
    torch.testing.assert_close(positive.log_prob(z), td.Gamma(2.0, torch.tensor([1.0, 3.0])).log_prob(z).sum(-1))
    assert positive.log_prob(torch.tensor([1.0, -1.0])) == -math.inf
    assert positive.log_prob(torch.tensor([1.0, math.nan])).isnan()
    cauchy = fk.TorchDistribution(2, "Cauchy", loc=1.0, scale=2.0)
    assert cauchy.sample((3,), temperature=0.0).tolist() == [[1.0, 1.0]] * 3
    single = fk.TorchDistribution(2, "Gumbel", loc=0.0, scale=1.0).float()
    assert single.sample((3,)).dtype == single.log_prob(single.sample((3,))).dtype == torch.float32


def test_a_factory_without_a_name_works_until_it_is_saved(tmp_path):
    flow = fk.Flow(fk.Identity((2,)), base=fk.TorchDistribution(2, lambda loc: td.Normal(loc, 1.0), loc=[0.0, 1.0]))
    assert flow.log_prob(torch.zeros(3, 2)).shape == (3,)
    with pytest.raises(fk.StorageError, match=r"the base.*<function.*no written form"):
        fk.save(flow, tmp_path / "flow.safetensors")


def test_labels_choose_what_one_hot_vectors_choose():
    torch.manual_seed(0)
    labels, z = torch.tensor([2, 0, 1]), torch.randn(3, 2)
    base = fk.ClassConditional(2, given=((),), classes=3)
    twin = fk.ClassConditional(2, given=3)
    twin.load_state_dict(base.state_dict())
    torch.testing.assert_close(base.log_prob(z, labels), twin.log_prob(z, torch.eye(3)[labels]))
    for wrong, message in ((torch.tensor([0, 3]), "from 0 to 2, got 3"), (torch.tensor([0.0, 1.0]), "integer labels")):
        with pytest.raises(fk.InputError, match=message):
            base.log_prob(z[:2], wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.Resampled(2, truncation=0), "truncation must be an int of at least 1, got 0"),
        (lambda: fk.Resampled(2, points=0), "points must be an int of at least 1"),
        (lambda: fk.Resampled(2, given=(1, 4, 4)), "takes vectors as conditions"),
        (lambda: fk.JointBase({}), "instances of fk.Base by the names of outputs"),
        (lambda: fk.JointBase({"a": fk.Laplace}), "instances of fk.Base"),
        (lambda: fk.JointBase({"a": fk.Laplace(1)}, takes={"b": [0]}), "takes names 'b', the parts are a"),
        (lambda: fk.JointBase({"a": fk.Laplace(1)}, takes={"a": [0]}), "there are 0"),
        (lambda: fk.JointBase({"a": fk.Laplace(1, given=2), "b": fk.Laplace(1, given=3)}), "'b' .Laplace. takes cond"),
        (lambda: fk.TorchDistribution(2, "Nothing"), "torch.distributions has no distribution 'Nothing'"),
        (lambda: fk.TorchDistribution(2, "sys"), "has no distribution 'sys'"),
        (lambda: fk.TorchDistribution(2, "Poisson", rate=1.0), "Poisson is discrete"),
        (lambda: fk.TorchDistribution(2, "Normal", loc=0.0), "Normal cannot be made"),
        (lambda: fk.TorchDistribution(2, "Normal", loc=[0.0] * 3, scale=1.0), "has 3 elements, not 2"),
        (lambda: fk.TorchDistribution(2, "Dirichlet", concentration=[1.0] * 3), r"of shape \(3,\)"),
        (lambda: fk.TorchDistribution(2, lambda: 3), "made a int, no torch Distribution"),
        (lambda: fk.ClassConditional(2, given=((),)), "pass classes="),
        (lambda: fk.ClassConditional(2, given=3, classes=4), r"classes is 4, the condition is of \(3,\)"),
        (lambda: fk.Uniform(2, given=(1, 2, 2)), "takes vectors"),
        (lambda: fk.Uniform(2, subnet=MLP), "a subnet needs conditions"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()


def test_torch_distributions_without_a_density_there_or_with_wrong_arguments_are_refused():
    with pytest.raises(fk.ConfigError, match=r"Dirichlet lives on a simplex, so has no density in \(3,\)"):
        fk.TorchDistribution(3, "Dirichlet", concentration=[1.0, 2.0, 3.0])
    with pytest.raises(fk.ConfigError, match="Normal cannot be made: Expected parameter scale"):
        fk.TorchDistribution(2, "Normal", loc=0.0, scale=-1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: td.MixtureSameFamily(td.Categorical(torch.tensor([0.4, 0.6])), td.VonMises(torch.arange(2.0), 2.0)),
        lambda: td.TransformedDistribution(td.VonMises(0.5, 3.0), [td.AffineTransform(1.0, -2.0)]),
        lambda: td.Kumaraswamy(2.0, 3.0),
        lambda: td.TransformedDistribution(td.Gamma(2.0, 1.0), [td.AffineTransform(-1.0, 0.5)]),
    ],
)
def test_a_factory_s_distribution_has_density_zero_outside_and_integrates_to_one(make):
    """Angles repeat every turn also in a mixture or transformed, and torch's own check of the data is an error."""
    base = fk.TorchDistribution(1, make)
    z = torch.linspace(-20, 20, 40_001)[:, None]
    log_prob = base.log_prob(z)
    assert log_prob[0].item() == -math.inf
    assert torch.trapezoid(log_prob.exp(), z[:, 0]).item() == pytest.approx(1, abs=1e-3)
    assert base.log_prob(base.sample((50,))).isfinite().all()
    assert make()._validate_args  # what the factory makes is left as it is


def test_von_mises_has_the_density_of_one_turn():
    base = fk.TorchDistribution(1, "VonMises", loc=1.0, concentration=2.0)
    z = torch.linspace(-12, 12, 24_001)[:, None]
    assert torch.trapezoid(base.log_prob(z).exp(), z[:, 0]).item() == pytest.approx(1, abs=1e-3)
    assert base.log_prob(base.sample((100,))).isfinite().all()
    assert base.float().log_prob(torch.tensor([[-math.pi], [math.pi]], dtype=torch.float32)).isfinite().all()


def test_labels_that_are_bytes_are_no_mask():
    base = fk.ClassConditional(2, given=((),), classes=3)
    labels, z = torch.tensor([0, 1, 0]), torch.randn(3, 2)
    torch.testing.assert_close(base.log_prob(z, labels.to(torch.uint8)), base.log_prob(z, labels))
