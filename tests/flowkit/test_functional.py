"""torch.func on every ready flow: jacrev's log-det, per-sample gradients, functional weights, vmap over conditions."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

import flowkit as fk

from .ready_flows import NAMES, adaptive, data, parts, ready

TIGHT = {"atol": 1e-8, "rtol": 1e-8}
every = pytest.mark.parametrize("name", NAMES)


def prepared(name, condition=2):
    flow = ready(name, condition)
    if adaptive(flow):
        pytest.skip("its number of steps depends on the data")
    return flow, *data(flow, 3)


def stochastic(flow):
    return any(part.stochastic for part in parts(flow))


@every
def test_jacobians_are_the_log_dets(name):
    """Of both directions, row by row by vmap; where steps or a search are inexact, to the declared tolerance."""
    flow, x, y = prepared(name)
    y = next(iter(y.values()))
    z, log_det = flow(x, given=y)
    if not stochastic(flow):
        assert flow.exact
        jacobian = vmap(jacrev(lambda x, y: flow(x, given=y)[0]))(x, y)
        torch.testing.assert_close(torch.linalg.slogdet(square(jacobian)).logabsdet, log_det, **tolerance(flow))
    jacobian = vmap(jacrev(lambda z, y: flow.inverse(z, given=y)[0]))(z.detach(), y)
    want = flow.inverse(z.detach(), given=y)[1]
    torch.testing.assert_close(torch.linalg.slogdet(square(jacobian)).logabsdet, want, **tolerance(flow))


def square(jacobian):
    rows = jacobian.shape[0]
    size = round((jacobian.numel() / rows) ** 0.5)
    return jacobian.reshape(rows, size, size)


def tolerance(flow):
    loosest = max([1e-8, *(10 * part.tolerance for part in parts(flow) if part.iterative)])
    return {"atol": loosest, "rtol": loosest}


@every
def test_gradients_sample_by_sample(name):
    """vmap of grad of log_prob, with functional weights, is what a loop of backward passes gives."""
    flow, x, y = prepared(name)
    y = next(iter(y.values()))
    weights = {n: p.detach() for n, p in flow.named_parameters()}

    def log_prob(weights, x, y):
        return functional_call(LogProb(flow), {f"flow.{n}": w for n, w in weights.items()}, (x, y))

    got = vmap(grad(log_prob, argnums=(0, 1, 2)), in_dims=(None, 0, 0), randomness="same")(weights, x, y)
    if stochastic(flow):
        return
    for row in range(len(x)):
        point, condition = x[row].clone().requires_grad_(), y[row].clone().requires_grad_()
        value = flow.log_prob(point, given=condition)
        variables = [point, condition, *flow.parameters()]
        want = torch.autograd.grad(value, variables, allow_unused=True, materialize_grads=True)
        ours = [got[1][row], got[2][row], *(got[0][n][row] for n, _ in flow.named_parameters())]
        for a, b in zip(ours, want, strict=True):
            torch.testing.assert_close(a, b, **TIGHT)


class LogProb(torch.nn.Module):
    """`functional_call` calls a module's forward."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, y):
        return self.flow.log_prob(x, given=y)


@every
def test_vmap_over_conditions(name):
    """One datum, many conditions; many data for each of many conditions; samples by the bound distribution."""
    flow, x, y = prepared(name)
    y = next(iter(y.values()))
    each = vmap(lambda y: flow.log_prob(x[0], given=y), randomness="same")(y)
    assert each.shape == (3,)
    many = vmap(lambda y: flow.given(y).log_prob(x), randomness="same")(y)
    assert many.shape == (3, 3)
    if not stochastic(flow):
        torch.testing.assert_close(each, flow.log_prob(x[:1], given=y), **TIGHT)
        torch.testing.assert_close(many, flow.log_prob(x[None], given=y[:, None]), **TIGHT)
    z = torch.randn(3, 4, flow.dim)
    got = vmap(lambda z, y: flow.inverse(z, given=y)[0])(z, y)
    torch.testing.assert_close(got, flow.inverse(z, given=y[:, None])[0], **tolerance(flow))
    samples = vmap(lambda y: flow.given(y).sample((4,)), randomness="different")(y)
    assert samples.shape == (3, 4, *x.shape[1:])
    assert (samples[:, 0] != samples[:, 1]).any()


def test_an_ensemble_of_flows():
    """vmap over stacked weights: three flows in one call."""
    flows = [fk.flows.realnvp(2, layers=2, hidden=(8,)) for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(flows)
    x = torch.randn(5, 2)
    flow = flows[0]

    def log_prob(weights, buffers):
        return functional_call(Density(flow), {f"flow.{n}": v for n, v in (weights | buffers).items()}, (x,))

    torch.testing.assert_close(vmap(log_prob)(weights, buffers), torch.stack([f.log_prob(x) for f in flows]))


class Density(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, at the first jvp
@pytest.mark.parametrize("name", ["realnvp", "nsf", "maf"])
def test_second_derivatives(name):
    """Forward over reverse, and jacfwd beside jacrev: what a score or a Fisher matrix needs."""
    flow, x, y = prepared(name)
    y = next(iter(y.values()))
    score = grad(lambda x: flow.log_prob(x, given=y[0]))
    torch.testing.assert_close(hessian(lambda x: flow.log_prob(x, given=y[0]))(x[0]), jacrev(score)(x[0]), **TIGHT)
    z, row = (lambda x: flow(x, given=y[0])[0]), x[0]
    torch.testing.assert_close(jacfwd(z)(row), jacrev(z)(row), **TIGHT)


@pytest.mark.parametrize("mode", ["reverse", "checkpoint"])
def test_functional_weights_have_their_own_gradients_in_frugal_modes(mode):
    """When backward runs, the module has its own weights back: those gradients were silently taken there."""
    flow = fk.flows.realnvp(3, layers=2, hidden=(8,))
    flow.backprop = mode
    x = torch.randn(4, 3)
    weights = {f"flow.{n}": (0.3 * torch.randn_like(p)).requires_grad_() for n, p in flow.named_parameters()}
    found = []
    for each in (mode, "plain"):
        flow.backprop = each
        value = functional_call(LogProb(flow), weights, (x, None)).sum()
        found.append(torch.autograd.grad(value, list(weights.values())))
    torch.testing.assert_close(*found)
    flow.backprop = mode
    exchanged = {name: torch.nn.Parameter(value.detach()) for name, value in weights.items()}
    value = functional_call(LogProb(flow), exchanged, (x, None)).sum()
    with pytest.raises(fk.BackpropError, match="has other parameters than in forward, as after"):
        value.backward()
