"""zuko's flows converted, and flowkit's used by zuko: the same log-probs, samples of the same noise and gradients."""

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.interop import ZukoTransform, as_zuko, from_zuko

zuko = pytest.importorskip("zuko")
HIDDEN = {"transforms": 2, "hidden_features": (6,)}
FLOWS = {  # zuko inverts the last five by bisection or by an ODE
    "NICE": ({}, 1e-9),
    "RealNVP": ({}, 1e-9),
    "MAF": ({}, 1e-9),
    "NSF": ({"bins": 4}, 1e-8),
    "NCSF": ({"bins": 4}, 1e-8),
    "GF": ({"components": 3}, 1e-3),
    "NAF": ({"signal": 3, "network": {"hidden_features": (4,)}}, 1e-3),
    "UNAF": ({"signal": 3, "network": {"hidden_features": (4,)}}, 1e-3),
    "SOSPF": ({"degree": 2, "polynomials": 2}, 1e-3),
    "BPF": ({"degree": 4}, 1e-3),
}


def redraw(module, scale=0.1):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def gradients(module):
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_samples_and_gradients(name, context):
    options, tolerance = FLOWS[name]
    theirs = redraw(getattr(zuko.flows, name)(3, context or 0, **HIDDEN, **options))
    ours = from_zuko(theirs, condition=context)
    x, c = torch.randn(4, 3) * 0.8, None if context is None else torch.randn(4, context)
    x.requires_grad_()
    expected, found = theirs(c).log_prob(x), ours.log_prob(x, given=c)
    torch.testing.assert_close(found, expected)
    of_x = [torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*of_x)
    x = x.detach()
    expected.sum().backward()
    found.sum().backward()
    wanted, got = gradients(theirs), gradients(ours)
    assert len(wanted) > 0
    if name == "GF" and context is None:  # flowkit has one parameter where zuko has one for shifts and one for scales
        wanted, got = wanted[2::3], got[1::2]
    for a, b in zip(got, wanted, strict=True):
        if b.dim() == 2 and torch.equal(b, -b.mT):  # a rotation's, of which flowkit learns the upper half
            b = b.triu(1)
        torch.testing.assert_close(a, b)
    torch.manual_seed(5)
    samples = theirs(c).sample((6,))
    torch.manual_seed(5)
    bisected = {"atol": 1e-5, "rtol": 1e-5} if tolerance == 1e-3 else {}  # zuko stops at 1e-6
    drawn = ours.sample((6,), given=c)
    if name == "GF":  # its image ends at 4.9: what a layer cannot reach has no inverse, there or here
        torch.manual_seed(5)
        reached = (theirs(c).transform(samples) - torch.randn_like(samples)).abs().amax(-1) < 1e-4
        assert reached.any()
        drawn, samples = drawn[reached], samples[reached]
    torch.testing.assert_close(drawn, samples, **bisected)
    z, log_det = ours(x, given=c)
    back, back_log_det = ours.inverse(z, given=c)
    torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(back_log_det, -log_det, atol=10 * tolerance, rtol=10 * tolerance)
    parts = [part for _, part in ours.network.nodes.items()]
    assert any(isinstance(m, ZukoTransform) for m in parts) == (name in ("NAF", "UNAF"))
    assert any(m.iterative for m in parts) == (tolerance == 1e-3)
    assert any(m.slow_inverse for m in parts) == (name not in ("NICE", "RealNVP", "GF"))


@pytest.mark.parametrize("exact", [True, False])
def test_continuous_flow(exact):
    theirs = redraw(zuko.flows.CNF(3, 2, hidden_features=(6,), exact=exact))
    ours = from_zuko(theirs, condition=2)
    x, c = torch.randn(4, 3), torch.randn(4, 2)
    torch.manual_seed(1)
    expected = theirs(c).log_prob(x)
    torch.manual_seed(1)
    found = ours.log_prob(x, given=c)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    part = next(m for m in ours.modules() if isinstance(m, ZukoTransform))
    assert part.adaptive
    assert part.stochastic != exact
    assert bool(ours.exact) == exact
    torch.testing.assert_close(ours.inverse(ours(x, given=c)[0], given=c)[0], x, atol=1e-3, rtol=1e-3)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in ours.network.parameters())


def test_float32():
    torch.set_default_dtype(torch.float32)
    theirs = redraw(zuko.flows.NSF(3, 2, transforms=2, hidden_features=(6,)))
    ours = from_zuko(theirs, condition=2)
    x, c = torch.randn(4, 3), torch.randn(4, 2)
    torch.testing.assert_close(ours.log_prob(x, given=c), theirs(c).log_prob(x))
    assert ours(x, given=c)[1].dtype == torch.float32


