import numpy as np
import pytest
import torch
from scipy import stats

import flowkit as fk

ORACLES = {"normal": stats.norm, "logistic": stats.logistic, "laplace": stats.laplace, "cauchy": stats.cauchy}


@pytest.mark.parametrize("name", ORACLES)
def test_is_the_distribution_of_scipy(name):
    x = torch.tensor([-30.0, -3.0, -0.2, 0.5, 2.0])
    theirs = ORACLES[name](0.5, 2.0)
    y, log_det = fk.CDF((), name, loc=0.5, scale=2.0)(x)
    torch.testing.assert_close(y, torch.from_numpy(theirs.cdf(x.numpy())), rtol=1e-12, atol=0)
    torch.testing.assert_close(log_det, torch.from_numpy(theirs.logpdf(x.numpy())), rtol=1e-12, atol=1e-12)
    p = torch.tensor([1e-9, 0.01, 0.4, 0.6, 0.99])
    got, back = fk.Quantile((), name, loc=0.5, scale=2.0)(p)
    wanted = theirs.ppf(p.numpy())
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9)
    np.testing.assert_allclose(back.numpy(), -theirs.logpdf(wanted), rtol=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_is_finite_far_out_in_float32(name):
    x = torch.tensor([-1e6, 1e6], dtype=torch.float32, requires_grad=True)
    y, log_det = fk.CDF((), name).float()(x)
    assert y.tolist() == pytest.approx([0, 1], abs=1e-6)
    assert log_det.isfinite().all()
    assert torch.autograd.grad(y.sum() + log_det.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("degrees", [None, 0.1, 2.5])
def test_heavy_tails_beyond_the_root_of_the_largest_float32(degrees):
    """The square of 1e20 is infinite in float32, its density under Cauchy's or Student's t is not 0."""
    name, theirs = ("cauchy", stats.cauchy) if degrees is None else ("student_t", stats.t(degrees))
    x = torch.tensor([-1e30, -1e20, 1e19, 1e25], dtype=torch.float32, requires_grad=True)
    log_density = fk.CDF((), name, degrees=degrees).float()(x)[1]
    np.testing.assert_allclose(log_density.tolist(), theirs.logpdf(x.detach().double().numpy()), rtol=1e-6)
    slope = torch.autograd.grad(log_density.sum(), x)[0]
    assert slope.isfinite().all()
    p = torch.tensor([1e-3, 0.2, 0.999], dtype=torch.float32, requires_grad=True)
    there, log_det = fk.Quantile((), name, degrees=degrees).float()(p)
    slope = torch.autograd.grad(there.sum(), p)[0]
    torch.testing.assert_close(slope.log(), log_det, rtol=1e-5, atol=1e-5)


def test_cauchys_quantiles_near_one_and_near_the_median_in_float32():
    p = torch.tensor([1e-30, 1e-6, 0.2, 0.25, 0.3, 0.4999, 0.5, 0.5001, 0.75, 0.8, 0.9999, 1 - 1e-6])
    p32 = p.float().requires_grad_()
    x, log_det = fk.Quantile((), "cauchy").float()(p32)
    wanted = stats.cauchy.ppf(p32.detach().double().numpy())
    np.testing.assert_allclose(x.tolist(), wanted, rtol=3e-6, atol=0)
    np.testing.assert_allclose(log_det.tolist(), -stats.cauchy.logpdf(wanted), rtol=3e-6)
    torch.testing.assert_close(torch.autograd.grad(x[1:].sum(), p32)[0][1:].log(), log_det[1:])


def test_refusals():
    with pytest.raises(fk.ConfigError, match=r"CDF: distribution must be one of normal, .*, got 'gumbel'"):
        fk.CDF((1,), "gumbel")
    for degrees in (None, 0.01, 101.0, True):
        with pytest.raises(fk.ConfigError, match=r"CDF: 'student_t' needs degrees of freedom from 0.1 to 100, got"):
            fk.CDF((1,), "student_t", degrees=degrees)
    with pytest.raises(fk.ConfigError, match=r"CDF: degrees of freedom go with 'student_t', got 2.0 with 'normal'"):
        fk.CDF((1,), degrees=2.0)
    with pytest.raises(fk.ConfigError, match=r"Quantile: loc must be finite and scale positive, got 0.0 and 0"):
        fk.Quantile((1,), scale=0)
    with pytest.raises(fk.InputError, match=r"Quantile needs values in \(0, 1\), got 1 at index \(1,\)"):
        fk.Quantile(())(torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("degrees", [0.1, 0.5, 1, 2, 3, 4.5, 10, 100])
def test_student_t_is_scipys_in_both_tails(degrees):
    x = torch.tensor([-1e8, -300.0, -5.0, -0.7, -1e-9, 0.0, 1e-3, 0.4, 2.0, 30.0])
    theirs = stats.cauchy() if degrees == 1 else stats.t(degrees)  # SciPy's t of 1 is off by 3e-9 far out
    y, log_det = fk.CDF((), "student_t", degrees=degrees)(x)
    np.testing.assert_allclose(y.numpy(), theirs.cdf(x.numpy()), rtol=2e-13, atol=1e-300)
    np.testing.assert_allclose(log_det.numpy(), theirs.logpdf(x.numpy()), rtol=1e-12, atol=1e-12)
    p = torch.tensor([1e-30 if degrees >= 0.5 else 1e-9, 1e-6, 0.1, 0.4999, 0.5, 0.501, 0.99, 1 - 1e-9])
    x = fk.Quantile((), "student_t", degrees=degrees)(p)[0]
    np.testing.assert_allclose(theirs.cdf(x[:5].numpy()), p[:5].numpy(), rtol=1e-8 if degrees == 1 else 1e-12)
    np.testing.assert_allclose(theirs.sf(x[4:].numpy()), 1 - p[4:].numpy(), rtol=1e-7)
    back = fk.CDF((), "student_t", degrees=degrees)(x)[0]
    torch.testing.assert_close(back, p, rtol=1e-13, atol=0)


@pytest.mark.parametrize("degrees", [0.7, 1.0, 3.0, 50.0])
def test_student_ts_gradients(degrees):
    for cls, at in ((fk.CDF, [-4.0, -0.1, 0.0, 2.0]), (fk.Quantile, [1e-3, 0.3, 0.5, 0.9])):
        b = cls((), "student_t", degrees=degrees, learned=True)
        x = torch.tensor(at, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, *_, b=b: b(x), (x, *b.parameters()))
        slope = torch.autograd.grad(b(x)[0].sum(), x)[0]
        torch.testing.assert_close(slope.log(), b(x)[1])


def test_student_t_widened_is_exact():
    torch.set_default_dtype(torch.float32)
    b = fk.CDF((), "student_t", degrees=3.3).double()
    x = torch.tensor([-7.0, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(b(x)[0].numpy(), stats.t(3.3).cdf(x.numpy()), rtol=1e-13)
    y = fk.CDF((), "student_t", degrees=3.3)(torch.tensor([-1e6, 1e6]))[0]
    assert y.tolist() == pytest.approx([0, 1], abs=1e-6)
