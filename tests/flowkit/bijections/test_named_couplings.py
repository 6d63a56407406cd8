import pytest
import torch
from FrEIA.modules import AffineCouplingOneSided, ConditionalAffineTransform, NICECouplingBlock
from nflows.transforms import AffineCouplingTransform
from torch import nn

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


def net(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 6), nn.SiLU(), nn.Linear(6, c_out))


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, c_out, 1))


class WithContext(nn.Sequential):
    def forward(self, x, context=None):
        return super().forward(x)


def test_glow_is_nflows_with_equal_weights():
    theirs = AffineCouplingTransform(torch.tensor([0, 0, 1, 1, 1]), lambda c_in, c_out: WithContext(*net(c_in, c_out)))
    ours = fk.GlowCoupling((5,), subnet=net)
    state = theirs.transform_net.state_dict()
    for name in ("2.weight", "2.bias"):  # theirs predicts the shift first
        shift, scale = state[name].chunk(2)
        state[name] = torch.cat((scale, shift))
    ours.subnets[0].net.load_state_dict(state)
    x = 3 * torch.randn(6, 5)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(x), theirs.inverse(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("min_scale", [0.0, 1e-3])
def test_glows_scale_is_finite_far_out(min_scale):
    torch.set_default_dtype(torch.float32)
    univariate = fk.SigmoidAffine((1,), min_scale)
    raw = torch.tensor([[-50.0], [-1e4], [1e4], [0.0]])
    x, shift = torch.ones(4, 1), torch.zeros(4, 1)
    y, s = univariate(x, raw, shift)
    torch.testing.assert_close(s.exp(), torch.sigmoid(raw + 2) + min_scale)
    assert y.isfinite().all()
    assert s.isfinite().all()
    if min_scale:
        assert univariate.inverse(y, raw, shift)[0].sub(x).abs().max() < 1e-4


@pytest.mark.parametrize("min_scale", [0.0, 1e-3])
def test_glows_closed_form_step_is_autograds(min_scale):
    univariate = fk.SigmoidAffine((2,), min_scale)
    y, raw, shift, grad_y, grad_log = torch.randn(5, 4, 2).unbind()
    x, grad_x, (grad_raw, grad_shift), own = univariate.undo(y, (raw, shift), grad_y, grad_log)
    wanted = fk.Univariate.undo(univariate, y, (raw, shift), grad_y, grad_log)
    torch.testing.assert_close((x, grad_x, grad_raw, grad_shift), (*wanted[:2], *wanted[2]))
    assert own == {}


def test_a_negative_scale_is_refused():
    with pytest.raises(ConfigError, match=r"min_scale must be finite and not negative, got -0.1"):
        fk.GlowCoupling((2,), min_scale=-0.1)


@pytest.mark.parametrize(("shape", "condition", "recipe"), [((4,), (3,), net), ((4, 2, 4), (2, 2, 4), conv)])
def test_one_sided_is_freias(shape, condition, recipe):
    ours = fk.AffineCoupling(shape, given=(condition,), subnet=recipe, clamp="atan", limit=1.0)
    theirs = AffineCouplingOneSided([shape], [condition], subnet_constructor=recipe, clamp=1.0)
    theirs.subnet.load_state_dict(ours.subnets[0].net.state_dict())
    x, c = torch.randn(3, *shape), torch.randn(3, *condition)
    (y,), log_det = theirs([x], [c])
    torch.testing.assert_close(ours(x, c), (y, log_det), atol=1e-10, rtol=1e-10)
    (back,), log_det = theirs([y], [c], rev=True)
    torch.testing.assert_close(ours.inverse(y, c), (back, log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("shape", "condition", "recipe"), [((3,), (2,), net), ((1, 2, 4), (2, 2, 4), conv)])
def test_conditional_affine_is_freias(shape, condition, recipe):
    ours = fk.ConditionalAffine(shape, given=(condition,), subnet=recipe, clamp="tanh", limit=1.5)
    theirs = ConditionalAffineTransform(
        [shape], [condition], subnet_constructor=recipe, clamp=1.5, clamp_activation="TANH"
    )
    theirs.subnet.load_state_dict(ours.subnet.net.state_dict())
    x, c = torch.randn(3, *shape), torch.randn(3, *condition)
    (y,), log_det = theirs([x], [c])
    torch.testing.assert_close(ours(x, c), (y, log_det), atol=1e-10, rtol=1e-10)
    (back,), log_det = theirs([y], [c], rev=True)
    torch.testing.assert_close(ours.inverse(y, c), (back, log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("given", [(), []])
def test_conditional_affine_insists_on_a_condition(given):
    with pytest.raises(ShapeError, match=r"ConditionalAffine needs at least one condition, got none: name one"):
        fk.ConditionalAffine((3,), given=given)
    with pytest.raises(ConfigError, match=r"clamp must be 'tanh'"):
        fk.ConditionalAffine((3,), given=2, clamp="relu")


def test_additive_is_freias_nice():
    ours = fk.AdditiveCoupling((4,), given=((3,),), subnet=net, two_sided=True)
    theirs = NICECouplingBlock([(4,)], [(3,)], subnet_constructor=net)
    theirs.F.load_state_dict(ours.subnets[0].net.state_dict())
    theirs.G.load_state_dict(ours.subnets[1].net.state_dict())
    x, c = torch.randn(3, 4), torch.randn(3, 3)
    torch.testing.assert_close(ours(x, c)[0], theirs([x], [c])[0][0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(x, c)[0], theirs([x], [c], rev=True)[0][0], atol=1e-10, rtol=1e-10)
