"""nflows' flows converted: the same log-probs, samples of the same noise and gradients; the wrong ones refused."""

import warnings

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.interop import NflowsTransform, from_nflows

pytest.importorskip("nflows")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nflows.distributions as nd
    import nflows.transforms as nt
    from nflows.distributions.normal import DiagonalNormal
    from nflows.distributions.uniform import BoxUniform
    from nflows.flows import Flow, MaskedAutoregressiveFlow, SimpleRealNVP
    from nflows.nn.nets import ResidualNet
    from nflows.transforms.nonlinearities import CauchyCDF

MASK = [0, 1, 0]
TAILS = {"tails": "linear", "tail_bound": 3.0}


def net(c_in, c_out):
    return ResidualNet(c_in, c_out, hidden_features=6)


def conditional_net(c_in, c_out):
    return ResidualNet(c_in, c_out, hidden_features=6, context_features=2)


def multiscale():
    composite = nt.MultiscaleCompositeTransform(2)
    shape = composite.add_transform(nt.OneByOneConvolution(4, identity_init=False), (4, 2, 2))
    composite.add_transform(nt.PointwiseAffineTransform(0.5, 2.0), shape)
    return nt.CompositeTransform([nt.SqueezeTransform(), composite])


TRANSFORMS = {
    "LULinear": (nt.LULinear, 3, {"using_cache": True, "identity_init": False}),
    "QRLinear": (nt.QRLinear, 3, {"num_householder": 2}),
    "SVDLinear": (nt.SVDLinear, 3, {"num_householder": 2}),
    "HouseholderSequence": (nt.HouseholderSequence, 3, {"num_transforms": 2}),
    "OneByOneConvolution": (nt.OneByOneConvolution, 3, {"identity_init": False}),
    "LogTanh": (nt.LogTanh, None, {}),
    "LeakyReLU": (nt.LeakyReLU, None, {"negative_slope": 0.3}),
    "Sigmoid": (nt.Sigmoid, None, {"learn_temperature": True}),
    "CauchyCDF": (CauchyCDF, None, {}),
    "PiecewiseLinearCDF": (nt.PiecewiseLinearCDF, (3,), TAILS),
    "PiecewiseRationalQuadraticCDF": (nt.PiecewiseRationalQuadraticCDF, (3,), TAILS),
    "AffineCoupling": (nt.AffineCouplingTransform, MASK, {"transform_net_create_fn": net}),
    "AdditiveCoupling": (nt.AdditiveCouplingTransform, MASK, {"transform_net_create_fn": net}),
    "QuadraticCoupling": (nt.PiecewiseQuadraticCouplingTransform, MASK, {"transform_net_create_fn": net, **TAILS}),
    "CubicCoupling": (nt.PiecewiseCubicCouplingTransform, MASK, {"transform_net_create_fn": net, **TAILS}),
    "SplineCoupling": (
        nt.PiecewiseRationalQuadraticCouplingTransform,
        MASK,
        {"transform_net_create_fn": net, "apply_unconditional_transform": True, **TAILS},
    ),
    "MaskedAffine": (nt.MaskedAffineAutoregressiveTransform, 3, {"hidden_features": 6}),
    "MaskedSpline": (
        nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        3,
        {"hidden_features": 6, **TAILS},
    ),
    "RandomPermutation": (nt.RandomPermutation, 3, {}),
    "ReversePermutation": (nt.ReversePermutation, 3, {}),
    "PointwiseAffine": (
        nt.PointwiseAffineTransform,
        torch.ones(3).double(),
        {"scale": torch.arange(1.0, 4.0).double()},
    ),
    "Identity": (nt.IdentityTransform, None, {}),
}


# Their parameters are packed otherwise, or constrained otherwise, so the gradients with respect to them differ.
REPACKED = (
    *("LULinear", "QRLinear", "SVDLinear", "OneByOneConvolution"),
    *("PointwiseAffine", "PiecewiseLinearCDF", "PiecewiseRationalQuadraticCDF"),
)

INVERSES = {"CubicCoupling": 1e-3, "PiecewiseLinearCDF": 1e-5}  # nflows leaves out a term, and moves the last knot


def build(name):
    cls, first, options = TRANSFORMS[name]
    return cls(**options) if first is None else cls(first, **options)


