"""Diagnostics say what is wrong, and by how much, on maps whose error is known."""

import math

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit import diagnostics


class Leaky(fk.Bijection):
    """y = 2 x, its inverse off by `offset`, its log-dets off by `forward_error` and `inverse_error`."""

    def __init__(self, shape, offset=0.0, forward_error=0.0, inverse_error=0.0):
        super().__init__(shape)
        self.offset, self.errors = offset, (forward_error, inverse_error)

    def _log_det(self, x, sign):
        return x.new_full((len(x),), sign * math.log(2) * self.in_shapes[0][0] + self.errors[0 if sign > 0 else 1])

    def forward(self, x):
        return 2 * x, self._log_det(x, 1)

    def inverse(self, y):
        return y / 2 + self.offset, self._log_det(y, -1)


class Linear(fk.Bijection):
    """y = W x, of a given matrix."""

    def __init__(self, matrix):
        super().__init__(len(matrix))
        self.register_buffer("matrix", torch.tensor(matrix))

    def forward(self, x):
        return x @ self.matrix.T, torch.linalg.slogdet(self.matrix).logabsdet.expand(len(x))

    def inverse(self, y):
        return torch.linalg.solve(self.matrix, y.T).T, -torch.linalg.slogdet(self.matrix).logabsdet.expand(len(y))


def coupling(given=()):
    op = fk.AffineCoupling(
        (4,), given=given, subnet=fk.MLP(hidden=8, activation="tanh", zero_last=False), two_sided=True
    )
    return op.eval()


def test_round_trip_measures_what_is_missing():
    x = torch.tensor([[0.0, 3.0]])
    found = diagnostics.round_trip(Leaky((2,), offset=0.25, inverse_error=0.5), x)
    assert found.error == pytest.approx(0.25)
    assert found.relative == pytest.approx(0.25)  # of the value 0; of the value 3 it is a quarter of that
    assert found.log_det_error == pytest.approx(0.5)
    assert found.largest == pytest.approx(6.0)
    assert found.finite


def test_what_is_not_finite_is_infinite():
    found = diagnostics.round_trip(Leaky((2,), offset=math.nan), torch.ones(3, 2))
    assert found.error == math.inf
    assert not found.finite


def test_dtype_is_the_bijections():
    op, x = coupling(), torch.randn(64, 4)
    wide, single = diagnostics.round_trip(op, x), diagnostics.round_trip(op.float(), x.float())
    assert wide.error < 1e-14
    assert 1e-9 < single.error < 1e-5


def test_autocast_is_used():
    seen = []

    class Net(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    op = fk.AffineCoupling((4,), subnet=Net).float()
    x = torch.randn(8, 4, dtype=torch.float32)
    seen.clear()
    assert diagnostics.round_trip(op, x, autocast=torch.bfloat16).error < 1e-5
    assert seen == [torch.bfloat16] * 2


def test_log_det_error_sees_both_directions():
    x = torch.randn(3, 2)
    good = diagnostics.log_det_error(Leaky((2,)), x)
    assert (good.forward, good.inverse) == (pytest.approx(0, abs=1e-15), pytest.approx(0, abs=1e-15))
    scale = 1 + 2 * math.log(2)
    bad = diagnostics.log_det_error(Leaky((2,), forward_error=0.5), x)
    assert (bad.forward, bad.inverse) == (pytest.approx(0.5 / scale), pytest.approx(0, abs=1e-15))
    bad = diagnostics.log_det_error(Leaky((2,), inverse_error=-0.25), x)
    assert (bad.forward, bad.inverse) == (pytest.approx(0, abs=1e-15), pytest.approx(0.25 / scale))


def test_log_det_error_is_float64_whatever_it_is_given():
    op = coupling((3,)).float()
    x, c = torch.randn(5, 4, dtype=torch.float32), torch.randn(5, 3, dtype=torch.float32)
    found = diagnostics.log_det_error(op, x, c)
    assert max(found.forward, found.inverse) < 1e-12
    assert found.log_abs_det.dtype == torch.float64
    torch.testing.assert_close(found.log_abs_det.float(), op(x, c)[1], atol=1e-4, rtol=1e-4)
    assert next(op.parameters()).dtype == torch.float32  # a copy was measured


def test_jacobian_and_its_singular_values():
    matrix = [[3.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 2.0, 0.0]]
    x = torch.randn(2, 3)
    torch.testing.assert_close(diagnostics.jacobian(Linear(matrix), x), torch.tensor(matrix).expand(2, 3, 3))
    torch.testing.assert_close(
        diagnostics.singular_values(Linear(matrix), x), torch.tensor([3.0, 2.0, 0.5]).expand(2, 3)
    )
    torch.testing.assert_close(diagnostics.condition_number(Linear(matrix), x), torch.tensor([6.0, 6.0]))


def test_jacobian_against_functorch():
    op, x = coupling(), torch.randn(3, 4)
    expected = torch.stack([torch.func.jacrev(lambda row: op(row[None])[0][0])(row) for row in x])
    torch.testing.assert_close(diagnostics.jacobian(op, x), expected)


def test_jacobian_one_row_at_a_time_where_batching_fails(monkeypatch):
    op, x = coupling(), torch.randn(3, 4)
    expected = diagnostics.jacobian(op, x)
    usual = torch.autograd.grad

    def grad(*args, is_grads_batched=False, **options):
        if is_grads_batched:
            raise RuntimeError("no batching rule")
        return usual(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    torch.testing.assert_close(diagnostics.jacobian(op, x), expected)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_any_rank(shape):
    op = fk.ElementwiseAffine(shape)
    found = diagnostics.log_det_error(op, torch.randn(3, *shape))
    assert max(found.forward, found.inverse) < 1e-12
    assert found.singular_values.shape == (3, math.prod(shape))


def test_a_flow_by_name_and_with_a_shared_condition():
    graph = fk.Graph()
    label, a, b = graph.condition("label", (3,)), graph.input("a", (2,)), graph.input("b", (2,))
    x = graph.add(fk.Concat, a, b)
    graph.output("z", graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=8, zero_last=False)))
    flow = fk.Flow(graph)
    x, y = {"b": torch.randn(5, 2), "a": torch.randn(5, 2)}, torch.randn(3)
    assert diagnostics.round_trip(flow, x, y).error < 1e-12
    assert diagnostics.log_det_error(flow, x, {"label": y}).forward < 1e-12
    torch.testing.assert_close(diagnostics.log_det_error(flow, x, y).log_abs_det, flow(x, given=y)[1])


