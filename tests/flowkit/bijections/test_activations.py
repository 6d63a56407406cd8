import math

import pytest
import torch
from FrEIA.modules import InvertibleSigmoid
from nflows.transforms import LeakyReLU as NflowsLeakyReLU
from torch.distributions import ExpTransform, SigmoidTransform, SoftplusTransform, TanhTransform
from zuko.transforms import SignedPowerTransform

import flowkit as fk

PAIRS = [
    (fk.Exp, ExpTransform()),
    (fk.Log, ExpTransform().inv),
    (fk.Softplus, SoftplusTransform()),
    (fk.Sigmoid, SigmoidTransform()),
    (fk.Logit, SigmoidTransform().inv),
    (fk.Tanh, TanhTransform()),
    (fk.Arctanh, TanhTransform().inv),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_is_the_transform_of_torch(ours, theirs):
    b = ours((5,))
    x = b.example_inputs(4)
    y, log_det = b(x)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, y).sum(1))


def test_the_sigmoid_of_freia_sums_its_log_det_over_channels_alone():
    x = torch.randn(4, 2, 3)
    y, log_det = fk.Sigmoid((2, 3))(x)
    (theirs,), partial = InvertibleSigmoid([(2, 3)])([x])
    torch.testing.assert_close(theirs, y)
    assert partial.shape == (4, 3)  # of a vector it is right
    torch.testing.assert_close(partial.sum(1), log_det)
    (back,), partial = InvertibleSigmoid([(2, 3)])([y], rev=True)
    torch.testing.assert_close((back, partial.sum(1)), fk.Sigmoid((2, 3)).inverse(y))


def test_the_leaky_relu_is_nflows():
    theirs, ours = NflowsLeakyReLU(negative_slope=0.3), fk.LeakyReLU((2, 3), 0.3)
    x = torch.randn(4, 2, 3)
    for mine, run in ((ours, theirs), (ours.inverse, theirs.inverse)):
        torch.testing.assert_close(mine(x), run(x))


def test_the_power_is_zukos_whose_number_is_the_logarithm_of_the_exponent():
    theirs, ours = SignedPowerTransform(torch.tensor(0.4)), fk.Power((5,), exponent=math.exp(0.4))
    x = torch.randn(4, 5)
    for mine, run in ((ours, theirs), (ours.inverse, theirs.inv)):
        y, log_derivative = run.call_and_ladj(x)
        torch.testing.assert_close(mine(x), (y, log_derivative.sum(1)))


@pytest.mark.parametrize("cls", [fk.Softplus, fk.Sigmoid, fk.Tanh, fk.LeakyReLU, fk.Power])
def test_is_finite_far_out_in_float32(cls):
    x = torch.tensor([[-1e6], [1e6]], dtype=torch.float32, requires_grad=True)
    y, log_det = cls((1,))(x)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    assert torch.autograd.grad(log_det.sum() + y.sum(), x)[0].isfinite().all()


def test_tails_have_known_values():
    x = torch.tensor([[-1e6], [1e6]], dtype=torch.float32)
    assert fk.Sigmoid((1,))(x)[1].tolist() == [-1e6, -1e6]
    assert fk.Softplus((1,))(x)[1].tolist() == [-1e6, 0.0]
    torch.testing.assert_close(fk.Tanh((1,))(x)[1], torch.full((2,), -2e6), rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (fk.Log((2,)).forward, r"^Log needs values in \(0, inf\), got -1 at index \(1, 0\)$"),
        (fk.Exp((2,)).inverse, r"^Exp's inverse needs values in \(0, inf\), got -1 at index \(1, 0\)$"),
        (fk.Logit((2,)).forward, r"^Logit needs values in \(0, 1\), got -1 at index \(1, 0\)$"),
        (fk.Tanh((2,)).inverse, r"^Tanh's inverse needs values in \(-1, 1\), got -1 at index \(1, 0\)$"),
    ],
)
def test_a_value_outside_the_domain_is_named(call, message):
    with pytest.raises(fk.InputError, match=message):
        call(torch.tensor([[0.5, 0.5], [-1.0, 0.5]]))


def test_nan_passes_and_the_check_can_be_off():
    assert fk.Log((1,))(torch.tensor([[math.nan]]))[1].isnan().all()
    assert fk.Log((1,), check=False)(torch.tensor([[-1.0]]))[0].isnan().all()


def test_refusals():
    with pytest.raises(fk.ConfigError, match=r"LeakyReLU: slope must be a positive finite number, got 0"):
        fk.LeakyReLU((1,), slope=0)
    with pytest.raises(fk.ConfigError, match=r"Power: exponent must be a positive finite number, got inf"):
        fk.Power((1,), exponent=math.inf)
