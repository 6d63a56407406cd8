"""Tanh with tails and the soft clip: against torch, zuko and nflows, and what is true at the cut."""

import math

import pytest
import torch
from torch.distributions import TanhTransform

import flowkit as fk

CUT = 1.5


@pytest.mark.parametrize("cls", [fk.LeakyTanh, fk.LogTanh])
def test_is_tanh_up_to_the_cut(cls):
    x = torch.linspace(-CUT, CUT, 9).view(3, 3)
    y, log_det = cls((3,), cut=CUT)(x)
    torch.testing.assert_close(y, x.tanh())
    torch.testing.assert_close(log_det, TanhTransform().log_abs_det_jacobian(x, y).sum(1))


@pytest.mark.parametrize("cls", [fk.LeakyTanh, fk.LogTanh])
def test_value_and_slope_do_not_jump_at_the_cut(cls):
    b = cls((1,), cut=CUT)
    at = torch.tensor([[-CUT], [CUT]])
    step = 1e-9 * at
    torch.testing.assert_close(b(at - step)[0], b(at + step)[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(b(at - step)[1], b(at + step)[1], rtol=0, atol=1e-7)


def test_known_tails():
    x = torch.tensor([[-4.0], [4.0]])
    slope = 1 - math.tanh(CUT) ** 2
    line, log_det = fk.LeakyTanh((1,), cut=CUT)(x)
    torch.testing.assert_close(line, x.sign() * (math.tanh(CUT) + slope * (4 - CUT)))
    torch.testing.assert_close(log_det, torch.full((2,), math.log(slope)))
    curve, log_det = fk.LogTanh((1,), cut=CUT)(x)
    torch.testing.assert_close(curve, x.sign() * (math.tanh(CUT) + CUT * slope * math.log(4 / CUT)))
    torch.testing.assert_close(log_det, torch.full((2,), math.log(slope * CUT / 4)))


def test_the_derivative_of_nflows_jumps_where_ours_does_not():
    theirs = pytest.importorskip("nflows.transforms").LogTanh(cut_point=CUT)
    inside = torch.linspace(-CUT, CUT, 7).view(7, 1)
    for found, expected in zip(fk.LogTanh((1,), cut=CUT)(inside), theirs(inside), strict=True):
        torch.testing.assert_close(found, expected)
    below, above = (theirs(torch.tensor([[CUT + step]]))[1].item() for step in (-1e-9, 1e-9))
    assert abs(below - above) > 0.1


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_softclip_is_zukos(bound):
    theirs = pytest.importorskip("zuko.transforms").SoftclipTransform(bound=bound)
    x = torch.randn(4, 3) * 5
    b = fk.Softclip((3,), bound=bound)
    y, log_det = b(x)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, y).sum(1))
    torch.testing.assert_close(b.inverse(y)[0], theirs.inv(y))


@pytest.mark.parametrize("cls", [fk.LeakyTanh, fk.LogTanh, fk.Softclip])
def test_is_finite_far_out_in_float32_and_comes_back(cls):
    x = torch.tensor([[-1e6], [0.0], [1e6]], dtype=torch.float32, requires_grad=True)
    b = cls((1,))
    y, log_det = b(x)
    assert torch.autograd.grad(log_det.sum() + y.sum(), x, retain_graph=True)[0].isfinite().all()
    back, log_det_back = b.inverse(y)
    assert torch.autograd.grad(log_det_back.sum() + back.sum(), x)[0].isfinite().all()
    tolerance = 0.1 if cls is fk.Softclip else 1e-4  # a rounding step of a number near 1 is a large step back
    torch.testing.assert_close(back, x, rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(log_det_back, -log_det, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fk.LogTanh(3, cut=0), r"^LogTanh: cut must be above 0 and at most 8, .*, got 0$"),
        (lambda: fk.LeakyTanh(3, cut=9.0), r"^LeakyTanh: cut must be above 0 and at most 8, .*, got 9.0$"),
        (lambda: fk.Softclip(3, bound=-1.0), r"^Softclip: bound must be a positive finite number, got -1.0$"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(fk.ConfigError, match=message):
        build()


def test_softclip_names_a_value_outside():
    with pytest.raises(fk.InputError, match=r"^Softclip's inverse needs values in \(-2, 2\), got 2 at index \(0, 1\)$"):
        fk.Softclip(2, bound=2.0).inverse(torch.tensor([[0.0, 2.0]]))


@pytest.mark.parametrize("cls", [fk.LeakyTanh, fk.LogTanh])
def test_gradients_at_the_cut_itself(cls):
    """Data often lie at 1, which is LogTanh's default: a clamp's gradient there is 0, or counted twice."""
    b = cls((), cut=1.0)
    for apply, at in ((b.forward, 1.0), (b.inverse, b.edge)):
        x = torch.tensor([at, -at], requires_grad=True)
        y, log_det = apply(x)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0].log(), log_det)


def test_tails_of_a_far_cut_are_exact_in_float32():
    """In float32 tanh(8) is off by an eighth of what it lacks to 1, which the log-det of the tails must not be."""
    b = fk.LeakyTanh((), cut=8.0)
    x = torch.tensor([-20.0, 9.0, 300.0])
    y, log_det = b(x)
    got = b.inverse(y.float())[1].double()
    torch.testing.assert_close(got, -log_det, atol=1e-5, rtol=0)
