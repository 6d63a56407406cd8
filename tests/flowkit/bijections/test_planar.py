import pytest
import torch
from normflows.flows import Planar as NormflowsPlanar
from normflows.flows import Radial as NormflowsRadial

import flowkit as fk
from flowkit.bijections.planar import FLOOR, ONE
from flowkit.bisection import solve_monotone

both = pytest.mark.parametrize("cls", [fk.Planar, fk.Radial])


def test_planar_is_the_formula():
    b = fk.Planar((2,))
    with torch.no_grad():
        b.numbers.copy_(torch.tensor([1.0, 2.0, -3.0, 0.5, 0.25]))
    w, u, bias, stretch = b._values(())
    x = torch.randn(5, 2)
    y, _ = b(x)
    torch.testing.assert_close(y, x + torch.tanh(x @ w + bias)[:, None] * u)
    torch.testing.assert_close(w @ u, stretch - 1)
    torch.testing.assert_close(stretch, 0.01 + 0.99 * torch.log(1 + torch.exp(torch.tensor(-2.0)) * (torch.e - 1)))
    torch.testing.assert_close((u - torch.tensor([-3.0, 0.5])) / w, torch.full((2,), ((stretch + 1) / 5).item()))


def test_radial_is_the_formula():
    b = fk.Radial((3,))
    with torch.no_grad():
        b.numbers.copy_(torch.tensor([1.0, 2.0, -3.0, 0.5, -0.7]))
    center, alpha, total = b._values(())
    x = torch.randn(5, 3)
    r = (x - center).norm(dim=1, keepdim=True)
    torch.testing.assert_close(b(x)[0], x + (total - alpha) / (alpha + r) * (x - center))


def raw(positive):
    """The number of which `positive` of flowkit.bijections.planar is this one."""
    return ((positive - FLOOR) / (1 - FLOOR)).expm1().log() - ONE


def equals(ours, theirs, dim):
    x = 2 * torch.randn(20, dim)
    y, log_det = theirs(x)
    torch.testing.assert_close(ours(x), (y, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(y), (x, -log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dim", [1, 4])
def test_planar_is_normflows_with_the_same_vectors(dim):
    """Theirs has 1 + w.u = softplus of the free w.u, where ours has a floor as well: matched by w, u and b."""
    w, v, b = torch.randn(1, dim), torch.randn(1, dim), torch.randn(1)
    theirs, ours = NormflowsPlanar((dim,), u=v, w=w, b=b), fk.Planar((dim,))
    stretch = torch.nn.functional.softplus((w * v).sum())
    u = v + (stretch - 1 - (w * v).sum()) * w / w.square().sum()
    free = u + (raw(stretch) - (w * u).sum()) * w / w.square().sum()
    with torch.no_grad():
        ours.numbers.copy_(torch.cat((w[0], free[0], b)))
    equals(ours, theirs, dim)


@pytest.mark.parametrize("dim", [1, 4])
def test_radial_is_normflows_with_the_same_numbers(dim):
    theirs, ours = NormflowsRadial((dim,)), fk.Radial((dim,))
    alpha = theirs.alpha.detach().abs()
    total = torch.nn.functional.softplus(theirs.beta.detach())  # alpha + beta
    with torch.no_grad():
        ours.numbers.copy_(torch.cat((theirs.z_0[0], raw(alpha), raw(total / alpha))))
    equals(ours, theirs, dim)


@both
@pytest.mark.parametrize("given", [(), (2,)])
def test_starts_as_the_identity(cls, given):
    b = cls((3,), given=given)
    x, conditions = torch.randn(4, 3), [torch.randn(4, *given)] if given else []
    torch.testing.assert_close(b(x, *conditions), (x, torch.zeros(4)))


@both
@pytest.mark.parametrize("std", [1, 5, 30])
def test_large_weights_are_invertible(cls, std, redraw, log_abs_det):
    for seed in range(5):
        torch.manual_seed(seed)
        b = redraw(cls((4,)), std)
        x = std * torch.randn(6, 4)
        y, log_det = b(x)
        back, log_det_back = b.inverse(y)
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9 * std**2)
        torch.testing.assert_close(log_det_back, -log_det, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(log_abs_det(b, (x,), ()), log_det, rtol=1e-7, atol=1e-7)


@both
def test_float32_is_near_float64(cls, redraw):
    b = redraw(cls((3,)), 2)
    x = torch.randn(50, 3)
    y = b(x)[0].float()
    assert (b.float().inverse(y)[0] - x).abs().max() < 1e-3


@both
def test_gradients_of_the_inverse(cls, redraw):
    b = redraw(cls((2,)), 1)

    def inverse(y, numbers):
        return torch.func.functional_call(_Inverse(b), {"part.numbers": numbers}, (y,))

    arguments = (torch.randn(3, 2, requires_grad=True), b.numbers.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(inverse, arguments)
    assert torch.autograd.gradgradcheck(inverse, arguments)


class _Inverse(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, y):
        return self.part.inverse(y)


def test_radial_at_its_center():
    b = fk.Radial((2,))
    with torch.no_grad():
        b.numbers.copy_(torch.tensor([0.5, -1.0, 0.3, -2.0]))
    x = torch.tensor([[0.5, -1.0]], requires_grad=True)
    y, log_det = b(x)
    torch.testing.assert_close(y, x)
    (y.sum() + log_det.sum() + b.inverse(y)[1].sum()).backward()
    assert x.grad.isfinite().all()


@both
def test_many_samples_for_prepared_conditions(cls, redraw):
    b = redraw(cls((3,), given=(2,)))
    c, x = torch.randn(2, 2), torch.randn(6, 3)
    prepared = fk.Prepared(b.prepare(c))
    torch.testing.assert_close(b(x, prepared), b(x, c.repeat(3, 1)))
    torch.testing.assert_close(b.inverse(x, prepared), b.inverse(x, c.repeat(3, 1)))


@both
def test_refusals(cls):
    name = cls.__name__
    with pytest.raises(fk.ShapeError, match=rf"{name} needs vectors \(D,\), got shape \(3, 4\): put fk.Flatten"):
        cls((3, 4))
    with pytest.raises(fk.ShapeError, match=rf"{name} needs vectors"):
        cls(())
    with pytest.raises(fk.ConfigError, match=rf"{name}: a subnet needs conditions to predict from"):
        cls((3,), subnet=fk.MLP())
    with pytest.raises(fk.ShapeError, match=rf"{name} on data of shape \(3,\) needs conditions that are vectors"):
        cls((3,), given=((2, 4, 4),))


def test_the_root_of_a_steep_function():
    target = torch.linspace(-3, 3, 41, requires_grad=True)

    def f(x):
        t = torch.tanh(50 * x)
        return 0.01 * x + 3 * t, 0.01 + 150 * (1 - t * t)

    x = solve_monotone(f, target, torch.full((41,), -400.0), torch.full((41,), 400.0), 28)
    torch.testing.assert_close(f(x)[0], target, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(x.sum(), target)
    torch.testing.assert_close(gradient * f(x)[1], torch.ones(41), rtol=1e-6, atol=1e-6)
