"""Continuous flows: fields whose flow is known, solvers beside torchdiffeq's, adjoints, estimates, refusals."""

import math
import sys

import pytest
import torch

import flowkit as fk
from flowkit import ode

SIGMAS = 4.5  # a false alarm 7e-6 times a comparison


def made(*shape, std=0.4, **config):
    flow = fk.ContinuousFlow(*shape, **config)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, std)
    return flow


def linear(**config):
    """A field f = A x + b, as the hidden units are all in the linear part of an ELU."""
    flow = made((3,), hidden=(5,), activation="elu", time=0.7, **config)
    first, last = flow.net.layers
    with torch.no_grad():
        first.time.zero_()
        last.time.zero_()
        first.bias.fill_(30.0)
        last.bias.copy_(-last.weight @ first.bias)
    return flow, last.weight.detach() @ first.weight.detach()


@pytest.mark.parametrize(
    ("config", "within"),
    [
        ({"tolerance": 1e-8}, 1e-8),
        ({"tolerance": 1e-6, "solver": "dopri8"}, 1e-6),
        ({"tolerance": 1e-5, "solver": "bosh3"}, 1e-5),
        ({"tolerance": 1e-4, "solver": "adaptive_heun"}, 1e-4),
        ({"steps": 40, "solver": "rk4"}, 1e-7),
        ({"steps": 200, "solver": "midpoint"}, 1e-5),
    ],
)
def test_a_linear_field_gives_the_matrix_exponential(config, within):
    flow, matrix = linear(**config)
    x = torch.randn(6, 3)
    with torch.no_grad():
        y, log_det = flow(x)
        back, inverse_log_det = flow.inverse(y)
    torch.testing.assert_close(y, x @ torch.linalg.matrix_exp(0.7 * matrix).T, atol=within, rtol=within)
    torch.testing.assert_close(log_det, (0.7 * matrix.trace()).expand(6), atol=within, rtol=within)
    torch.testing.assert_close((back, inverse_log_det), (x, -log_det), atol=within, rtol=within)


@pytest.mark.parametrize("solver", list(ode.FIXED))
def test_fixed_steps_are_torchdiffeq_s(solver):
    import torchdiffeq

    flow = made((2, 3), given=(1, 3), hidden=(4,), solver=solver, steps=5)
    x, c = torch.randn(4, 2, 3), torch.randn(4, 1, 3)

    def field(t, x):
        return flow.net.at(x, flow.net.weights(), flow.net.prepare(c), t).value

    want = torchdiffeq.odeint(field, x, torch.tensor([0.0, 1.0]), method=solver, options={"step_size": 0.2})[-1]
    torch.testing.assert_close(flow(x, c)[0], want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("midpoint", 2)])
def test_the_order_of_fixed_steps(solver, order):
    """Twice the steps make the error of the log-det, that of the map just applied, 2**order times smaller."""
    flow = made((3,), hidden=(8,), solver=solver, steps=16)
    x = torch.randn(5, 3)
    errors = []
    for steps in (16, 32):
        flow.steps = steps
        jacobian = torch.autograd.functional.jacobian(lambda rows: flow(rows)[0].sum(0), x).movedim(1, 0)
        errors.append((torch.linalg.slogdet(jacobian).logabsdet - flow(x)[1]).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.7)


def test_the_adjoint_gives_every_gradient():
    """Of the data, of conditions that are no leaves, of every parameter, each counted once."""
    plain = made((3,), given=(2,), hidden=(6, 5), activation="lipswish", tolerance=1e-7)
    other = fk.ContinuousFlow((3,), given=(2,), hidden=(6, 5), activation="lipswish", tolerance=1e-7, adjoint=True)
    other.load_state_dict(plain.state_dict())
    x, c, weight = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 3)
    for method in ("forward", "inverse"):
        results = []
        for flow in (plain, other):
            leaves = [x.clone().requires_grad_(), c.clone().requires_grad_()]
            y, log_det = getattr(flow, method)(leaves[0], leaves[1].sin())
            loss = (weight * y).sum() + (weight[:, 0] * log_det).sum()
            results.append([y, log_det, *torch.autograd.grad(loss, [*leaves, *flow.parameters()])])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_the_adjoint_has_no_second_derivative():
    """Torch would take what backward has not recorded for zero."""
    flow = made((3,), hidden=(6,), tolerance=1e-5, adjoint=True)
    x = torch.randn(2, 3, requires_grad=True)
    torch.autograd.grad(flow(x)[1].sum(), x)
    with pytest.raises(fk.BackpropError, match="cannot be taken through the adjoint equation: use adjoint=False"):
        torch.autograd.grad(flow(x)[1].sum() + x.square().sum(), x, create_graph=True)


def test_the_adjoint_keeps_no_steps():
    def kept(adjoint, tolerance):
        flow = made((3,), hidden=(6,), tolerance=tolerance, adjoint=adjoint)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            flow(torch.randn(4, 3))
        return sum(sizes)

    torch.manual_seed(0)
    assert kept(True, 1e-2) == kept(True, 1e-8)
    assert kept(False, 1e-8) > 10 * kept(True, 1e-8)