def redraw(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def same(theirs, ours, shape, context=None, tolerance=1e-9, repacked=False, inverse_tolerance=None):
    """Log-prob, both directions, and gradients: of x and the context, and, where not repacked, of every parameter."""
    close = {"atol": tolerance, "rtol": tolerance}
    embedded = theirs._embedding_net(context)
    z = torch.randn(5, *getattr(theirs._distribution, "_shape", (3,)))
    expected_x, expected_log_det = theirs._transform.inverse(z, context=embedded)
    x, log_det = ours.inverse(z.flatten(1), given=context)
    inverse = close if inverse_tolerance is None else {"atol": inverse_tolerance, "rtol": inverse_tolerance}
    torch.testing.assert_close(x, expected_x, **inverse)
    torch.testing.assert_close(log_det, expected_log_det, **inverse)
    x = x.detach().requires_grad_()
    leaves = [x] if context is None else [x, context.requires_grad_()]
    assert x.shape[1:] == shape
    expected, found = theirs.log_prob(x, context=context), ours.log_prob(x, given=context)
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(ours.inverse(ours(x, given=context)[0], given=context)[0], x, atol=1e-5, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(found.sum(), leaves, retain_graph=True),
        torch.autograd.grad(expected.sum(), leaves, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **close)
    if repacked or not any(p.requires_grad for p in theirs.parameters()):
        return
    expected.sum().backward()
    found.sum().backward()
    wanted = [p.grad for p in theirs.parameters() if p.grad is not None and p.grad.any()]
    got = [p.grad for p in ours.parameters() if p.grad is not None and p.grad.any()]
    assert len(got) == len(wanted) > 0
    for gradient in wanted:  # the embedding net comes first here, and last there
        assert any(
            g.numel() == gradient.numel() and torch.allclose(g.flatten(), gradient.flatten(), **close) for g in got
        )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_gives_the_same(name):
    shape = (3, 2, 2) if name == "OneByOneConvolution" else (3,)
    theirs = redraw(Flow(build(name), nd.StandardNormal(shape))).eval()
    ours = from_nflows(theirs)
    if name in ("Sigmoid", "CauchyCDF"):  # the latent lies in (0, 1)
        x = torch.randn(5, 3)
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
        torch.testing.assert_close(ours.inverse(ours(x)[0])[0], x)
        return
    same(theirs, ours, shape, repacked=name in REPACKED, inverse_tolerance=INVERSES.get(name))


def test_float32():
    torch.set_default_dtype(torch.float32)
    theirs = redraw(Flow(build("SplineCoupling"), nd.StandardNormal((3,)))).eval()
    same(theirs, from_nflows(theirs), (3,), tolerance=1e-5)


def test_multiscale_images():
    theirs = redraw(Flow(multiscale(), nd.StandardNormal((16,)))).eval()
    same(theirs, from_nflows(theirs), (1, 4, 4))


def embedding():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def conditional(base):
    parts = [
        nt.MaskedAffineAutoregressiveTransform(3, 6, context_features=2),
        nt.RandomPermutation(3),
        nt.LULinear(3, identity_init=False),
        nt.PiecewiseRationalQuadraticCouplingTransform(MASK, conditional_net, **TAILS),
    ]
    return redraw(Flow(nt.CompositeTransform(parts), base, embedding())).eval()


def test_context_and_embedding_net():
    theirs = conditional(nd.StandardNormal((3,)))
    ours = from_nflows(theirs, condition=4)
    assert ours.condition_shapes == {"y": (4,)}
    same(theirs, ours, (3,), torch.randn(5, 4), repacked=True)
    names = [type(node.module).__name__ for node in ours.network.graph.nodes if node.kind == "bijection"]
    assert names == ["FriendsAutoregressive", "Permute", "LULinear", "Elementwise", "Coupling"]


@pytest.mark.parametrize(
    "base",
    [
        lambda: nd.ConditionalDiagonalNormal((3,), nn.Linear(2, 6)),
        lambda: nd.MADEMoG(3, 6, 2, num_mixture_components=2),
    ],
)
def test_conditional_bases(base):
    theirs = conditional(base())
    ours = from_nflows(theirs, condition=4)
    context = torch.randn(5, 4)
    same(theirs, ours, (3,), context, repacked=True)
    samples, log_prob = ours.given(context).sample_and_log_prob((7,))
    assert samples.shape == (7, 5, 3)
    flat = theirs.log_prob(samples.flatten(0, 1), context=context.repeat(7, 1)).reshape(7, 5)
    torch.testing.assert_close(log_prob, flat)


class Doubled(nn.Linear):
    """An encoder that no file can name."""


@pytest.mark.parametrize("encoder", [lambda: nn.Linear(2, 6), lambda: Doubled(2, 6), None])
def test_samples_of_a_conditional_normal_are_functions_of_noise(encoder, tmp_path):
    size = 6 if encoder is None else 2
    theirs = redraw(Flow(nt.IdentityTransform(), nd.ConditionalDiagonalNormal((3,), encoder and encoder())))
    ours, context = from_nflows(theirs, condition=size), torch.randn(5, size)
    torch.testing.assert_close(
        ours.log_prob(torch.ones(5, 3), given=context), theirs.log_prob(torch.ones(5, 3), context)
    )
    noise = torch.randn(7, 5, 3)
    mean, log_scale = theirs._distribution._compute_params(context)
    found = ours.base.from_noise(noise, context, temperature=0.5)
    torch.testing.assert_close(found, mean + 0.5 * log_scale.exp() * noise)
    torch.manual_seed(3)
    drawn = ours.base.noise((7, 5))
    torch.manual_seed(3)
    torch.testing.assert_close(ours.sample((7,), given=context), ours.base.from_noise(drawn, context))
    if encoder is not None and isinstance(encoder(), Doubled):
        with pytest.raises(fk.StorageError, match="NflowsBase"):
            fk.save(ours, tmp_path / "flow.safetensors")
    else:
        fk.save(ours, tmp_path / "flow.safetensors")


def test_temperature_is_about_the_mean():
    theirs = conditional(nd.ConditionalDiagonalNormal((3,), nn.Linear(2, 6)))
    context = torch.randn(5, 4)
    mean = theirs._distribution.mean(theirs._embedding_net(context))
    ours = from_nflows(theirs, condition=4)
    expected, _ = theirs._transform.inverse(mean, context=theirs._embedding_net(context))
    torch.testing.assert_close(ours.sample((), given=context, temperature=0.0), expected.detach())
    mixture = from_nflows(conditional(nd.MADEMoG(3, 6, 2)), condition=4).base
    cold = mixture.sample((5,), context[:, :2], temperature=0.0)  # of one component in each dimension: its mean
    assert torch.equal(cold, mixture.sample((5,), context[:, :2], temperature=0.0))


def test_diagonal_normal_and_equal_samples_of_equal_seeds():
    theirs = redraw(Flow(build("AffineCoupling"), DiagonalNormal((3,)))).eval()
    same_base = from_nflows(theirs)
    x = torch.randn(5, 3)
    torch.testing.assert_close(same_base.log_prob(x), theirs.log_prob(x))
    theirs = redraw(Flow(build("MaskedSpline"), nd.StandardNormal((3,)))).eval()
    torch.manual_seed(7)
    expected = theirs.sample(6)
    torch.manual_seed(7)
    torch.testing.assert_close(from_nflows(theirs).sample((6,)), expected.detach())


@pytest.mark.parametrize("cls", [MaskedAutoregressiveFlow, SimpleRealNVP])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_ready_flows(cls, batch_norm):
    theirs = redraw(cls(3, 6, 2, 1, batch_norm_between_layers=batch_norm))
    if batch_norm:
        for _ in range(3):
            theirs.log_prob(torch.randn(50, 3))
    theirs.eval()
    ours = from_nflows(theirs).train()
    same(theirs, ours, (3,), repacked=batch_norm)


def test_a_converted_flow_runs_in_reverse_mode_and_inverts_slowly_where_autoregressive():
    theirs = redraw(Flow(build("SplineCoupling"), nd.StandardNormal((3,)))).eval()
    gradients = []
    for mode in ("plain", "reverse"):
        ours = from_nflows(theirs)
        ours.backprop = mode
        torch.manual_seed(2)
        ours.log_prob(torch.randn(4, 3)).sum().backward()
        gradients.append([p.grad for p in ours.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert NflowsTransform(build("MaskedAffine"), 3).slow_inverse
    assert not NflowsTransform(build("AffineCoupling"), 3).slow_inverse


def naive():
    return nt.NaiveLinear(3, orthogonal_initialization=False)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (naive, r"nflows' NaiveLinear cannot be converted: its inverse calls torch\.solve"),
        (nt.GatedLinearUnit, "nflows' GatedLinearUnit cannot be converted: .* for each element"),
        (lambda: nt.ActNorm(3), "nflows' ActNorm cannot be converted: it has seen no data"),
        (lambda: nt.InverseTransform(naive()), "nflows' NaiveLinear cannot be converted"),
    ],
)
def test_wrong_transforms_are_refused_by_name(transform, message):
    with pytest.raises(fk.ConfigError, match=message):
        from_nflows(Flow(nt.CompositeTransform([transform()]), nd.StandardNormal((3,))))


def test_other_refusals(tmp_path):
    identity = nt.IdentityTransform()
    with pytest.raises(fk.ConfigError, match="ConditionalIndependentBernoulli cannot be converted: it is discrete"):
        from_nflows(Flow(identity, nd.ConditionalIndependentBernoulli((3,))))
    with pytest.raises(fk.ConfigError, match="BoxUniform cannot be converted"):
        from_nflows(Flow(identity, BoxUniform(torch.zeros(3), torch.ones(3))))
    with pytest.raises(fk.ConfigError, match=r"takes an nflows.flows.Flow, got Linear"):
        from_nflows(nn.Linear(2, 2))
    with pytest.raises(fk.ConfigError, match="needs condition=, the context's shape"):
        from_nflows(conditional(nd.StandardNormal((3,))))
    with pytest.raises(fk.ConfigError, match="ConditionalDiagonalNormal needs a context"):
        from_nflows(Flow(identity, nd.ConditionalDiagonalNormal((3,))))
    ours = from_nflows(redraw(Flow(nt.LogTanh(), nd.StandardNormal((3,)))), shape=(3,))
    with pytest.raises(
        fk.StorageError, match=r"NflowsTransform\(LogTanh: nflows' LogTanh has no counterpart in flowkit"
    ):
        fk.save(ours, tmp_path / "flow.safetensors")


def test_an_act_norm_that_has_seen_data_converts():
    norm = nt.ActNorm(3)
    norm(torch.randn(20, 3) * 2 + 1)
    theirs = Flow(norm, nd.StandardNormal((3,))).eval()
    same(theirs, from_nflows(theirs), (3,))
