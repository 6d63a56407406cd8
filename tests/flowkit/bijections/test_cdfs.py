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


def test_refusals():
    with pytest.raises(fk.ConfigError, match=r"CDF: distribution must be one of normal, .*, got 'gumbel'"):
        fk.CDF((1,), "gumbel")
    with pytest.raises(fk.ConfigError, match=r"Quantile: loc must be finite and scale positive, got 0.0 and 0"):
        fk.Quantile((1,), scale=0)
    with pytest.raises(fk.InputError, match=r"Quantile needs values in \(0, 1\), got 1 at index \(1,\)"):
        fk.Quantile(())(torch.tensor([0.5, 1.0]))
