"""What flow.given(y) keeps: the work of the condition once, renewed for every cause, never in a gradient's way."""

import pytest
import torch
from torch import nn

import flowkit as fk

MLP = fk.MLP(hidden=8, activation="silu", zero_last=False)


class Counting(nn.Module):
    """A feature net that remembers how many rows it was called with."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 4)
        self.register_buffer("offset", torch.zeros(4))
        self.rows = []

    def forward(self, c):
        self.rows.append(c.shape[0])
        h = torch.tanh(self.net(c)) + self.offset
        return 2 * h if self.training else h


@pytest.fixture
def net():
    return Counting()


@pytest.fixture
def flow(net):
    graph = fk.Graph()
    h = graph.features(net, graph.condition("c", (3,)), name="net")
    x = graph.input("x", (4,))
    x = graph.add(fk.AffineCoupling, x, given=h, subnet=MLP)
    x = graph.add(fk.AffineCoupling, x, given=h, active="first", subnet=lambda i, o: nn.Linear(i, o))  # not prepared
    graph.output("z", graph.add(fk.ElementwiseAffine, x, given=h, subnet=MLP))
    flow = fk.Flow(graph).eval()
    net.rows.clear()
    return flow


@pytest.fixture
def c():
    return torch.randn(5, 3)


def test_feature_nets_run_once_for_each_y_whatever_is_drawn(flow, net, c):
    flow.sample((8,), given=c)
    flow.sample((), given=c)
    flow.log_prob(torch.randn(8, 5, 4), given=c)
    flow.log_prob(torch.randn(5, 8, 4), given=c[:, None])
    flow.inverse(torch.randn(8, 5, 4), given=c)
    flow(torch.randn(8, 5, 4), given=c[0])
    assert net.rows == [5, 5, 5, 5, 5, 1]


def test_a_bound_distribution_runs_them_once_in_all(flow, net, c):
    posterior = flow.given(c)
    assert net.rows == []
    with torch.no_grad():
        posterior.sample((8,))
        posterior.log_prob(torch.randn(5, 4))
        posterior.log_prob(torch.randn(8, 5, 4))
        posterior.log_prob(torch.randn(4))
        posterior.rsample((3,))
    posterior.sample_and_log_prob((2, 3))
    posterior.expand((6, 5)).sample((2,))
    flow.requires_grad_(False)
    posterior.log_prob(torch.randn(5, 4, requires_grad=True)).sum().backward()
    assert net.rows == [5]


def test_expanding_sizes_of_one_repeats_no_work_either(flow, net, c):
    posterior = flow.given(c[:1]).expand((1000,))
    samples, log_prob = posterior.sample_and_log_prob((2,))
    assert (samples.shape, log_prob.shape) == ((2, 1000, 4), (2, 1000))
    torch.testing.assert_close(flow.log_prob(samples, given=c[:1]), log_prob)
    crossed = flow.given(c[:, None]).expand((5, 7))
    samples, log_prob = crossed.sample_and_log_prob((2,))
    assert samples.shape == (2, 5, 7, 4)
    torch.testing.assert_close(flow.log_prob(samples, given=c[:, None]), log_prob)
    assert net.rows == [1, 1, 5, 5]


@pytest.mark.parametrize("sample_shape", [(), (1,), (3,), (2, 3), (0,)])
def test_samples_by_way_of_prepared_parts_equal_the_plain_path(flow, c, sample_shape):
    torch.manual_seed(5)
    samples, log_prob = flow.given(c).sample_and_log_prob(sample_shape)
    torch.manual_seed(5)
    z = flow.base.sample((*sample_shape, 5))
    count = z.shape[:-1].numel() // 5
    plain, log_det = flow.inverse(z.reshape(-1, 4), given=c.repeat(count, 1))
    torch.testing.assert_close(samples, plain.reshape(samples.shape))
    torch.testing.assert_close(log_prob, flow.base.log_prob(z) - log_det.reshape(log_prob.shape))
    torch.manual_seed(5)
    torch.testing.assert_close(flow.sample(sample_shape, given=c), samples)


def change_parameter(flow, net, c):
    net.net.weight = nn.Parameter(net.net.weight.detach() + 1)


def step(optimizer):
    def change(flow, net, c):
        for p in flow.parameters():
            p.grad = torch.ones_like(p)
        optimizer(flow.parameters()).step()
        flow.zero_grad()

    return change


def change_buffer(flow, net, c):
    net.offset = net.offset + 1


def fill_buffer(flow, net, c):
    net.offset.fill_(2)


def change_y(flow, net, c):
    c.mul_(2)


def change_mode(flow, net, c):
    net.train()


def load(flow, net, c):
    flow.load_state_dict({n: t + 0.5 if t.is_floating_point() else t for n, t in flow.state_dict().items()})


def assign(flow, net, c):
    state = {n: t + 0.5 if t.is_floating_point() else t for n, t in flow.state_dict().items()}
    flow.load_state_dict(state, assign=True)


@pytest.mark.parametrize(
    "cause",
    [
        change_parameter,
        step(lambda p: torch.optim.SGD(p, 0.1, foreach=False)),
        step(lambda p: torch.optim.Adam(p, 0.1, foreach=True)),
        step(lambda p: torch.optim.Adam(p, 0.1, fused=True)),
        change_buffer,
        fill_buffer,
        change_y,
        change_mode,
        load,
        assign,
    ],
    ids=[
        "parameter replaced",
        "sgd",
        "foreach",
        "fused",
        "buffer replaced",
        "buffer in place",
        "y",
        "mode",
        "load",
        "assign",
    ],
)
def test_what_is_kept_is_renewed(flow, net, c, cause):
    posterior, x = flow.given(c), torch.randn(5, 4)
    with torch.no_grad():
        before = posterior.log_prob(x)
        cause(flow, net, c)
        after = posterior.log_prob(x)
        assert torch.equal(after, flow.given(c).log_prob(x))
        assert not torch.allclose(after, before)
        calls = len(net.rows)
        posterior.log_prob(x)
        assert len(net.rows) == calls  # and kept again


def test_autocast_renews(flow, net):
    flow.float()
    c, x = torch.randn(5, 3, dtype=torch.float32), torch.randn(5, 4, dtype=torch.float32)
    posterior = flow.given(c)
    with torch.no_grad():
        before = posterior.log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = posterior.log_prob(x)
            assert torch.equal(half, flow.given(c).log_prob(x))
        assert not torch.equal(half, before)
        assert torch.equal(posterior.log_prob(x), before)
    assert len(net.rows) == 4


def test_writes_through_data_need_refresh(flow, net, c):
    posterior, x = flow.given(c), torch.randn(5, 4)
    with torch.no_grad():
        before = posterior.log_prob(x)
        net.net.weight.data.add_(1)
        assert torch.equal(posterior.log_prob(x), before)  # documented: this one is not seen
        posterior.refresh()
        torch.testing.assert_close(posterior.log_prob(x), flow.log_prob(x, given=c))


def test_batch_normalisation_in_train_mode_is_renewed_only_when_it_must(c):
    graph = fk.Graph()
    h = graph.features(nn.BatchNorm1d(3), graph.condition("c", (3,)), name="norm")
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=h, subnet=MLP))
    flow = fk.Flow(graph)
    posterior = flow.given(c)
    posterior.sample((2,))
    posterior.sample((2,))
    assert int(flow.network.nodes["norm"].num_batches_tracked) == 1


# ---------------------------------------------------------------------- gradients


def gradients(flow, loss, *more):
    flow.zero_grad()
    for tensor in more:
        tensor.grad = None
    loss.backward()
    return [p.grad.clone() if p.grad is not None else None for p in (*flow.parameters(), *more)]


@pytest.mark.parametrize("after_sampling", [False, True])
def test_training_through_given_has_the_gradients_of_the_plain_path(flow, c, after_sampling):
    c.requires_grad_()
    x = torch.randn(6, 5, 4)
    posterior = flow.given(c)
    if after_sampling:
        posterior.sample((2,))
    bound = gradients(flow, posterior.log_prob(x).sum(), c)
    rows = x.reshape(-1, 4), c.repeat(6, 1)
    plain = gradients(flow, flow.log_prob(rows[0], given=rows[1]).sum(), c)
    torch.testing.assert_close(bound, plain)
    assert all(g is not None and bool(g.abs().sum() > 0) for g in bound)


def test_an_optimiser_trains_through_one_bound_distribution(flow, c):
    posterior, x = flow.given(c), torch.randn(5, 4) + 3
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -posterior.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        posterior.sample((2,))
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    with torch.no_grad():
        assert torch.equal(posterior.log_prob(x), flow.given(c).log_prob(x))


def test_samples_have_no_gradients_and_rsamples_have(flow, c):
    c.requires_grad_()
    posterior = flow.given(c)
    assert not posterior.sample((2,)).requires_grad
    samples, log_prob = posterior.sample_and_log_prob((2,))
    assert not samples.requires_grad
    assert not log_prob.requires_grad
    assert not flow.sample((2,), given=c).requires_grad
    torch.manual_seed(2)
    bound = gradients(flow, posterior.rsample((3,)).square().sum(), c)
    torch.manual_seed(2)
    z = flow.base.sample((3, 5))
    plain = gradients(flow, flow.inverse(z, given=c)[0].square().sum(), c)
    torch.testing.assert_close(bound, plain)
    assert all(g is not None for g in bound)


def test_what_was_kept_in_inference_mode_serves_outside(flow, c):
    flow.requires_grad_(False)
    posterior = flow.given(c)
    with torch.inference_mode():
        posterior.sample((2,))
    x = torch.randn(5, 4, requires_grad=True)
    posterior.log_prob(x).sum().backward()
    kept = x.grad.clone()
    x.grad = None
    flow.log_prob(x, given=c).sum().backward()
    torch.testing.assert_close(kept, x.grad)


# ---------------------------------------------------------------------- the interface of torch.distributions


def test_shapes_and_support(flow, c):
    posterior = flow.given(c)
    assert isinstance(posterior, torch.distributions.Distribution)
    assert (posterior.batch_shape, posterior.event_shape) == ((5,), (4,))
    assert posterior.support.check(torch.zeros(5, 4)).all()
    assert posterior.has_rsample
    assert repr(posterior) == "FlowDistribution(given c, batch_shape=(5,), event_shape=(4,))"
    assert posterior.sample().shape == (5, 4)
    assert posterior.sample(torch.Size([2])).shape == (2, 5, 4)
    assert posterior.log_prob(torch.zeros(4)).shape == (5,)
    assert flow.given(c[0]).sample().shape == (4,)
    independent = torch.distributions.Independent(posterior, 1)
    assert independent.log_prob(torch.zeros(2, 5, 4)).shape == (2,)


@pytest.mark.parametrize(
    ("lead", "to"), [((5,), (5,)), ((5,), (6, 5)), ((), (6,)), ((1,), (6,)), ((5, 1), (2, 5, 7)), ((1,), (0,))]
)
def test_expand(flow, lead, to):
    c = torch.randn(*lead, 3)
    expanded = flow.given(c).expand(to)
    assert expanded.batch_shape == to
    samples, log_prob = expanded.sample_and_log_prob((2,))
    assert (samples.shape, log_prob.shape) == ((2, *to, 4), (2, *to))
    torch.testing.assert_close(flow.log_prob(samples, given=c), log_prob)
    assert expanded.log_prob(torch.zeros(4)).shape == to


@pytest.mark.parametrize("to", [(1,), (), (4,), (5, 1)])
def test_expand_to_what_it_cannot_be(flow, c, to):
    with pytest.raises(fk.InputError, match=r"batch shape \(5,\) cannot be expanded to"):
        flow.given(c).expand(to)


def test_given_nothing():
    flow = fk.Flow(fk.AffineCoupling((2,), subnet=MLP))
    samples, log_prob = flow.given().sample_and_log_prob((3,))
    torch.testing.assert_close(flow.log_prob(samples), log_prob)
    assert repr(flow.given()) == "FlowDistribution(given nothing, batch_shape=(), event_shape=(2,))"
    assert flow.given().expand((4,)).sample((3,)).shape == (3, 4, 2)


def test_log_probs_are_those_of_the_untempered_flow(flow, c):
    samples, log_prob = flow.given(c).sample_and_log_prob((4,), temperature=0.5)
    torch.testing.assert_close(flow.log_prob(samples, given=c), log_prob)
    torch.manual_seed(1)
    cold = flow(flow.given(c).sample((4,), temperature=0.5), given=c)[0]
    torch.manual_seed(1)
    warm = flow(flow.sample((4,), given=c), given=c)[0]
    torch.testing.assert_close(cold, 0.5 * warm)
