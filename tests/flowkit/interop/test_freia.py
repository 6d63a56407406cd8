"""FrEIA's networks converted: the same z, log-det and gradients; what is wrong there is refused by name."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution

import flowkit as fk
from flowkit.interop import BijectionTransform, FreiaBijection, as_freia, from_freia

ff = pytest.importorskip("FrEIA.framework")
fm = pytest.importorskip("FrEIA.modules")


def dense(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 8), nn.ReLU(), nn.Linear(8, c_out))


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, c_out, 3, padding=1))


def colorization():
    photo, vector = ff.ConditionNode(1, 4, 4, name="photo"), ff.ConditionNode(3)
    x = ff.InputNode(2, 4, 4, name="ab")
    first = ff.Node(x, fm.GLOWCouplingBlock, {"subnet_constructor": conv, "clamp": 1.0}, conditions=photo)
    haar = ff.Node(first, fm.HaarDownsampling, {"rebalance": 0.5, "order_by_wavelet": True})
    split = ff.Node(haar, fm.Split, {"section_sizes": [2, 6], "dim": 0})
    flat = ff.Node(split.out0, fm.Flatten, {})
    mixed = ff.Node(flat, fm.PermuteRandom, {"seed": 0})
    last = ff.Node(mixed, fm.GLOWCouplingBlock, {"subnet_constructor": dense}, conditions=vector)
    outs = [ff.OutputNode(split.out1, name="detail"), ff.OutputNode(last)]
    return ff.GraphINN([x, photo, vector, first, haar, split, flat, mixed, last, *outs])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_graph_gives_the_same_latents_log_det_samples_and_gradients(dtype, tolerance):
    torch.manual_seed(0)
    network = colorization().to(dtype)
    flow = from_freia(network)
    assert list(flow.condition_shapes) == ["photo", "c1"]
    assert list(flow.input_shapes) == ["ab"]
    x, photo, vector = (torch.randn(3, *s, dtype=dtype) for s in ((2, 4, 4), (1, 4, 4), (3,)))
    parts, log_det = network(x, c=[photo, vector])
    given = {"photo": photo, "c1": vector}
    z, found = flow(x, given=given)
    expected = torch.cat([p.flatten(1) for p in parts], 1)
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(z, expected, **close)
    # FrEIA makes the log-det of its Haar in the default dtype.
    torch.testing.assert_close(found, log_det.to(dtype), **close)
    kept = z.detach().clone()
    back, _ = flow.inverse(z, given=given)
    torch.testing.assert_close(back, x, atol=100 * tolerance, rtol=0)
    assert torch.equal(z, kept)
    (expected.square().sum() - log_det.sum()).backward()
    (z.square().sum() - found.sum()).backward()
    theirs = [p.grad for p in network.parameters() if p.requires_grad]
    ours = [p.grad for p in flow.network.parameters() if p.requires_grad]
    assert sum(g.abs().sum() for g in ours) > 0
    for found_grad, expected_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found_grad, expected_grad, atol=20 * tolerance, rtol=20 * tolerance)


def test_sequence_with_conditions():
    torch.manual_seed(1)
    network = ff.SequenceINN(4)
    for _ in range(2):
        network.append(fm.AllInOneBlock, cond=0, cond_shape=(3,), subnet_constructor=dense, permute_soft=True)
    network.double()
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    z, log_det = network(x, c=[c])
    found, found_log_det = from_freia(network)(x, given={"c0": c})
    torch.testing.assert_close(found, z)
    torch.testing.assert_close(found_log_det, log_det)


def test_what_is_wrong_in_freia_is_refused_by_name():
    with pytest.raises(fk.ConfigError, match=r"LearnedElementwiseScaling .* wrong sign"):
        FreiaBijection(fm.LearnedElementwiseScaling([(3,)]))
    with pytest.raises(fk.ConfigError, match="summed over channels alone"):
        FreiaBijection(fm.InvertibleSigmoid([(2, 3)]))


@pytest.mark.parametrize("name", ["HaarUpsampling", "IRevNetUpsampling", "IRevNetDownsampling", "InvAutoAct"])
def test_modules_invert_and_leave_their_arguments_alone(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = FreiaBijection(getattr(fm, name)([(4, 2, 2)])).double()
    x = torch.randn(3, 4, 2, 2)
    kept = x.clone()
    y, log_det = part(x)
    assert y.shape[1:] == part.out_shapes[0]
    assert torch.equal(x, kept)
    back, back_log_det = part.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_log_det, -log_det)


ROTATION = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32))[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AllInOneBlock", {"subnet_constructor": conv, "permute_soft": True}),
        ("AllInOneBlock", {"subnet_constructor": conv, "learned_householder_permutation": 2}),
        ("GLOWCouplingBlock", {"subnet_constructor": conv}),
        ("Fixed1x1Conv", {"M": ROTATION}),
        ("HaarDownsampling", {}),
        ("IRevNetDownsampling", {}),
        ("OrthogonalTransform", {}),
        ("HouseholderPerm", {"n_reflections": 2}),
        ("FixedLinearTransform", {"M": ROTATION}),
    ],
)
def test_autocast_leaves_modules_exact(name, options):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    shape = (4,) if name in ("OrthogonalTransform", "HouseholderPerm", "FixedLinearTransform") else (4, 4, 4)
    part = FreiaBijection(getattr(fm, name)([shape], **options))
    x = torch.randn(3, *shape)
    plain, plain_log_det = part(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = part(x)
        back, back_log_det = part.inverse(y)
    assert torch.equal(y, plain)
    assert torch.equal(log_det, plain_log_det)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(back_log_det, -log_det, atol=1e-5, rtol=1e-5)


def test_a_condition_that_a_net_gave_in_half_precision():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    part = FreiaBijection(fm.GLOWCouplingBlock([(4,)], dims_c=[(2,)], subnet_constructor=dense))
    x, net, y = torch.randn(3, 4), nn.Linear(2, 2), torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        condition = net(y)
        z, log_det = part(x, condition)
        torch.testing.assert_close(part.inverse(z, condition)[0], x, atol=1e-5, rtol=0)
    assert condition.dtype == torch.bfloat16
    assert log_det.dtype == z.dtype == torch.float32


def test_as_freia_runs_in_their_graph():
    part = fk.AffineCoupling((4,), given=(2,))
    x, c = ff.InputNode(4), ff.ConditionNode(2)
    node = ff.Node(x, as_freia(part).build, {}, conditions=c)
    network = ff.GraphINN([x, c, node, ff.OutputNode(node)])
    data, given = torch.randn(3, 4), torch.randn(3, 2)
    for found, expected in zip(network(data, c=[given]), part(data, given), strict=True):
        torch.testing.assert_close(found, expected)


def test_transformed_distribution_is_the_flow():
    part = fk.AffineCoupling((4,))
    flow = fk.Flow(part)
    for p in flow.parameters():
        nn.init.normal_(p, std=0.3)
    base = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
    density = TransformedDistribution(base, [BijectionTransform(part).inv])
    x = torch.randn(5, 4)
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x))
    assert density.sample((2, 3)).shape == (2, 3, 4)
