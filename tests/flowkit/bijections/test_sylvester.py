import pytest
import torch
from normflows.flows import Planar as NormflowsPlanar

import flowkit as fk


def test_is_the_formula(redraw):
    b = redraw(fk.Sylvester((4,), units=3), 1)
    q, outer, inner, bias, stretch = b._matrices()
    torch.testing.assert_close(q.T @ q, torch.eye(3))
    assert outer.tril(-1).eq(0).all()
    assert inner.tril(-1).eq(0).all()
    torch.testing.assert_close(outer.diagonal() * inner.diagonal(), stretch - 1)
    x = torch.randn(5, 4)
    torch.testing.assert_close(b(x)[0], x + torch.tanh(x @ q @ inner.T + bias) @ outer.T @ q.T)


def test_one_unit_is_normflows_planar_flow(redraw):
    """Whose w is S q and whose u, as it comes out of its own constraint, is R q."""
    b = redraw(fk.Sylvester((4,), units=1), 1)
    q, outer, inner, bias, stretch = (each.detach() for each in b._matrices())
    w, u = inner * q.T, outer * q.T
    free = u + (stretch.expm1().log() - (w * u).sum()) * w / w.square().sum()
    theirs = NormflowsPlanar((4,), u=free, w=w, b=bias)
    x = 2 * torch.randn(20, 4)
    y, log_det = theirs(x)
    torch.testing.assert_close(b(x), (y, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(b.inverse(y), (x, -log_det), atol=1e-10, rtol=1e-10)


def test_starts_as_the_identity():
    x = torch.randn(4, 3)
    torch.testing.assert_close(fk.Sylvester((3,))(x), (x, torch.zeros(4)))


@pytest.mark.parametrize("std", [1, 4])
def test_large_weights_are_invertible(std, redraw, log_abs_det):
    for seed in range(4):
        torch.manual_seed(seed)
        b = redraw(fk.Sylvester((3,)), std)
        x = std * torch.randn(5, 3)
        y, log_det = b(x)
        back, log_det_back = b.inverse(y)
        torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(log_det_back, -log_det, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(log_abs_det(b, (x,), ()), log_det, rtol=1e-6, atol=1e-6)


def test_gradients_of_the_inverse(redraw):
    b = redraw(fk.Sylvester((3,), units=2), 0.7)
    assert torch.autograd.gradcheck(
        lambda y, *_: b.inverse(y), (torch.randn(2, 3, requires_grad=True), *b.parameters())
    )


def test_refusals():
    with pytest.raises(fk.ShapeError, match=r"Sylvester needs vectors \(D,\), got shape \(3, 4\)"):
        fk.Sylvester((3, 4))
    for units in (0, 4, True, 1.0):
        with pytest.raises(fk.ConfigError, match=r"Sylvester: units must be a whole number from 1 to 3, got"):
            fk.Sylvester((3,), units=units)
    with pytest.raises(fk.ConfigError, match=r"Sylvester: reflections must be a whole number"):
        fk.Sylvester((3,), reflections=0)
    with pytest.raises(fk.ConfigError, match=r"Sylvester: a subnet needs conditions to predict from"):
        fk.Sylvester((3,), subnet=fk.MLP())
    with pytest.raises(fk.ShapeError, match=r"Sylvester on data of shape \(3,\) needs conditions that are vectors"):
        fk.Sylvester((3,), given=((2, 4),))


@pytest.mark.parametrize("dim", [1, 4])
def test_conditions_change_every_number(dim, redraw):
    """Each row is what an unconditional one gives whose numbers are the learned ones and what the subnet predicts."""
    units = min(dim, 3)
    b = redraw(fk.Sylvester((dim,), given=((2,),), units=units, subnet=fk.MLP(hidden=4)), 0.5)
    x, c = torch.randn(5, dim), torch.randn(5, 2)
    y, log_det = b(x, c)
    predicted = b.subnet(c)
    for row in range(5):
        alone = fk.Sylvester((dim,), units=units)
        names = (["vectors"] if dim > 1 else []) + ["triangles", "inner_diagonal", "bias"]
        numbers = [getattr(b, name) for name in names]
        parts = predicted[row].split([each.numel() for each in numbers])
        state = alone.state_dict()
        state |= {n: v + p.view(v.shape) for n, v, p in zip(names, numbers, parts, strict=True)}
        alone.load_state_dict(state | ({} if dim > 1 else {"vectors": b.vectors}))
        wanted = alone(x[row : row + 1])
        torch.testing.assert_close((y[row : row + 1], log_det[row : row + 1]), wanted)
    torch.testing.assert_close(b.inverse(y, c), (x, -log_det))


def test_a_conditional_one_starts_as_the_identity():
    x = torch.randn(4, 3)
    torch.testing.assert_close(fk.Sylvester((3,), given=2)(x, torch.randn(4, 2)), (x, torch.zeros(4)))