def test_refusals():
    op = coupling((3,))
    with pytest.raises(fk.InputError, match="1 conditions are needed, got 0"):
        diagnostics.round_trip(op, torch.randn(2, 4))
    with pytest.raises(fk.InputError, match=r"inputs \['x'\] are needed, got \['y'\]"):
        diagnostics.round_trip(fk.Flow(op), {"y": torch.randn(2, 4)}, torch.randn(2, 3))
    with pytest.raises(fk.ConfigError, match="rounds must be at least 1, got 0"):
        diagnostics.timings({}, rounds=0)

    class Adaptive(fk.Identity):
        adaptive = True

    with pytest.raises(fk.InputError, match="Adaptive is adaptive"):
        diagnostics.log_det_cost(Adaptive((2,)), torch.randn(2, 2))

    class Growing(fk.Bijection):
        def forward(self, x):
            return torch.cat([x, x], 1), x.sum(1)

    with pytest.raises(fk.InputError, match="2 dimensions in and 4 out"):
        diagnostics.jacobian(Growing((2,)), torch.randn(2, 2))


def test_log_det_cost_leaves_the_log_det_out(monkeypatch):
    """What is timed is not the clock's business here, but the two lists of operations are."""
    timed = {}

    def timings(functions, *, rounds):
        timed.update({name: function() for name, function in functions.items()})
        return {"full": [3.0, 2.0], "values": [1.0, 4.0]}

    monkeypatch.setattr(diagnostics, "timings", timings)
    op, x = coupling(), torch.randn(3, 4)
    cost = diagnostics.log_det_cost(op, x)
    assert (cost.seconds, cost.seconds_without, cost.ratio) == (2.0, 1.0, 2.0)
    y, log_det = op(x)
    torch.testing.assert_close(timed["full"], (y, log_det))
    torch.testing.assert_close(timed["values"], (y,))


@pytest.mark.parametrize("cls", [fk.Log, fk.Logit, fk.StickBreaking, fk.SphereMoebius, fk.SphereToCylinder])
def test_the_cost_of_a_map_that_checks_its_domain_can_be_measured(cls):
    op = cls((3,))
    assert diagnostics.log_det_cost(op, op.example_inputs(4), rounds=1).seconds > 0


def test_timings_take_turns():
    calls = []
    found = diagnostics.timings(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, warm_up=1, at_least=0
    )
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 4, "b": 4}
    # warm-up and one estimate each, then every second turn the other way round
    assert "".join(calls) == "aabb" + "abba" * 2


def test_singular_values_of_what_is_not_finite():
    """One bad row does not take the others with it."""
    x = torch.tensor([[1.0, 2.0], [800.0, 0.0]])

    class Exp(fk.Bijection):
        def forward(self, x):
            return x.exp(), x.sum(1)

    values = diagnostics.singular_values(Exp((2,)), x)
    torch.testing.assert_close(values, torch.stack([x[0].exp().flip(0), torch.full((2,), math.nan)]), equal_nan=True)