def test_the_estimate_is_unbiased_and_draws_once_a_call(monkeypatch):
    """Means over 4000 rows of one point, of the log-det and of its slope along one direction."""
    config = {"hidden": (8,), "solver": "rk4", "steps": 6}
    exact = made((5,), std=0.6, **config)
    flow = fk.ContinuousFlow((5,), log_det="estimate", **config)
    flow.load_state_dict(exact.state_dict())
    assert (flow.stochastic, flow.adaptive, exact.stochastic) == (True, False, False)
    x, direction = torch.randn(1, 5), torch.randn(5)
    draws, bernoulli = [], torch.bernoulli
    monkeypatch.setattr(torch, "bernoulli", lambda p: draws.append(p.shape) or bernoulli(p))

    def values(b, rows):
        data = x.repeat(rows, 1).requires_grad_()
        y, log_det = b(data)
        (grad,) = torch.autograd.grad(log_det.sum(), data)
        return y[0].detach(), torch.stack((log_det.detach(), grad @ direction), 1)

    y, want = values(exact, 1)
    torch.manual_seed(3)
    same_y, found = values(flow, 4000)
    assert draws == [(4000, 5)]
    torch.testing.assert_close(same_y, y)
    error = found.std(0) / math.sqrt(len(found))
    assert (error < 0.05).all()
    assert (error > 1e-4).all()  # it is an estimate
    assert ((found.mean(0) - want[0]).abs() < SIGMAS * error).all()
    flow.inverse_only(x)
    assert len(draws) == 1  # sampling needs no trace


def test_a_solver_that_needs_more_steps_is_an_error():
    flow = made((3,), std=3.0, hidden=(16,), tolerance=1e-6, steps=3)
    with pytest.raises(fk.ConvergenceError, match=r"ContinuousFlow: dopri5 did not reach its tolerance of 1e-08 in 3"):
        flow(torch.randn(4, 3))


def test_a_row_that_is_not_a_number_spoils_no_other():
    for config in ({}, {"solver": "rk4", "steps": 4}):
        flow = made((2,), hidden=(4,), **config)
        x = torch.tensor([[math.nan, 1.0], [0.5, 2.0], [math.inf, 0.0]])
        y, log_det = flow(x)
        assert y[0].isnan().all()
        torch.testing.assert_close(y[1:2], flow(x[1:2])[0], atol=1e-3, rtol=1e-3)
        assert log_det[1].isfinite()


def test_float32():
    flow = made((3,), hidden=(16,)).float()
    x = torch.tensor([0.01, 1.0, 30.0])[:, None].float() * torch.randn(3, 3).float()
    with torch.no_grad():
        y, log_det = flow(x)
        back, back_log_det = flow.inverse(y)
    assert y.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close((back, back_log_det), (x, -log_det), atol=1e-3, rtol=1e-3)


def test_it_starts_as_the_identity_and_says_what_it_is():
    x = torch.randn(2, 3)
    flow = fk.ContinuousFlow((3,))
    y, log_det = flow(x)
    assert torch.equal(y, x)
    assert not log_det.any()
    assert (flow.adaptive, flow.iterative, flow.stochastic, flow.tolerance) == (True, True, False, 1e-3)
    assert fk.Flow(flow).exact
    assert not fk.Flow(fk.ContinuousFlow((40,))).exact
    assert "rk4" in repr(fk.ContinuousFlow((3,), solver="rk4", steps=3))


def test_without_torchdiffeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(fk.MissingDependencyError, match=r"solver='dopri5' needs torchdiffeq: .* 'flowkit\[ode\]'"):
        fk.ContinuousFlow((3,))
    fk.ContinuousFlow((3,), solver="rk4", steps=3)(torch.randn(2, 3))


def test_a_graph_that_is_the_first_to_import_torchdiffeq(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchdiffeq"]:
        monkeypatch.delitem(sys.modules, name)
    flow = fk.flows.ffjord(2, hidden=(4,))  # builds on the meta device, to learn the shapes
    assert flow.log_prob(torch.zeros(3, 2)).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (((),), {}, r"ContinuousFlow needs vectors \(D,\) or maps, .* got shape \(\)"),
        (((3,),), {"solver": "euler"}, "solver must be one of dopri5, .* got 'euler'"),
        (((3,),), {"solver": "rk4"}, "solver='rk4' takes fixed steps, and needs their number as steps="),
        (((3,),), {"solver": "rk4", "steps": 0}, "steps must be an int of at least 1, got 0"),
        (((3,),), {"solver": "rk4", "steps": 2, "adjoint": True}, "adjoint=True needs an adaptive solver, got 'rk4'"),
        (((3,),), {"tolerance": 0.0}, "tolerance must be a positive number, got 0.0"),
        (((3,),), {"time": -1.0}, "time must be a positive number, got -1.0"),
        (((3,),), {"log_det": "trace"}, "log_det must be one of auto, exact, estimate, got 'trace'"),
        (((3,),), {"activation": "relu"}, "activation must be one of lipswish, .* got 'relu'"),
        (((3,),), {"exact_up_to": -1}, "exact_up_to must be an int of at least 0, got -1"),
        (((3, 4),), {"given": (2,)}, "needs conditions that are maps"),
    ],
)
def test_refusals(arguments, config, message):
    with pytest.raises(fk.FlowkitError, match=message):
        fk.ContinuousFlow(*arguments, **config)
