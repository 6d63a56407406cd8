import pytest
import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

import flowkit as fk
from flowkit.univariate import (
    build_univariate,
    rational_quadratic,
    rational_quadratic_eager,
    rational_quadratic_formula,
)
from flowkit.univariate.rational_quadratic_formula import CompiledSpline, formula, partition


def drawn(bins=5, shape=(3,), rows=64, scale=2.0, **config):
    spline = fk.RationalQuadraticSpline(shape, bins=bins, **config)
    channels = shape[0] if shape else 1
    predicted = scale * torch.randn(rows, spline.numbers_per_element * channels, *shape[1:])
    return spline, spline.split(predicted)


@pytest.mark.parametrize("inverse", [False, True])
def test_equals_nflows(inverse):
    spline, (widths, heights, derivatives) = drawn()
    x = 5 * torch.randn(64, 3)
    last = [p.movedim(1, -1) for p in (widths, heights, derivatives + spline.offset)]
    theirs = unconstrained_rational_quadratic_spline(x, *last, inverse=inverse, tail_bound=3.0)
    ours = (spline.inverse if inverse else spline)(x, widths, heights, derivatives)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
@pytest.mark.parametrize("bins", [2, 9])
def test_round_trip_and_derivative(bins, shape):
    spline, parameters = drawn(bins, shape)
    x = (2 * torch.randn(64, *shape)).requires_grad_()
    y, log_derivative = spline(x, *parameters)
    torch.testing.assert_close(log_derivative, torch.autograd.grad(y.sum(), x)[0].log(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(spline.inverse(y, *parameters), (x, -log_derivative), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    spline, parameters = drawn(3, (2,), rows=3, scale=1.0)
    leaves = [torch.randn(3, 2), *parameters]
    leaves = [each.detach().clone().requires_grad_() for each in leaves]
    run = spline.inverse if inverse else spline.forward
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, atol=1e-4)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2)])
@pytest.mark.parametrize("for_compilers", [False, True])
def test_the_closed_form_is_that_of_autograd_through_the_formula(shape, inverse, for_compilers):
    spline, parameters = drawn(6, shape)
    leaves = [2 * torch.randn(64, *shape), *parameters]
    leaves = [each.detach().clone().requires_grad_() for each in leaves]
    arguments = (*leaves[:3], spline._with_ends(leaves[3]))
    if for_compilers:
        ours = CompiledSpline.apply(*arguments, spline._setting, inverse)
    else:
        ours = (spline.inverse if inverse else spline.forward)(*leaves)
    results = ours, formula(*arguments, spline._setting, inverse)
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)
    upstream = [torch.randn(64, *shape), torch.randn(64, *shape)]
    closed, recorded = (torch.autograd.grad(each, leaves, upstream) for each in results)
    torch.testing.assert_close(closed, recorded, atol=1e-8, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("inverse", [False, True])
def test_second_derivatives_where_what_is_predicted_depends_on_what_is_transformed(inverse):
    spline, parameters = drawn(4, (2,), rows=3)
    weights = [torch.randn(3, each.shape[1], 2) for each in parameters]
    run = spline.inverse if inverse else spline.forward

    def total(x):
        image, log_derivative = run(x, *[weight * x.unsqueeze(1) for weight in weights])
        return (image * log_derivative.sin()).sum()

    x = torch.randn(3, 2, requires_grad=True)
    first, kept = (torch.autograd.grad(total(x), x, create_graph=keep)[0] for keep in (False, True))
    torch.testing.assert_close(kept, first)
    torch.testing.assert_close(torch.autograd.functional.hessian(total, x), torch.func.hessian(total)(x))


class WithoutGradients(CompiledSpline):
    @staticmethod
    def backward(ctx, *grads):
        return *[torch.zeros_like(each) for each in (ctx.saved_tensors[0], *ctx.saved_tensors[2:])], None, None


@pytest.mark.parametrize("inverse", [False, True])
def test_compilers_trace_the_closed_form_and_function_transforms_the_formula(inverse, monkeypatch):
    spline, parameters = drawn(3, (2,), rows=5)
    leaves = [each.detach().clone().requires_grad_() for each in (2 * torch.randn(5, 2), *parameters)]
    run = spline.inverse if inverse else spline.forward

    def compiled_gradients():
        compiled = torch.compile(lambda *leaves: run(*leaves), fullgraph=True, backend="aot_eager")
        return torch.autograd.grad(compiled(*leaves), leaves, (torch.ones(5, 2), torch.ones(5, 2)))

    wanted = torch.autograd.grad(run(*leaves), leaves, (torch.ones(5, 2), torch.ones(5, 2)))
    torch.testing.assert_close(compiled_gradients(), wanted, atol=1e-9, rtol=1e-9)
    monkeypatch.setattr(rational_quadratic, "CompiledSpline", WithoutGradients)
    torch._dynamo.reset()
    assert all((each == 0).all() for each in compiled_gradients())
    slope = torch.func.grad(lambda x: run(x, *parameters)[1].sum())
    x = leaves[0].detach()
    torch.testing.assert_close(torch.compile(slope, fullgraph=True, backend="aot_eager")(x), slope(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2.5e-7), (torch.float64, 5e-16)])
