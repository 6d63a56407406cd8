"""Residual blocks: contractions by construction, unbiased log-dets, inverses that are checked."""

import math
import warnings

import pytest
import torch

import flowkit as fk
from flowkit.bijections.residual import roulette
from flowkit.jacobian_net import ACTIVATIONS, CONTRACTIONS

SIGMAS = 4.5  # a false alarm 7e-6 times a comparison


def made(*shape, std=0.8, **config):
    block = fk.ResidualBlock(*shape, **config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, std)
    return block


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_derivatives_and_at_most_one(name):
    activation = ACTIVATIONS[name]()
    for beta in (-3.0, 0.5, 8.0):
        for parameter in activation.parameters():
            parameter.data.fill_(beta)
        x = torch.linspace(-20, 20, 10_001, requires_grad=True)
        value, slope = activation(x)
        (want,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(slope, want, atol=1e-12, rtol=0)
        assert slope.abs().max() <= (1.0 if name in CONTRACTIONS else 1.1)
    zero = torch.zeros(1, requires_grad=True)
    value, slope = activation(zero)
    torch.testing.assert_close(torch.autograd.grad(value, zero)[0], slope)  # at ELU's joint, too


@pytest.mark.parametrize("shape", [(5,), (2, 6), (2, 3, 4), (1, 2, 2, 3)])
@pytest.mark.parametrize("activation", ["lipswish", "elu"])
def test_the_jacobian_of_g_is_bounded_whatever_the_weights(shape, activation):
    for std in (0.01, 1.0, 100.0):
        block = made(shape, std=std, hidden=(7, 6), activation=activation, coeff=0.95, log_det="exact")
        x = torch.randn(20, *shape)
        jacobian = block._function(())(x).jacobian()
        norms = torch.linalg.matrix_norm(jacobian, 2)
        assert norms.max() <= 0.95
        g = block._function(())
        stacked = torch.autograd.functional.jacobian(
            lambda rows, g=g: g(rows).value.sum(0), x[:2]
        )  # outputs, rows, ...
        want = stacked.movedim(len(shape), 0)
        torch.testing.assert_close(jacobian[:2], want.reshape_as(jacobian[:2]), atol=1e-10, rtol=1e-10)
    for layer, weight in zip(block.net.layers, block.net.weights(), strict=True):  # each reaches its share
        assert layer.bound() > 1
        layer.weight.data.copy_(weight)
        assert layer.bound().item() == pytest.approx(0.95 ** (1 / 3), rel=1e-6)


@pytest.mark.parametrize("shape", [(5,), (1, 9), (2, 4, 5)])
def test_the_bound_is_nearly_reached(shape):
    """Weights of one sign, where the norm of the reshaped kernel would be too small, and slopes of nearly 1."""
    block = made(shape, hidden=4, activation="elu", coeff=0.95, log_det="exact")
    with torch.no_grad():
        for layer in block.net.layers:
            layer.weight.fill_(1.0)
            layer.bias.fill_(3.0)
    jacobian = block._function(())(torch.ones(1, *shape)).jacobian()
    assert 0.5 < torch.linalg.matrix_norm(jacobian, 2).item() < 0.95 + 1e-12


def test_conditions_are_not_bounded():
    block = made((3,), given=2, hidden=(8,))
    with torch.no_grad():
        block.net.layers[0].condition.mul_(1000)
        x, c = torch.randn(4, 3), torch.randn(4, 2)
        y, log_det = block(x, c)
        torch.testing.assert_close(block.inverse(y, c), (x, -log_det), atol=1e-10, rtol=1e-10)


def test_the_products_with_the_jacobian_are_transposes():
    block = made((2, 3, 4), hidden=(5,))
    g = block._function(())(torch.randn(3, 2, 3, 4))
    t, v = torch.randn(2, 3, 2, 3, 4), torch.randn(2, 3, 2, 3, 4)
    torch.testing.assert_close((g.push(t) * v).flatten(2).sum(2), (g.pull(v) * t).flatten(2).sum(2))


class Residual(torch.nn.Module):
    """The function g of a block, as a net for the block of a peer."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block._function(())(x).value


def test_normflows_finds_the_same():
    """Its block with our net, whose log-det it finds for two dimensions by brute force."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from normflows.flows.residual import iResBlock
    block = made((2,), hidden=(6,))
    peer = iResBlock(Residual(block), brute_force=True)
    x = torch.randn(7, 2)
    y, log_det = block(x)
    their_y, their_log_det = peer.forward(x, 0)
    torch.testing.assert_close(y, their_y)
    torch.testing.assert_close(log_det, -their_log_det.flatten())
    # It stops where the square of a step is below 1e-5, though its tolerance is called 1e-5.
    torch.testing.assert_close(block.inverse_only(y), peer.inverse(y), atol=1e-2, rtol=1e-2)


def test_freia_finds_the_same_but_for_the_log_det_of_its_inverse():
    """In one dimension its random vectors of signs find the trace; the inverse takes it at y, where it should at x."""
    from FrEIA.modules import IResNetLayer

    block = made((1,), hidden=(6,), coeff=0.8, log_det="exact")
    peer = IResNetLayer([(1,)], jacobian_iterations=120, fixed_point_iterations=120)
    peer.residual = Residual(block)
    x = torch.randn(7, 1)
    y, log_det = block(x)
    (their_y,), their_log_det = peer([x.clone()])
    torch.testing.assert_close((y, log_det), (their_y, their_log_det), atol=1e-10, rtol=1e-10)
    (back,), wrong = peer([y.detach().clone()], rev=True)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=1e-10)
    assert (wrong + log_det).abs().max() > 0.01
    torch.testing.assert_close(wrong, -block(y)[1], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(block.inverse(y)[1], -log_det, atol=block.tolerance, rtol=0)


def test_roulette_is_unbiased():
    """The mean weight of each term is 1."""
    torch.manual_seed(0)
    draws = torch.zeros(20_000, 8)
    for row in draws:
        weights = roulette(2, 0.7)[:8]
        row[: len(weights)] = torch.tensor(weights)
    assert (draws[:, :3] == 1).all()  # the term after the exact ones is always there
    error = draws[:, 3:].std(0) / math.sqrt(len(draws))
    assert ((draws[:, 3:].mean(0) - 1).abs() < SIGMAS * error).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_estimate_and_its_gradient_are_unbiased(training):
    """Means over 600 calls, of the log-det and of its gradient along one direction, beside the exact ones."""
    torch.manual_seed(2)
    config = {"hidden": (6,), "coeff": 0.8, "activation": "elu"}
    exact = made((3,), given=(1,), **config)
    first, last = exact.net.layers
    last.weight.data.copy_(first.weight.T)  # a Jacobian near its bound, so that later terms count
    first.bias.data.fill_(1.0)
    block = fk.ResidualBlock((3,), given=(1,), log_det="estimate", terms=1, eval_terms=2, **config).train(training)
    block.load_state_dict(exact.state_dict())
    x, c = torch.randn(8, 3), torch.randn(8, 1)
    direction = [torch.randn_like(p) for p in (x, *exact.parameters())]

    def value_and_slope(b):
        data = x.clone().requires_grad_()
        total = b(data, c)[1].sum()
        grads = torch.autograd.grad(total, [data, *b.parameters()], allow_unused=True, materialize_grads=True)
        return torch.stack([total.detach(), sum((g * d).sum() for g, d in zip(grads, direction, strict=True))])

    want = value_and_slope(exact)
    found = torch.stack([value_and_slope(block) for _ in range(600)])
    error = found.std(0) / math.sqrt(len(found))
    assert (error < 0.05 * want.abs()).all()  # else the test could not fail
    assert ((found.mean(0) - want).abs() < SIGMAS * error).all()


def test_training_keeps_one_product_whatever_the_number_of_terms():
    def kept(terms, training):
        block = made((40,), hidden=(50,), terms=terms, eval_terms=terms).train(training)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            torch.manual_seed(0)
            block(torch.randn(4, 40))
        return len(sizes)

    assert kept(2, True) == kept(30, True)
    assert kept(2, False) < kept(30, False)


def test_memory_frugal_training_draws_the_same_numbers_again():
    """The kit tries eval mode; in training the gradient is another estimate."""
    flow = fk.flows.residual_flow(3, condition=2, layers=2, hidden=(6,), log_det="estimate").train()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, c, found = torch.randn(5, 3), torch.randn(5, 2), {}
    for mode in ("plain", "reverse", "checkpoint"):
        flow.backprop = mode
        torch.manual_seed(1)
        loss = flow.log_prob(x, given=c).mean()
        found[mode] = torch.autograd.grad(loss, list(flow.parameters()))
    for mode in ("reverse", "checkpoint"):
        torch.testing.assert_close(found[mode], found["plain"], atol=1e-12, rtol=1e-12)


def test_both_ways_to_invert_agree():
    exact = made((3,), given=(2,), hidden=(8,), coeff=0.97)
    other = fk.ResidualBlock((3,), given=(2,), hidden=(8,), coeff=0.97, log_det="estimate")
    other.load_state_dict(exact.state_dict())
    y, c, weight = 10 * torch.randn(50, 3), torch.randn(50, 2), torch.randn(50, 3)
    results = []
    for block in (exact, other):
        leaves = [y.clone().requires_grad_(), c.clone().requires_grad_()]
        x = block.inverse_only(*leaves)
        results.append([x, *torch.autograd.grad((weight * x).sum(), [*leaves, *block.parameters()])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


def test_second_derivatives_are_exact_or_refused():
    exact = made((2,), hidden=(3,))
    y = torch.randn(2, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(exact.inverse_only, y)
    other = fk.ResidualBlock((2,), hidden=(3,), log_det="estimate")
    other.load_state_dict(exact.state_dict())
    with pytest.raises(fk.BackpropError, match="through ResidualBlock's inverse by the fixed point: use"):
        torch.autograd.grad(other.inverse_only(y).square().sum(), y, create_graph=True)
    with pytest.raises(fk.BackpropError, match=r"estimated log-det in training mode: call eval\(\) or use"):
        torch.autograd.grad(other(y)[1].sum(), y, create_graph=True)
    weight = torch.randn(2, 2)

    def estimate(y):
        torch.manual_seed(0)
        x, log_det = other.eval()(y)
        return (weight * x).sum() + log_det.sum()

    assert torch.autograd.gradgradcheck(estimate, y)


def test_an_inverse_that_was_not_found_is_an_error():
    block = made((40,), hidden=(8,), iterations=2)
    y = torch.randn(3, 40)
    with pytest.raises(fk.ConvergenceError, match=r"ResidualBlock: row \d has a residual of .* after 2 iterations"):
        block.inverse(y)
    block.iterations = 200
    x = block.inverse_only(y)
    torch.testing.assert_close(block(x)[0], y, atol=1e-10, rtol=1e-10)
    block.iterations = 1
    with torch.no_grad():
        block.net.layers[-1].weight.zero_()  # found at once
    block.inverse(y)


@pytest.mark.parametrize("activation", ["elu", "tanh"])
def test_a_block_that_was_trained_to_bend_sharply_is_inverted(activation):
    """Whole Newton steps overshoot where the slope of g changes from -coeff to coeff, as many as 21 times."""
    torch.manual_seed(1)
    block = fk.ResidualBlock((2,), hidden=(32, 32), activation=activation, coeff=0.99)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    x = 3 * torch.randn(64, 2)
    for step in range(60):
        y, log_det = block(x)
        loss = (8 * y.square().sum(1) - log_det).mean() if step % 2 else -log_det.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for scale in (1, 3, 10):
        y = scale * torch.randn(500, 2)
        with torch.no_grad():
            torch.testing.assert_close(block(block.inverse_only(y))[0], y, atol=1e-11, rtol=1e-11)


def test_the_newton_inverse_is_checked_too(monkeypatch):
    block = made((3,), hidden=(8,), coeff=0.99)
    monkeypatch.setattr("flowkit.contraction.ROUNDINGS", 0)
    block.tolerance = 1e-30  # nothing reaches that
    with pytest.raises(fk.ConvergenceError, match="after 8 iterations, and may have"):
        block.inverse(torch.randn(50, 3))


def test_not_a_number_passes():
    for log_det in ("exact", "estimate"):
        block = made((2,), hidden=(4,), log_det=log_det)
        y = torch.tensor([[math.nan, 1.0], [0.5, 2.0]])
        x = block.inverse_only(y)
        assert x[0].isnan().all()
        torch.testing.assert_close(block(x)[0][1], y[1])


@pytest.mark.parametrize("log_det", ["exact", "estimate"])
def test_float32_far_out(log_det):
    block = made((3,), hidden=(16,), log_det=log_det).float()
    x = torch.tensor([1e-6, 1.0, -1e3, 1e6], dtype=torch.float32)[:, None] * torch.randn(4, 3).float()
    with torch.no_grad():
        y, log_det = block(x)
        back, _ = block.inverse(y)
    assert log_det.isfinite().all()
    assert ((back - x).norm(dim=1) <= 1e-4 * (1 + x.norm(dim=1))).all()


def test_it_starts_as_the_identity_and_says_what_it_is():
    x = torch.randn(2, 3)
    for log_det, exact in (("exact", True), ("estimate", False), ("auto", True)):
        block = fk.ResidualBlock((3,), log_det=log_det)
        y, found = block(x)
        assert torch.equal(y, x)
        assert not found.any()
        assert (block.stochastic, block.adaptive, block.iterative) == (not exact, not exact, True)
        assert fk.Flow(block).exact == exact
    assert fk.ResidualBlock((3,), exact_up_to=2).stochastic
    assert "estimate" in repr(fk.ResidualBlock((33,)))


def test_another_size_shares_the_weights_and_has_its_own_bounds():
    graph = fk.Graph()
    x = graph.input("x", (1, 4, 4))
    graph.output("z", graph.add(fk.ResidualBlock, x, hidden=3))
    flow = fk.Flow(graph)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, 2)
    larger = flow.resized(x=(1, 6, 8))
    block = larger.network.nodes.residual_block_1
    assert torch.linalg.matrix_norm(block._function(())(torch.randn(3, 1, 6, 8)).jacobian(), 2).max() < 0.9
    assert list(larger.state_dict()) == list(flow.state_dict())


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (((),), {}, r"ResidualBlock needs vectors \(D,\) or maps, .* got shape \(\)"),
        (((2, 2, 2, 2, 2),), {}, r"to \(C, D, H, W\)"),
        (((3,),), {"coeff": 1.0}, "coeff must be above 0 and below 1, got 1.0"),
        (((3,),), {"activation": "silu"}, "activation must be one of lipswish, elu, tanh, softplus, got 'silu'"),
        (((3,),), {"hidden": ()}, "hidden must be a positive int"),
        (((3, 4),), {"kernel": 2}, "kernel must be an odd int, got 2"),
        (((3,),), {"log_det": "trace"}, "log_det must be one of auto, exact, estimate, got 'trace'"),
        (((3,),), {"survival": 0.5}, r"survival must be above coeff\*\*2 = 0.81, .* got 0.5"),
        (((3,),), {"probes": 0}, "probes must be an int of at least 1, got 0"),
        (((3,),), {"iterations": 1.5}, "iterations must be an int of at least 1, got 1.5"),
        (((3, 4),), {"given": (2,)}, "needs conditions that are maps"),
    ],
)
def test_refusals(arguments, config, message):
    with pytest.raises(fk.FlowkitError, match=message):
        fk.ResidualBlock(*arguments, **config)


@pytest.mark.parametrize("shape", [(2,), (3, 4)])
def test_a_net_starts_with_equal_singular_values_and_units_that_bend_within_the_data(shape):
    """Weights of unequal ones lose slope to the bound, and a unit that is straight within the data cannot learn it."""
    torch.manual_seed(0)
    net = fk.ResidualBlock(shape, hidden=(64, 64), kernel=1, coeff=0.9).net
    weights = net.weights()
    for weight in weights[:-1]:
        found = torch.linalg.svdvals(weight.flatten(1))
        torch.testing.assert_close(found, torch.full_like(found, 0.9 ** (1 / 3)), rtol=0.02, atol=0)
    assert not weights[-1].any()
    for slope in net.at(torch.randn(500, *shape), weights).slopes:
        changes = slope.amax(0) - slope.amin(0)
        assert (changes > 0.4).double().mean() > 0.7


def test_a_second_derivative_of_the_estimate_in_training_is_refused_in_function_transforms_too():
    block, x = fk.ResidualBlock((3,), hidden=(4,), log_det="estimate").train(), torch.randn(2, 3)

    def log_det(x):
        torch.manual_seed(0)
        return block(x)[1].sum()

    first = torch.func.grad(log_det)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(first(x), torch.autograd.grad(log_det(leaf), leaf)[0])
    with pytest.raises(fk.BackpropError, match="second derivative cannot be taken through a ResidualBlock's estimate"):
        torch.func.grad(lambda x: first(x).square().sum())(x)
    block.eval()
    assert torch.func.grad(lambda x: first(x).square().sum())(x).isfinite().all()
