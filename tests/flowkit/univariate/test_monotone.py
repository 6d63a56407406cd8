"""What holds of every univariate map without a closed inverse."""

import copy

import pytest
import torch
from hypothesis import settings

import flowkit as fk
from flowkit.bisection import solve_monotone
from flowkit.testing import check_bijection

MAPS = {
    "logistic_mixture": fk.LogisticMixture.recipe(components=3),
    "sigmoidal": fk.Sigmoidal.recipe(components=3),
    "bernstein": fk.BernsteinPolynomial.recipe(degree=5),
    "sum_of_squares": fk.SumOfSquaresPolynomial.recipe(polynomials=2, degree=3),
    "unconstrained": fk.UnconstrainedMonotonic.recipe(hidden=3),
}
FINE = {  # where a test needs more resolution
    "bernstein": fk.BernsteinPolynomial.recipe(degree=12, bound=2.0),
    "unconstrained": fk.UnconstrainedMonotonic.recipe(hidden=6, bound=2.0),
}
every_map = pytest.mark.parametrize("name", MAPS)
SLOW = "compile_forward", "compile_inverse", "export_forward", "export_inverse"
COMPILED = "sigmoidal", "bernstein"  # one of each way to bracket the root; all of them in the long profile


def drawn(name, shape=(3,), rows=64, scale=1.0):
    univariate = MAPS[name](shape)
    channels = shape[0] if shape else 1
    torch.manual_seed(3)
    predicted = scale * torch.randn(rows, univariate.numbers_per_element * channels, *shape[1:])
    return univariate, univariate.split(predicted)


@every_map
@pytest.mark.parametrize(("shape", "given"), [((2,), ()), ((1, 2), ((1, 2),))])
def test_laws(name, shape, given):
    subnet = {"subnet": fk.ConvNet(hidden=3, kernel=1, activation="silu"), "given": given} if given else {}
    compiled = not given and (name in COMPILED or settings().max_examples > 200)
    skip = ("processes",) if compiled else ("processes", *SLOW)
    check_bijection(fk.Elementwise, example=fk.Example(shape, univariate=MAPS[name], **subnet), skip=skip)


@pytest.mark.parametrize(
    ("cls", "name", "subnet"),
    [
        (fk.Coupling, "logistic_mixture", {"subnet": fk.MLP(hidden=4, activation="silu"), "two_sided": True}),
        (fk.Coupling, "unconstrained", {"subnet": fk.MLP(hidden=4, activation="silu")}),
        (fk.MaskedAutoregressive, "sigmoidal", {"hidden": (4,), "activation": "silu"}),
        (fk.MaskedAutoregressive, "sum_of_squares", {"hidden": (4,), "activation": "silu", "inverted": True}),
    ],
)
def test_laws_within_couplings_and_autoregressive_maps(cls, name, subnet):
    example = fk.Example((3,), given=(2,), univariate=MAPS[name], **subnet)
    check_bijection(cls, example=example, skip=("processes", *SLOW))
    built = example.build(cls)
    assert built.iterative
    assert built.tolerance == MAPS[name].univariate.tolerance


@every_map
def test_zero_parameters_are_the_identity(name):
    univariate, parameters = drawn(name, scale=0.0)
    x = torch.cat((4 * torch.randn(62, 3), torch.tensor([[1e6, -1e6, 0.0], [5.0, -5.0, 7.0]])))
    y, log_derivative = univariate(x, *parameters)
    torch.testing.assert_close((y, log_derivative), (x, torch.zeros_like(x)), atol=1e-9, rtol=1e-12)


@every_map
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_round_trip_and_derivative(name, shape):
    univariate, parameters = drawn(name, shape)
    x = (4 * torch.randn(64, *shape)).requires_grad_()
    y, log_derivative = univariate(x, *parameters)
    torch.testing.assert_close(log_derivative, torch.autograd.grad(y.sum(), x)[0].log(), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(univariate.inverse(y, *parameters), (x, -log_derivative), atol=1e-8, rtol=1e-8)


@every_map
def test_gradients_of_first_and_second_order(name):
    univariate, parameters = drawn(name, (1,), rows=3, scale=0.7)
    leaves = [each.detach().clone().requires_grad_() for each in (torch.randn(3, 1), *parameters)]
    assert torch.autograd.gradcheck(univariate, leaves)
    assert torch.autograd.gradcheck(univariate.inverse, leaves)
    assert torch.autograd.gradgradcheck(univariate.inverse, leaves)


@every_map
@pytest.mark.parametrize("at", [0.0, 5.0, -5.0, 7.0])
def test_second_derivatives_at_zero_at_the_bounds_and_in_the_tails(name, at):
    """Where a polynomial's variable is 0: a power of it has a derivative, and its autograd once had none."""
    univariate, parameters = drawn(name, (1,), rows=1)
    for apply in (univariate.forward, univariate.inverse):
        leaves = [each.detach().clone().requires_grad_() for each in (torch.full((1, 1), at), *parameters)]
        y, log_derivative = apply(*leaves)
        first = torch.autograd.grad(y.square().sum() + log_derivative.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.sum() for each in first), leaves)
        assert all(each.isfinite().all() for each in second)


