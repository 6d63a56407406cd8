import pytest
import torch
from nflows.transforms import HouseholderSequence

import flowkit as fk
from flowkit.bijections.orthogonal import householder
from flowkit.errors import ConfigError, ShapeError

FORMS = ["householder", "matrix_exp", "cayley"]


def test_is_nflows_householder_sequence_with_equal_vectors():
    theirs = HouseholderSequence(5, 4)
    ours = fk.OrthogonalLinear((5,), reflections=4)
    with torch.no_grad():
        theirs.q_vectors.normal_()
        ours.vectors.copy_(theirs.q_vectors.flip(0))  # theirs reflects by the first vector first
    x = torch.randn(4, 5)
    y, log_det = theirs(x)
    torch.testing.assert_close(ours(x), (y, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(y), (x, -log_det), atol=1e-10, rtol=1e-10)


def test_the_product_of_reflections_is_formed_in_order():
    vectors = torch.randn(3, 4)
    expected = torch.eye(4)
    for v in vectors:
        expected = expected @ (torch.eye(4) - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(householder(vectors), expected)
    with_zero = torch.cat([vectors[:2], torch.zeros(1, 4), vectors[2:]])
    torch.testing.assert_close(householder(with_zero), expected)


@pytest.mark.parametrize("form", FORMS)
def test_is_orthogonal_with_determinant_one(form, redraw):
    b = redraw(fk.OrthogonalLinear((7, 3), form=form), std=1.0)
    weight = b.weight()
    assert (weight @ weight.T - torch.eye(7)).abs().max() < 1e-12
    assert not torch.allclose(weight, torch.eye(7), atol=0.1)
    sign, log_abs = torch.linalg.slogdet(weight)
    assert sign == 1
    assert abs(log_abs) < 1e-12
    torch.testing.assert_close(b.condition_number(), torch.tensor(1.0))
    assert b.log_abs_det() == 0
    x = torch.randn(2, 7, 3)
    torch.testing.assert_close(b(x)[0], torch.einsum("ij,bjn->bin", weight, x))
    torch.testing.assert_close(b.inverse(x)[0], torch.linalg.solve(weight, x))


def test_many_nearly_parallel_reflections_stay_orthogonal():
    vectors = torch.randn(1, 16) + 1e-6 * torch.randn(64, 16)
    weight = householder(vectors)
    assert (weight @ weight.T - torch.eye(16)).abs().max() < 1e-12


def test_forms_are_their_formulas(redraw):
    exponential = redraw(fk.OrthogonalLinear((4,), form="matrix_exp"), std=0.3)
    above = exponential.generator.triu(1)
    torch.testing.assert_close(exponential.weight(), torch.matrix_exp(above - above.T))
    cayley = redraw(fk.OrthogonalLinear((4,), form="cayley"), std=0.3)
    above = cayley.generator.triu(1)
    skew, eye = above - above.T, torch.eye(4)
    torch.testing.assert_close(cayley.weight(), torch.linalg.inv(eye + skew) @ (eye - skew))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [2, 5])
def test_starts_as_the_identity_and_learns(form, channels):
    b = fk.OrthogonalLinear((channels,), form=form)
    torch.testing.assert_close(b.weight(), torch.eye(channels))
    (b.weight() * torch.randn(channels, channels)).sum().backward()
    (parameter,) = b.parameters()
    assert parameter.grad.isfinite().all()
    assert parameter.grad.abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_one_channel_has_nothing_to_learn(form):
    b, x = fk.OrthogonalLinear((1, 2), form=form), torch.randn(3, 1, 2)
    assert not list(b.parameters())
    torch.testing.assert_close(b(x), (x, torch.zeros(3)))


def test_an_odd_number_of_reflections_has_determinant_minus_one():
    weight = fk.OrthogonalLinear((4,), reflections=3).weight()
    torch.testing.assert_close(torch.linalg.det(weight), torch.tensor(-1.0))


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_touch_it(form, redraw):
    torch.set_default_dtype(torch.float32)
    b, x = redraw(fk.OrthogonalLinear((6, 4), form=form), std=0.5), torch.randn(3, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = b(x)
        back, _ = b.inverse(y)
        assert b.weight().dtype == torch.float32
    assert torch.equal(y, b(x)[0])
    assert y.dtype == log_det.dtype == torch.float32
    assert (back - x).abs().max() < 1e-5
    assert (b.bfloat16().inverse(b(x)[0])[0] - x).abs().max() < 1e-5


def test_refusals():
    with pytest.raises(ShapeError, match=r"OrthogonalLinear needs channels to mix.*got shape \(\)"):
        fk.OrthogonalLinear(())
    with pytest.raises(ConfigError, match="form must be one of householder, matrix_exp, cayley, got 'qr'"):
        fk.OrthogonalLinear((3,), form="qr")
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ConfigError, match="reflections must be a whole number of at least 1, got"):
            fk.OrthogonalLinear((3,), reflections=wrong)
    with pytest.raises(ConfigError, match="reflections go with form 'householder', got 2 with 'cayley'"):
        fk.OrthogonalLinear((3,), form="cayley", reflections=2)
