import math
import pickle

import pytest
import torch

import flowkit as fk
from flowkit.errors import ConfigError
from flowkit.univariate.affine import CLAMPS


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_inverse_and_derivative(clamp, shape):
    f = fk.Affine(shape, clamp, 1.3)
    x, raw, shift = (torch.randn(4, *shape) for _ in range(3))
    x.requires_grad_()
    y, log_derivative = f(x, raw, shift)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_derivative.expand_as(x), slope.log())
    back, inverse_log_derivative = f.inverse(y, raw, shift)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_derivative, -log_derivative)


@pytest.mark.parametrize(("clamp", "share"), [("tanh", 1.0), ("atan", 0.999), ("softsign", 1.0)])
def test_the_log_scale_stays_within_its_limit_and_starts_with_slope_about_one(clamp, share):
    f = fk.Affine((1,), clamp, 0.7)
    raw = torch.tensor([[-1e9], [-1.0], [1.0], [1e9]])
    s = f.log_scale(raw)
    assert (s.abs() <= 0.7 * share + 1e-3).all()
    assert s.flatten().diff().gt(0).all()
    assert abs(s[3] - 0.7 * share) < 1e-3
    slope = f.log_scale(torch.tensor([[1e-4]])) / 1e-4
    torch.testing.assert_close(
        slope, torch.tensor([[{"tanh": 0.7, "atan": 0.636, "softsign": 1.0}[clamp]]]), rtol=1e-3, atol=0
    )


def test_the_formulas():
    raw = torch.tensor([[0.5]])
    assert fk.Affine((1,), "tanh", 1.5).log_scale(raw).item() == pytest.approx(1.5 * math.tanh(0.5))
    assert fk.Affine((1,), "atan", 1.5).log_scale(raw).item() == pytest.approx(1.5 * 0.636 * math.atan(0.5 / 1.5))
    assert fk.Affine((1,), "softsign", 1.5).log_scale(raw).item() == pytest.approx(0.5 / (1 + 0.5 / 1.5))
    assert fk.Affine((1,), None).log_scale(raw).item() == 0.5


def test_gamma_is_learned_per_channel():
    assert fk.Affine((3, 4, 4)).gamma.shape == (3, 1, 1)
    assert fk.Affine(()).gamma.shape == ()
    assert not list(fk.Affine((3,), "atan").parameters())


def test_half_precision_parameters_are_widened():
    f = fk.Affine((2,), "softsign").float()
    x = torch.randn(3, 2, dtype=torch.float32)
    raw, shift = torch.randn(3, 2).bfloat16(), torch.randn(3, 2).bfloat16()
    for out in (*f(x, raw, shift), *f.inverse(x, raw, shift)):
        assert out.dtype == torch.float32
    assert torch.equal(f(x, raw, shift)[1], f.log_scale(raw.float()))


@pytest.mark.parametrize("clamp", ["relu", "TANH", 2.0])
def test_an_unknown_clamp_is_refused(clamp):
    with pytest.raises(ConfigError, match="clamp must be 'tanh', 'atan', 'softsign' or None, got"):
        fk.Affine((3,), clamp)


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ConfigError, match="limit, the bound on the log-scale, must be positive and finite, got"):
        fk.Affine((3,), "atan", limit)


def test_the_contract_says_what_is_missing():
    f = fk.Univariate((3,))
    for method, name in ((f, "forward"), (f.inverse, "inverse")):
        with pytest.raises(NotImplementedError, match=f"Univariate has no {name}"):
            method(torch.zeros(1, 3))


def test_pickles_and_says_what_it_is():
    assert repr(pickle.loads(pickle.dumps(fk.Affine((3,), "atan", 1.0)))) == "Affine(clamp='atan', limit=1)"


@pytest.mark.parametrize("limit", [1.0, 0.7])
@pytest.mark.parametrize("clamp", ["tanh", "atan", "softsign", None])
def test_undo_in_closed_form_is_what_autograd_finds(clamp, limit):
    affine = fk.Affine((3, 2), clamp, limit)
    for parameter in affine.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x, parameters = torch.randn(5, 3, 2), [torch.randn(5, 3, 2) for _ in range(2)]
    y = affine(x, *parameters)[0].detach()
    grad_y, grad_log = torch.randn(5, 3, 2), torch.randn(5, 1, 1)
    with torch.no_grad():
        got = affine.undo(y, parameters, grad_y, grad_log)
        want = fk.Univariate.undo(affine, y, parameters, grad_y, grad_log)
    assert torch.allclose(got[0], x, rtol=1e-12)
    for a, b in zip((*got[:2], *got[2], *got[3].values()), (*want[:2], *want[2], *want[3].values()), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)
    assert got[3].keys() == want[3].keys() == ({"gamma"} if clamp == "tanh" else set())


def test_undo_gives_no_gradient_to_a_frozen_gamma():
    affine = fk.Affine((3,))
    affine.gamma.requires_grad_(False)
    with torch.no_grad():
        assert affine.undo(torch.ones(2, 3), [torch.ones(2, 3)] * 2, torch.ones(2, 3), torch.ones(2, 1))[3] == {}