def test_mixture_and_own_parts():
    mixture = redraw(zuko.mixtures.GMM(2, 3, components=2, hidden_features=(4,)))
    ours = from_zuko(mixture, condition=3)
    x, c = torch.randn(5, 2), torch.randn(5, 3)
    torch.testing.assert_close(ours.log_prob(x, given=c), mixture(c).log_prob(x))
    assert ours.sample((7,), given=c).shape == (7, 5, 2)
    lazy = zuko.lazy.UnconditionalTransform
    theirs = zuko.lazy.Flow(
        [
            lazy(zuko.transforms.MonotonicAffineTransform, torch.zeros(3), torch.ones(3)),
            lazy(zuko.transforms.PermutationTransform, torch.tensor([2, 0, 1]), buffer=True),
            lazy(zuko.transforms.RotationTransform, torch.randn(3, 3)),
        ],
        zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.ones(3), torch.ones(3) * 2),
    )
    ours = from_zuko(theirs)
    x = torch.randn(5, 3)
    torch.testing.assert_close(ours.log_prob(x), theirs().log_prob(x))
    assert "Permute" in [type(m).__name__ for m in ours.modules()]
    cold, _ = ours.inverse(torch.ones(1, 3))
    torch.testing.assert_close(ours.sample((1,), temperature=0.0), cold)


def box():
    return zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize(
    ("make", "context"),
    [
        (lambda: zuko.mixtures.GMM(2, 0, components=3, covariance_type="full"), None),
        (lambda: zuko.mixtures.GMM(2, 3, components=2, covariance_type="full", hidden_features=(4,)), 3),
        (lambda: zuko.mixtures.GMM(2, 3, components=2, covariance_type="diagonal", hidden_features=(4,)), 3),
        (box, None),
    ],
)
def test_samples_of_bases_are_functions_of_noise(make, context):
    torch.manual_seed(0)
    flow = from_zuko(redraw(make()), condition=context)
    base, c = flow.base, [] if context is None else [torch.randn(context)]
    noise = base.noise((40_000,))
    z = base.from_noise(noise, *c)
    assert torch.equal(z, base.from_noise(noise, *c))
    made = flow.base.lazy(*c)
    expected = made.sample((40_000,))
    # Standard errors of means and of second moments: below 0.02 and 0.1 for these, twice.
    spread = expected.std(0) / 200
    assert ((z.mean(0) - expected.mean(0)).abs() < 6 * spread).all()
    second, wanted = z.square(), expected.square()
    assert ((second.mean(0) - wanted.mean(0)).abs() < 6 * wanted.std(0) / 200).all()
    assert base.from_noise(base.noise((4, 5)), *c, temperature=0.5).shape == (4, 5, 2)


def test_what_does_not_convert_is_refused():
    with pytest.raises(fk.ConfigError, match="takes a lazy flow of zuko, got Linear"):
        from_zuko(nn.Linear(2, 2))
    with pytest.raises(fk.ConfigError, match=r"zuko's MAF does not run with no context: .*condition=features"):
        from_zuko(zuko.flows.MAF(3, 2))
    with pytest.raises(fk.ConfigError, match=r"does not run with a context of shape \(4,\)"):
        from_zuko(zuko.flows.MAF(3, 2), condition=4)
    with pytest.raises(fk.ConfigError, match="takes a Flow or a bijection, got Linear"):
        as_zuko(nn.Linear(2, 2))
    with pytest.raises(fk.ShapeError, match="one input and one output"):
        as_zuko(fk.Split((3,), sizes=(1, 2)))
    with pytest.raises(fk.ShapeError, match="a context of zuko is a vector"):
        as_zuko(fk.AffineCoupling((2, 3, 3), given=((1, 3, 3),)))
    with pytest.raises(fk.ConditionError, match="needs a context of 2 features, got none"):
        as_zuko(fk.AffineCoupling((3,), given=2))()
    with pytest.raises(fk.ConditionError, match="needs a context of 2 features, got 5 features"):
        as_zuko(fk.AffineCoupling((3,), given=2))(torch.zeros(5))


def test_a_flow_as_zukos_lazy_distribution():
    flow = redraw(fk.flows.nsf(3, 2, layers=2, hidden=(6,)), 0.3)
    lazy = as_zuko(flow)
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    assert isinstance(lazy, zuko.lazy.LazyDistribution)
    torch.testing.assert_close(lazy(c).log_prob(x), flow.log_prob(x, given=c))
    torch.manual_seed(3)
    samples = lazy(c).sample((4,))
    torch.manual_seed(3)
    torch.testing.assert_close(samples, flow.sample((4,), given=c))
    lazy(c).log_prob(x).sum().backward()
    assert sum(g.abs().sum() for g in gradients(lazy)) > 0
    back = from_zuko(lazy, condition=2)
    torch.testing.assert_close(back.log_prob(x, given=c), flow.log_prob(x, given=c))


@pytest.mark.parametrize("context", [(), (2, 1)])
def test_bijections_inside_zukos_flow(context):
    parts = [redraw(fk.AffineCoupling((3,), given=tuple((n,) for n in context)), 0.3), fk.Permute((3,))]
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(3), torch.ones(3), buffer=True
    )
    theirs = zuko.lazy.Flow([as_zuko(part) for part in parts], base)
    x, c = torch.randn(5, 3), torch.randn(5, 3) if context else None
    given = c.split(context, -1) if context else ()
    y, log_det = parts[0](x, *given)
    z, _ = parts[1](y)
    torch.testing.assert_close(theirs(c).log_prob(x), base().log_prob(z) + log_det)
    assert theirs(c).sample((7,)).shape == (7, 5, 3) if context else (7, 3)
    torch.testing.assert_close(theirs(c).transform.inv(z), x)
    again = from_zuko(theirs, condition=3 if context else None)
    torch.testing.assert_close(again.log_prob(x, given=c), theirs(c).log_prob(x))
