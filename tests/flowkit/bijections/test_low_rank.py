import pytest
import torch

import flowkit as fk
from flowkit.bijections.orthogonal import householder
from flowkit.errors import ConfigError, ShapeError


@pytest.mark.parametrize(("shape", "rank"), [((6,), 2), ((5, 3), 1), ((3, 2, 4), 3), ((1,), 1)])
def test_is_its_matrix_at_every_position(shape, rank, redraw):
    b = redraw(fk.LowRankLinear(shape, rank), std=0.5)
    weight, x = b.weight(), torch.randn(2, *shape)
    assert torch.linalg.matrix_rank(weight - torch.eye(shape[0]), atol=1e-10) == rank
    y, log_det = b(x)
    torch.testing.assert_close(y.flatten(2) if y.dim() > 2 else y[..., None], weight @ x.reshape(2, shape[0], -1))
    expected = x[0, 0].numel() * torch.linalg.slogdet(weight)[1]
    torch.testing.assert_close(log_det, expected.expand(2), atol=1e-12, rtol=1e-12)
    back, inverse_log_det = b.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-11, rtol=0)
    torch.testing.assert_close(inverse_log_det, -log_det)
    torch.testing.assert_close(b.inverse_weight(), torch.linalg.inv(weight), atol=1e-11, rtol=0)
    torch.testing.assert_close(b.condition_number(), torch.linalg.cond(weight))


def test_some_columns_of_the_reflections():
    vectors = torch.randn(3, 5)
    columns = householder(vectors, 2)
    torch.testing.assert_close(columns, householder(vectors)[:, :2])
    assert (columns.T @ columns - torch.eye(2)).abs().max() < 1e-12


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_starts_as_the_identity(rank):
    assert torch.equal(fk.LowRankLinear((4,), rank).weight(), torch.eye(4))


def test_autocast_and_half_precision_are_computed_in_float32(redraw):
    torch.set_default_dtype(torch.float32)
    b, x = redraw(fk.LowRankLinear((6, 4), 2), std=0.3), torch.randn(3, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = b(x)
        back, _ = b.inverse(y)
    assert torch.equal(y, b(x)[0])
    assert y.dtype == log_det.dtype == torch.float32
    assert (back - x).abs().max() < 1e-4
    assert (b.bfloat16().inverse(b(x)[0])[0] - x).abs().max() < 1e-4


def test_refusals():
    with pytest.raises(ShapeError, match=r"LowRankLinear needs channels to mix.*got shape \(\)"):
        fk.LowRankLinear((), 1)
    for wrong in (0, 4, 1.0, True):
        with pytest.raises(ConfigError, match="LowRankLinear: rank must be a whole number from 1 to 3, got"):
            fk.LowRankLinear((3,), wrong)