@every_map
def test_another_dtype_is_as_exact_as_if_it_had_been_built_so(name):
    """Constants of float32 would make value and derivative differ by 1e-8 in float64, those of bfloat16 by 1e-2."""
    torch.set_default_dtype(torch.float32)
    widened, returned = MAPS[name]((3,)).double(), copy.deepcopy(MAPS[name]((3,))).bfloat16().float()
    assert all(torch.equal(a, b) for a, b in zip(returned.buffers(), MAPS[name]((3,)).buffers(), strict=True))
    torch.set_default_dtype(torch.float64)
    univariate, parameters = drawn(name)
    x = (3 * torch.randn(64, 3)).requires_grad_()
    y, log_derivative = widened(x, *parameters)
    torch.testing.assert_close((y, log_derivative), univariate(x, *parameters), atol=1e-13, rtol=1e-13)


@every_map
def test_float32_far_out_and_onto_the_real_line(name):
    univariate, parameters = drawn(name, (1,), rows=10)
    univariate, parameters = univariate.float(), [p.float() for p in parameters]
    far = torch.tensor([-1e6, -1e3, -50, -5, -1e-7, 0, 1e-7, 5, 1e3, 1e6], dtype=torch.float32)[:, None]
    for there, back in ((univariate.forward, univariate.inverse), (univariate.inverse, univariate.forward)):
        y, log_derivative = there(far, *parameters)
        again, minus = back(y, *parameters)
        assert all(each.isfinite().all() and each.dtype == torch.float32 for each in (y, log_derivative, again))
        torch.testing.assert_close(again, far, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(minus, -log_derivative, rtol=1e-3, atol=1e-3)


@every_map
def test_learns_two_bumps_from_the_identity(name):
    """Components that start equal must part: a single affine map reaches 1.46 nats on this target, the truth is 0.91.

    Two normals of standard deviation 0.3 at -1 and 1, in equal parts.
    """
    torch.manual_seed(0)
    x = torch.cat((torch.randn(256, 1) * 0.3 - 1, torch.randn(256, 1) * 0.3 + 1))
    flow = fk.Flow(fk.Elementwise((1,), univariate=FINE.get(name, MAPS[name])))
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(300):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.1


FAR = [0.0, 10.0, -10.0, 300.0, -300.0, 1e4, -1e4, 1e6, -1e6]
EXTREME = {  # what is predicted: random numbers, and signs times a size
    "normal": torch.randn,
    "large": lambda *shape: 1e4 * torch.randn(*shape),
    "50": lambda *shape: 50 * torch.randn(*shape).sign(),
    "1e4": lambda *shape: 1e4 * torch.randn(*shape).sign(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("predicted", EXTREME)
@pytest.mark.parametrize("name", [*MAPS, "moebius", "cubic"])
def test_the_inverse_is_as_near_as_rounding_over_the_slope_allows(name, predicted, dtype):
    """Wherever the data lie and whatever is predicted: y is met to rounding, x to y's rounding over the slope."""
    torch.manual_seed(2)
    torch.set_default_dtype(dtype)
    others = {"moebius": fk.Moebius.recipe(components=4), "cubic": fk.CubicSpline.recipe(bins=8)}
    univariate = {**MAPS, **others}[name]((1,))
    parameters = univariate.split(EXTREME[predicted](4500, univariate.numbers_per_element))
    x = torch.tensor(FAR).repeat(500)[:, None]
    if name == "moebius":
        x = x.clamp(-3, 3)
    y, log_derivative = univariate(x, *parameters)
    back, minus = univariate.inverse(y, *parameters)
    for each in (y, log_derivative, back, minus):
        assert each.isfinite().all()
    again, _ = univariate(back, *parameters)
    # Mixtures add numbers of opposite signs, of up to 1e4 times two slopes of e^5.
    eps = torch.finfo(dtype).eps * (3000 if name == "logistic_mixture" else 10)
    slope = log_derivative.exp()
    assert ((again - y).abs() <= eps * (1 + y.abs() + slope * x.abs())).all()
    assert ((back - x).abs() <= eps * (1 + x.abs() + (1 + y.abs()) / slope)).all()
    assert log_derivative.min() > -13


def test_a_root_at_an_end_of_the_bracket_or_next_to_it():
    """Newton's steps come near it from one side; bisections alone would take 40 steps."""
    target = torch.tensor([0.0, 1e-12, 1e-7, 1e-3, 0.75, 0.75 - 1e-9])

    def f(t):  # concave, with slope 1 at 0 and 1/2 at 1
        return t - t * t / 4, 1 - t / 2

    root = solve_monotone(f, target, torch.zeros(6), torch.ones(6), 12)
    torch.testing.assert_close(root, 2 - 2 * (1 - target).sqrt(), atol=1e-15, rtol=1e-12)


def test_the_root_is_kept_where_the_function_is_flat():
    """A Newton step in a plateau of slope 1e-12 would leave; the gradient is still one over the derivative."""
    target = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float32, requires_grad=True)

    def f(x):
        return torch.where(x > 0, x + 1, 1 + 1e-12 * x), torch.where(x > 0, 1.0, torch.full_like(x, 1e-12))

    x = solve_monotone(f, target, torch.full((3,), -8.0).float(), torch.full((3,), 8.0).float(), 20)
    assert x.abs().max() <= 8
    assert x[2].item() == pytest.approx(1.0)
    assert torch.autograd.grad(x[2], target)[0][2].item() == pytest.approx(1.0)


def test_a_root_where_the_derivative_rounds_to_zero_is_no_nan():
    target = torch.zeros(3, requires_grad=True)
    root = solve_monotone(lambda x: (x**3, 3 * x**2), target, target - 1, target + 1, 4)
    assert root.equal(torch.zeros(3))
