"""Dequantisation: the bound is a bound, its importance-weighted form tends to the truth, samples are integers."""

import math

import pytest
import torch

import flowkit as fk

PROBABILITIES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


class Steps(fk.Base):
    """A base on (0, 1) whose density in the cell of an integer is known: a tilt about a probability for each."""

    def __init__(self, probabilities, tilt):
        super().__init__(1)
        self.register_buffer("probabilities", probabilities)
        self.tilt = tilt

    def log_prob(self, z, *conditions):
        n = len(self.probabilities)
        cell = (z[..., 0] * n).floor().long().clamp(0, n - 1)
        u = z[..., 0] * n - cell
        return (n * self.probabilities[cell] * (1 + self.tilt * (2 * u - 1))).log()


def flow_of(dequantization, tilt):
    graph = fk.Graph()
    graph.output("z", graph.add(dequantization, graph.input("x", (1,))))
    return fk.Flow(graph, base=Steps(PROBABILITIES, tilt))


@pytest.mark.parametrize("cls", [fk.UniformDequantization, fk.VariationalDequantization])
def test_the_bound_is_a_bound_and_many_draws_tend_to_the_truth(cls):
    torch.manual_seed(0)
    flow = flow_of(cls((1,), levels=4), tilt=0.9)
    integers = torch.arange(4.0)[:, None]
    with torch.no_grad():
        drawn = flow.log_prob(integers.expand(20_000, 4, 1))
    truth = PROBABILITIES.log()
    # The mean of log(1 + 0.9 (2 u - 1)), by integration: the gap of uniform noise is known.
    gap = (1.9 * math.log(1.9) - 0.1 * math.log(0.1)) / 1.8 - 1
    assert gap == pytest.approx(-0.194566, abs=1e-6)
    torch.testing.assert_close(drawn.mean(0), truth + gap, atol=0.02, rtol=0)
    assert (drawn.mean(0) < truth - 0.1).all()
    torch.testing.assert_close(drawn.logsumexp(0) - math.log(20_000), truth, atol=0.02, rtol=0)


def test_a_density_that_is_constant_in_its_cells_makes_the_bound_exact():
    flow = flow_of(fk.UniformDequantization((1,), levels=4), tilt=0.0)
    torch.testing.assert_close(flow.log_prob(torch.arange(4.0)[:, None]), PROBABILITIES.log())


def test_variational_noise_learns_to_close_the_gap():
    torch.manual_seed(0)
    dequantization = fk.VariationalDequantization((1,), levels=4, subnet=fk.MLP(hidden=8))
    flow = flow_of(dequantization, tilt=0.9)
    x = torch.arange(4.0)[:, None].repeat(64, 1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        reached = flow.log_prob(x.repeat(40, 1)).mean() - PROBABILITIES.log().mean()
    assert -0.1946 / 2 < reached.item() < 0.003  # above half the gap of uniform noise; never above the truth


@pytest.mark.parametrize("shape", [(), (2,), (1, 3, 3)])
def test_samples_are_integers_and_log_prob_is_of_them(shape):
    torch.manual_seed(0)
    graph = fk.Graph()
    x = graph.add(fk.UniformDequantization, graph.input("x", shape), levels=8)
    x = graph.add(fk.Logit, x)
    graph.output("z", graph.add(fk.ElementwiseAffine, x))
    flow = fk.Flow(graph)
    samples, log_prob = flow.given().sample_and_log_prob((200,))
    assert torch.equal(samples, samples.round())
    assert samples.min() >= 0
    assert samples.max() <= 7
    assert samples.unique().numel() > 5
    assert log_prob.shape == (200,)
    assert flow.log_prob(samples).isfinite().all()


@pytest.mark.parametrize("levels", [2, 7, 49, 256, 1000, 65536])
@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2.0**-24])
def test_float32_never_rounds_into_the_next_integer(levels, noise, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, noise))
    x = torch.arange(levels, dtype=torch.float32)[:, None]
    dequantize = fk.UniformDequantization((1,), levels=levels)
    y, log_det = dequantize(x)
    assert ((y > 0) & (y < 1)).all()
    assert torch.equal(dequantize.inverse(y)[0], x)
    assert log_det[0].item() == pytest.approx(-math.log(levels))


