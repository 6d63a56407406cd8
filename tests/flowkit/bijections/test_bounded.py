import pytest
import torch
from torch.distributions import StickBreakingTransform

import flowkit as fk


def test_is_the_stick_breaking_of_torch():
    y = torch.randn(4, 3)
    theirs = StickBreakingTransform()
    simplex = theirs(y)
    x, log_det = fk.StickBreaking((3,)).inverse(y)
    torch.testing.assert_close(x, simplex[:, :-1])
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(y, simplex))
    torch.testing.assert_close(fk.StickBreaking((3,))(x), (y, -log_det))


def test_a_density_on_the_simplex_integrates_to_one():
    n = 400
    grid = (torch.arange(n) + 0.5) / n
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    x = torch.stack((a.flatten(), (b * (1 - a)).flatten()), 1)  # the triangle, with area element 1 - a
    total = (fk.Flow(fk.StickBreaking((2,))).log_prob(x).exp() * (1 - x[:, 0])).mean()
    assert abs(total - 1) < 1e-3


def test_a_density_on_a_box_integrates_to_one():
    n = 4000
    x = -2 + 5 * (torch.arange(n)[:, None] + 0.5) / n
    total = fk.Flow(fk.Box((1,), low=-2, high=3)).log_prob(x).exp().mean() * 5
    assert abs(total - 1) < 1e-6


def test_refusals():
    with pytest.raises(fk.ConfigError, match=r"Box needs finite bounds with low < high, got 1 and 0"):
        fk.Box((1,), low=1, high=0)
    with pytest.raises(fk.InputError, match=r"Box needs values in \(0, 2\), got 3 at index \(0, 0\)"):
        fk.Box((1,), high=2)(torch.full((1, 1), 3.0))
    with pytest.raises(fk.ShapeError, match=r"StickBreaking needs channels"):
        fk.StickBreaking(())
    with pytest.raises(fk.InputError, match=r"one minus the sum needs values in \(0, 1\), got -0.25 at index \(0, 1\)"):
        fk.StickBreaking((2,))(torch.tensor([[0.5, 0.75]]))
