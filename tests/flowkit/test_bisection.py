import pytest
import torch

import flowkit as fk
from flowkit.bisection import POLISH, solve_monotone

STEPS = 40


class Counted:
    """x + 3 tanh(8 x), which Newton's method alone does not invert; counts how often it is computed."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        t = torch.tanh(8 * x)
        return x + 3 * t, 1 + 24 * (1 - t * t)


def drawn(rows=500):
    torch.manual_seed(0)
    return 4 * torch.randn(rows)


def solve(function, target, steps=STEPS):
    return solve_monotone(function, target, target - 4, target + 4, steps)


def test_eager_mode_stops_when_all_are_found_and_computes_nothing_more_without_gradients():
    function, target = Counted(), drawn()
    with torch.no_grad():
        x = solve(function, target)
    assert function.calls < 20
    torch.testing.assert_close(function(x)[0], target, rtol=1e-13, atol=1e-13)
    recorded = Counted()
    solve(recorded, target.clone().requires_grad_())
    assert recorded.calls == function.calls - 1 + POLISH


def test_a_row_is_the_same_alone_in_a_batch_and_in_a_graph():
    """What has been found is not touched again: neither by the steps for other rows nor by those that a graph takes."""
    target = drawn(50)
    whole = solve(Counted(), target)
    assert whole.equal(torch.cat([solve(Counted(), row) for row in target.split(1)]))
    mapped = torch.vmap(lambda row: solve(Counted(), row))(target)
    torch.testing.assert_close(mapped, whole, rtol=1e-15, atol=1e-15)
    function = Counted()
    torch.vmap(lambda row: solve(function, row))(target)
    assert function.calls == STEPS + POLISH


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_does_not_hold_up_the_rest(bad):
    function, target = Counted(), drawn(20)
    with torch.no_grad():
        x = solve(function, torch.cat((target, torch.tensor([bad]))))
        assert function.calls < 20
        assert x[:20].equal(solve(Counted(), target))
    assert not x[20].isfinite()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own, at its first forward-mode call
def test_forward_mode_needs_no_gradients_enabled():
    target = drawn(20)
    with torch.no_grad():
        x, tangent = torch.func.jvp(lambda y: solve(Counted(), y), (target,), (torch.ones(20),))
    torch.testing.assert_close(tangent, 1 / Counted()(x)[1])


def test_a_start_saves_steps():
    cold, warm, target = Counted(), Counted(), drawn(20)
    with torch.no_grad():
        x = solve(cold, target)
        solve_monotone(warm, target, target - 4, target + 4, STEPS, x + 1e-4)
    assert warm.calls <= 6 < cold.calls


@pytest.mark.parametrize("hidden", [1, 3, 8, 15])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1000.0])
def test_the_table_of_the_monotone_net_leaves_few_steps(hidden, scale, monkeypatch):
    """One of its steps at least is left over, whatever is predicted."""
    torch.manual_seed(hidden)
    umnn = fk.UnconstrainedMonotonic((2,), hidden=hidden)
    parameters = umnn.split(scale * torch.randn(400, 2 * umnn.numbers_per_element))
    calls, inner = [], umnn.inner
    monkeypatch.setattr(umnn, "inner", lambda *arguments: calls.append(1) or inner(*arguments))
    with torch.no_grad():
        y = 8 * torch.randn(400, 2)
        x, log_derivative = umnn.inverse(y, *parameters)
        assert len(calls) < umnn.steps
        again, minus = umnn(x, *parameters)
    torch.testing.assert_close((again, minus), (y, -log_derivative), rtol=1e-11, atol=1e-11)