def test_what_lies_outside_becomes_the_nearest_integer():
    dequantize = fk.VariationalDequantization((1,), levels=4)
    x, log_det = dequantize.inverse(torch.tensor([[-3.0], [1.0], [7.0]]))
    assert x.flatten().tolist() == [0.0, 3.0, 3.0]
    assert log_det.isfinite().all()


def test_nearly_integers_are_rounded_and_nan_is_passed_on():
    dequantize = fk.UniformDequantization((2,), levels=256)
    y, _ = dequantize(torch.tensor([[254.9996, math.nan]]))
    back = dequantize.inverse(y)[0]
    assert back[0, 0] == 255
    assert back[0, 1].isnan()


def test_a_flow_of_its_own_as_noise_and_the_way_to_a_file(tmp_path):
    inner = fk.Graph()
    seen, e = inner.condition("x", (2,)), inner.input("e", (2,))
    inner.output("z", inner.add(fk.AffineCoupling, e, given=seen, subnet=fk.MLP(hidden=4)))
    noise = fk.InvertibleNetwork(graph=inner)
    graph = fk.Graph()
    x = graph.add(fk.VariationalDequantization, graph.input("x", (2,)), levels=4, noise=noise)
    graph.output("z", graph.add(fk.Logit, x))
    flow = fk.Flow(graph)
    fk.save(flow, tmp_path / "flow.safetensors")
    again = fk.load(tmp_path / "flow.safetensors")
    x = torch.randint(0, 4, (5, 2)).double()
    values = []
    for each in (flow, again):
        torch.manual_seed(1)
        values.append(each.log_prob(x))
    assert torch.equal(*values)
    assert repr(flow.exact).endswith(
        "'variational_dequantization_1' (VariationalDequantization) changes the dimension "
        "(log_prob is one draw of a lower bound)"
    )


def test_reverse_mode_draws_the_same_noise_again():
    graph = fk.Graph()
    x = graph.add(fk.VariationalDequantization, graph.input("x", (2,)), levels=4, subnet=fk.MLP(hidden=4))
    x = graph.add(fk.Logit, x)
    graph.output("z", graph.add(fk.AffineCoupling, x, subnet=fk.MLP(hidden=4, zero_last=False)))
    flow = fk.Flow(graph)
    data = torch.randint(0, 4, (6, 2)).double()
    gradients = []
    for mode in ("plain", "reverse"):
        flow.backprop = mode
        flow.zero_grad()
        torch.manual_seed(1)
        flow.log_prob(data).sum().backward()
        gradients.append([p.grad.clone() for p in flow.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.UniformDequantization((2,), levels=1), "levels must be an int from 2 to 65536, got 1"),
        (lambda: fk.UniformDequantization((2,), levels=2.5), "levels must be an int from 2"),
        (lambda: fk.UniformDequantization((2,), levels=4)(torch.tensor([[0.0, 4.0]])), r"from 0 to 3, got 4 at index"),
        (lambda: fk.UniformDequantization((2,), levels=4)(torch.tensor([[0.5, 1.0]])), r"got 0.5 at index \(0, 0\)"),
        (lambda: fk.VariationalDequantization(()), "at least one dimension"),
        (lambda: fk.VariationalDequantization((2,), given=((1, 2, 2),)), "conditions that are vectors"),
        (lambda: fk.VariationalDequantization((2,), noise=3), "noise must be a fk.Base, a class of them"),
        (lambda: fk.VariationalDequantization((2,), noise=fk.Identity((3,))), r"of input shape \(2,\)"),
        (lambda: fk.VariationalDequantization((2,), noise=fk.StandardNormal(3)), "a base of 2 dimensions"),
        (lambda: fk.VariationalDequantization((2,), noise=torch.nn.Linear(1, 1)), "or a bijection, got Linear"),
        (lambda: fk.VariationalDequantization((2,), noise=fk.StandardNormal, subnet=fk.MLP()), "a subnet predicts"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()