@pytest.mark.parametrize("derivative", [rational_quadratic_eager._derivative, rational_quadratic_formula._derivative])
def test_derivatives_are_as_exact_as_softplus_and_smooth_at_zero(derivative, dtype, tolerance):
    setting = rational_quadratic_eager.Setting(-3, 3, 1e-3, 0.0, 0.0)
    raw = torch.cat((torch.linspace(-60, 60, 4001), torch.tensor([0.0, -1e4, 1e4]))).to(dtype)
    wanted = torch.log1p(raw.double().abs().neg().exp()) + raw.double().clamp_min(0)
    found = derivative(raw, setting).double()
    assert ((found - wanted).abs() <= tolerance * wanted).all()
    zero = torch.zeros((), requires_grad=True)
    slope = torch.autograd.grad(rational_quadratic_formula._derivative(zero, setting), zero)[0]
    assert slope.item() == pytest.approx(0.5)


def test_undo_gives_the_input_and_the_gradients():
    spline, parameters = drawn(6, (3, 2))
    leaves = [each.detach().clone().requires_grad_() for each in (2 * torch.randn(64, 3, 2), *parameters)]
    y, log_derivative = spline(*leaves)
    upstream = torch.randn(64, 3, 2), torch.randn(64, 1, 1)
    wanted = torch.autograd.grad((y, log_derivative), leaves, (upstream[0], upstream[1].expand_as(y)))
    with torch.no_grad():
        x, grad_x, grads, own = spline.undo(y, leaves[1:], *upstream)
    torch.testing.assert_close(x, leaves[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close((grad_x, *grads), wanted, atol=1e-6, rtol=1e-6)
    assert own == {}


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, in its forward mode
def test_function_transforms_and_forward_mode_see_the_formula():
    spline, parameters = drawn(4, (2,), rows=5)
    x = torch.randn(5, 2)
    mapped = torch.func.vmap(lambda x, *p: spline(x[None], *[each[None] for each in p])[0][0])(x, *parameters)
    torch.testing.assert_close(mapped, spline(x, *parameters)[0])
    _, log_derivative = spline(x, *parameters)
    along = torch.func.jvp(lambda x: spline(x, *parameters)[0], (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(along.log(), log_derivative)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(spline(dual, *parameters)[0]).tangent
    torch.testing.assert_close(tangent.log(), log_derivative)


def test_float32_on_knots_in_tails_and_with_the_smallest_bins():
    spline, parameters = drawn(8, (1,), rows=1, scale=0.0)
    extreme = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    extreme[0][:, 0], extreme[1][:, -1] = 50.0, 50.0  # all but one bin as narrow, or as low, as may be
    knots = torch.cat(partition(extreme[0], spline._setting).knots).flatten().float()
    x = torch.cat((knots, torch.tensor([-1e6, 1e6, -3.0000002, 3.0000002, 2.9999998]))).float()[:, None]
    rows = [p.expand(len(x), *p.shape[1:]) for p in extreme]
    y, log_derivative = spline(x, *rows)
    back, minus = spline.inverse(y, *rows)
    for each in (y, log_derivative, back, minus):
        assert each.isfinite().all()
        assert each.dtype == torch.float32
    assert (y[x.flatten().argsort()].diff(dim=0) >= 0).all()
    assert y[len(knots)].item() == -1e6
    assert log_derivative[len(knots) : len(knots) + 4].abs().max() == 0
    assert (back - x).abs().max() < 1e-3  # a slope of 1e-3 magnifies rounding a thousandfold


@pytest.mark.parametrize("bins", [2, 4])
def test_density_integrates_to_one(bins):
    spline, parameters = drawn(bins, (1,), rows=1)
    x = torch.linspace(-9, 9, 400001)[:, None]  # its kinks at the knots cost the trapezoid rule its order
    y, log_derivative = spline(x, *[p.expand(len(x), *p.shape[1:]) for p in parameters])
    density = (torch.distributions.Normal(0.0, 1.0).log_prob(y) + log_derivative).exp().flatten()
    assert torch.trapezoid(density, x.flatten()).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bins": 1}, "bins must be an int of at least 2, got 1"),
        ({"bins": 2.5}, "bins must be an int"),
        ({"bound": -1.0}, "bound must be positive and finite, got -1.0"),
        ({"bins": 10, "min_bin": 0.1}, "min_bin must be above 0 and below 1 / bins = 0.1"),
        ({"min_derivative": 1.0}, "min_derivative must be above 0 and below 1"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(fk.ConfigError, match=message):
        fk.RationalQuadraticSpline((2,), **config)


def test_a_recipe_is_compared_by_what_it_makes():
    recipe = fk.RationalQuadraticSpline.recipe(bins=4)
    assert recipe == fk.RationalQuadraticSpline.recipe(bins=4) != fk.RationalQuadraticSpline.recipe(bins=5)
    assert build_univariate("Coupling", recipe, (3,)).bins == 4
    assert len({recipe, fk.RationalQuadraticSpline.recipe(bins=4)}) == 1


def test_a_coupling_with_any_univariate_goes_to_a_file_and_back(tmp_path):
    graph = fk.Graph()
    x = graph.input("x", (4,))
    x = graph.add(fk.Coupling, x, univariate=fk.RationalQuadraticSpline.recipe(bins=3), split=(0, 2))
    x = graph.add(fk.Coupling, x, univariate=fk.Additive)
    graph.output("z", x)
    flow = fk.Flow(graph)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_()
    fk.save(flow, tmp_path / "flow.safetensors")
    data = torch.randn(3, 4)
    assert torch.equal(fk.load(tmp_path / "flow.safetensors").log_prob(data), flow.log_prob(data))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_recorded_gradients_on_the_knots_are_those_in_closed_form(direction):
    """What compilers and function transforms differentiate must agree with the backward that eager mode has."""
    spline = fk.RationalQuadraticSpline((1,), bins=8)
    raw = torch.zeros(17, spline.numbers_per_element)
    x = torch.linspace(-3, 3, 17)[:, None]

    def loss(x, raw):
        image, log_derivative = getattr(spline, direction)(x, *spline.split(raw))
        return (image + 0.3 * image.square() + log_derivative).sum()

    leaves = [each.clone().requires_grad_() for each in (x, raw)]
    closed = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(x, raw), closed)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    "kind", [fk.RationalQuadraticSpline, fk.BoundedRationalQuadraticSpline, fk.CircularRationalQuadraticSpline]
)
def test_what_is_no_number_has_no_log_derivative_in_the_formula_either(kind, direction):
    spline = kind((2,), bins=3)
    run, parameters = getattr(spline, direction), spline.split(torch.randn(2, 2 * spline.numbers_per_element))
    x = torch.tensor([[torch.nan, 0.5], [0.25, torch.nan]])
    plain = run(x, *parameters)
    through_formula = torch.compile(run, backend="eager", fullgraph=True)(x, *parameters)
    for got, want in zip(through_formula, plain, strict=True):
        assert torch.equal(got.isnan(), x.isnan())
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_compiled_gradients_of_what_rounding_takes_beyond_the_bound_are_not_those_of_a_tail(dtype):
    spline, parameters = drawn(4, (), rows=2000, scale=1.0)
    y = torch.full((2000,), 3.0, dtype=dtype)
    leaves = [each.to(dtype).clone().requires_grad_() for each in (y, *parameters)]
    x, log_derivative = spline.inverse(*leaves)
    assert (x > 3).any()  # as the compiled one's, whose steps are these
    want = torch.autograd.grad((x + log_derivative).sum(), leaves)
    x, log_derivative = CompiledSpline.apply(*leaves[:3], spline._with_ends(leaves[3]), spline._setting, True)
    got = torch.autograd.grad((x + log_derivative).sum(), leaves)
    close = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.float32 else {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(got, want, **close)
    ones = torch.ones_like(y)
    given = [each.detach() for each in leaves]
    want = spline.undo(given[0], given[1:], ones, ones)
    got = torch.compile(spline.undo, backend="eager")(given[0], given[1:], ones, ones)
    torch.testing.assert_close(got[1:3], want[1:3], **close)
