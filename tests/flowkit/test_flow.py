"""Flow: densities, samples, the latent, batches of every kind, copies, dtypes, transforms, compile and export."""

import copy
import math
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

import flowkit as fk

MLP = fk.MLP(hidden=8, activation="silu", zero_last=False)
# torch's own, when it is first asked for forward-mode derivatives.
IMPORTS = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


def conditional(features=True):
    torch.manual_seed(1)
    graph = fk.Graph()
    c = graph.condition("c", (3,))
    h = graph.features(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), c, name="net") if features else c
    x = graph.input("x", (4,))
    for _ in range(2):
        x = graph.add(fk.Permute, graph.add(fk.AffineCoupling, x, given=h, subnet=MLP))
    a, b = graph.add(fk.Split, graph.add(fk.ActNorm, x))
    graph.output("fine", a)
    graph.output("coarse", b)
    return fk.Flow(graph)


@pytest.fixture
def flow():
    return conditional()


def test_log_prob_is_the_change_of_variables(flow):
    x, c = torch.randn(6, 4), torch.randn(6, 3)
    z, log_det = flow(x, given=c)
    assert (z.shape, log_det.shape) == ((6, 4), (6,))
    base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(flow.log_prob(x, given=c), base + log_det)
    for row in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda v, row=row: flow(v, given=c[row])[0], x[row])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[row])
    back, inverse_log_det = flow.inverse(z, given=c)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)


def test_the_density_integrates_to_one():
    flow = fk.Flow(fk.AffineCoupling((2,), given=(1,), subnet=MLP))
    axis = torch.linspace(-9, 9, 301)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    mass = flow.log_prob(grid, given=torch.ones(1)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass.detach()) == pytest.approx(1, abs=1e-3)


def test_split_and_join(flow):
    z = torch.randn(2, 5, 4)
    parts = flow.split(z)
    assert {n: tuple(p.shape) for n, p in parts.items()} == {"fine": (2, 5, 2), "coarse": (2, 5, 2)}
    assert torch.equal(flow.join(parts), z)
    assert torch.equal(flow.join(dict(reversed(parts.items()))), z)
    assert flow.join({"fine": torch.zeros(2), "coarse": torch.zeros(3, 2)}).shape == (3, 4)
    assert parts["fine"].untyped_storage().data_ptr() == z.untyped_storage().data_ptr()
    z, _ = flow(torch.ones(5, 4), given=torch.zeros(3))
    out = flow.network(torch.ones(5, 4), torch.zeros(5, 3))[0]
    torch.testing.assert_close(flow.split(z), {"fine": out[0], "coarse": out[1]})


@pytest.mark.parametrize(
    ("x_lead", "c_lead", "lead"),
    [
        ((), (), ()),
        ((5,), (), (5,)),
        ((), (5,), (5,)),
        ((5,), (5,), (5,)),
        ((7, 5), (5,), (7, 5)),
        ((5,), (7, 5), (7, 5)),
        ((7, 5), (7, 5), (7, 5)),
        ((5, 7), (5, 1), (5, 7)),
        ((5, 1), (5, 7), (5, 7)),
        ((5, 1), (7,), (5, 7)),
        ((5, 1), (1, 7), (5, 7)),
        ((2, 1, 3), (4, 1), (2, 4, 3)),
        ((1, 5), (5,), (1, 5)),
        ((5,), (1, 5), (1, 5)),
        ((2, 5), (1,), (2, 5)),
        ((0,), (), (0,)),
        ((0,), (0,), (0,)),
        ((0,), (1,), (0,)),
        ((1,), (0,), (0,)),
        ((7, 0), (0,), (7, 0)),
        ((0, 5), (5,), (0, 5)),
        ((0, 5), (0, 1), (0, 5)),
        ((5, 0), (5, 1), (5, 0)),
    ],
)
@pytest.mark.parametrize("features", [True, False])
def test_batches_broadcast_in_every_direction(x_lead, c_lead, lead, features):
    flow = conditional(features)
    x, c = torch.randn(*x_lead, 4), torch.randn(*c_lead, 3)
    rows = x.expand(*lead, 4).reshape(-1, 4), c.expand(*lead, 3).reshape(-1, 3)
    z, log_det = flow(x, given=c)
    log_prob = flow.log_prob(x, given=c)
    assert (z.shape, log_det.shape, log_prob.shape) == ((*lead, 4), lead, lead)
    if math.prod(lead):
        plain_z, plain_log_det = flow(rows[0], given=rows[1])
        torch.testing.assert_close(z.reshape(-1, 4), plain_z)
        torch.testing.assert_close(log_det.reshape(-1), plain_log_det)
        torch.testing.assert_close(log_prob.reshape(-1), flow.log_prob(*rows))
    back, _ = flow.inverse(torch.randn(*x_lead, 4), given=c)
    assert back.shape == (*lead, 4)
    torch.testing.assert_close(flow.inverse(z, given=c)[0], x.expand(*lead, 4))
    torch.testing.assert_close(flow.given(c).log_prob(x), log_prob)
    samples = flow.sample(x_lead, given=c)
    assert samples.shape == (*x_lead, *c_lead, 4)
    assert flow.trace(x, given=c).records[0].values[0].shape == (math.prod(lead), 4)


def test_samples_of_each_condition_are_its_own():
    graph = fk.Graph()
    c = graph.condition("c", (1,))
    graph.output("z", graph.add(fk.ElementwiseAffine, graph.input("x", (1,)), given=c, subnet=fk.MLP(4), name="part"))
    flow = fk.Flow(graph)
    last = flow.network.nodes["part"].subnet.rest[-1]
    with torch.no_grad():  # x = z - 10 c, whatever z is
        flow.network.nodes["part"].subnet.first.weight.fill_(1)
        flow.network.nodes["part"].subnet.first.bias.fill_(0)
        last.weight[1].fill_(2.5)
    x = flow.sample((1000,), given=torch.tensor([[0.0], [5.0]]), temperature=0.1)
    assert x.shape == (1000, 2, 1)
    torch.testing.assert_close(x.mean(0)[:, 0], torch.tensor([0.0, -50.0]), atol=0.05, rtol=0)
    assert torch.equal(flow.sample((3,), given=torch.zeros(2, 1), temperature=0.0), torch.zeros(3, 2, 1))


def test_several_inputs_are_dictionaries():
    graph = fk.Graph()
    a, b = graph.add(fk.AffineCoupling, graph.input("a", (2,)), subnet=MLP), graph.input("b", ())
    graph.output("z", graph.add(fk.Concat, a, graph.add(fk.Reshape, b, to=(1,))))
    flow = fk.Flow(graph)
    x = {"b": torch.randn(5), "a": torch.randn(3, 1, 2)}
    z, log_det = flow(x)
    assert (z.shape, log_det.shape) == ((3, 5, 3), (3, 5))
    back, _ = flow.inverse(z)
    torch.testing.assert_close(back, {"a": x["a"].expand(3, 5, 2), "b": x["b"].expand(3, 5)})
    sample = flow.sample((7, 2))
    assert {n: tuple(v.shape) for n, v in sample.items()} == {"a": (7, 2, 2), "b": (7, 2)}
    assert flow.given().event_shape == (3,)
    samples, log_prob = flow.given().sample_and_log_prob((4,))
    torch.testing.assert_close(flow.log_prob(samples), log_prob)


def test_flow_of_a_bijection_names_its_wires():
    flow = fk.Flow(fk.Split((4,)))
    assert flow.input_shapes == {"x": (4,)}
    assert flow.latents == {"z1": (slice(0, 2), (2,)), "z2": (slice(2, 4), (2,))}
    flow = fk.Flow(fk.Concat((1,), (2,)))
    assert list(flow.input_shapes) == ["x1", "x2"]
    flow = fk.Flow(fk.AffineCoupling((3,), given=((1,), (2,))))
    assert flow.condition_shapes == {"y1": (1,), "y2": (2,)}
    assert fk.Flow(fk.AffineCoupling((3,), given=4)).condition_shapes == {"y": (4,)}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (fk.Permute, r"a Flow is made from a Graph or a Bijection, got Permute \(build an instance first\)"),
        ([fk.Permute((2,))], r"a Graph or a Bijection, got list: graph\.add takes one bijection after the other"),
        (nn.Linear(2, 2), "got Linear"),
        (None, "got NoneType"),
    ],
)
def test_flow_of_something_else(network, message):
    with pytest.raises(fk.GraphError, match=message):
        fk.Flow(network)


def test_conditions_of_a_base_that_are_no_wires():
    with pytest.raises(fk.GraphError, match="base_given: a condition wire of this graph or its name is needed, got 3"):
        fk.Flow(fk.Identity((2,)), base=fk.DiagonalNormal, base_given=3)


def test_only_flows_and_bijections_are_compiled():
    for other in (3, nn.Linear(2, 2)):
        with pytest.raises(fk.ConfigError, match=r"fk\.compile takes a Flow or a Bijection, got"):
            fk.compile(other)


def test_arguments_are_never_mutated(flow):
    x, c, z = torch.randn(6, 5, 4), torch.randn(5, 3), torch.randn(6, 5, 4)
    before = [t.clone() for t in (x, c, z)]
    given = {"c": c}
    flow.log_prob(x, given=given)
    flow(x, given=given)
    flow.inverse(z, given=given)
    flow.sample((3,), given=given)
    flow.trace(x, given=given)
    flow.split(z)
    posterior = flow.given(given)
    posterior.sample_and_log_prob((3,))
    posterior.log_prob(x)
    flow.initialize(x, given=given)
    assert all(torch.equal(a, b) for a, b in zip((x, c, z), before, strict=True))
    assert list(given) == ["c"]


def test_random_numbers_come_from_torch_alone():
    def everything(seed):
        torch.manual_seed(seed)
        flow = conditional_with_randomness()
        return flow.sample((4,), given=torch.zeros(2, 3))

    def conditional_with_randomness():
        graph = fk.Graph()
        x = graph.input("x", (4,))
        for part in (fk.FixedRotation, fk.LULinear, fk.Permute):
            x = graph.add(part, x)
        graph.output("z", graph.add(fk.AffineCoupling, x, given=graph.condition("c", (3,)), subnet=MLP))
        return fk.Flow(graph)

    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002  # the global state is what is watched
    a, b, c = everything(0), everything(0), everything(1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_copies_after_calls_give_the_same_and_share_nothing(flow, duplicate):
    x, c = torch.randn(3, 5, 4), torch.randn(5, 3)
    flow.given(c).sample((2,))
    flow.log_prob(x, given=c).sum().backward()
    copied = duplicate(flow)
    assert torch.equal(copied.log_prob(x, given=c), flow.log_prob(x, given=c))
    assert repr(copied) == repr(flow)
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert not torch.equal(copied.log_prob(x, given=c), flow.log_prob(x, given=c))


def test_dtypes_follow_the_flow(flow):
    for cast, dtype in ((flow.float, torch.float32), (flow.double, torch.float64)):
        cast()
        x, c = torch.randn(5, 4, dtype=dtype), torch.randn(5, 3, dtype=dtype)
        z, log_det = flow(x, given=c)
        assert {z.dtype, log_det.dtype, flow.log_prob(x, given=c).dtype, flow.sample((2,), given=c).dtype} == {dtype}
        torch.testing.assert_close(
            flow.inverse(z, given=c)[0], x, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12
        )
    assert flow.to(torch.float32).network.reference.dtype == torch.float32


def test_state_dicts_load_and_names_are_those_of_the_design(flow):
    other = conditional()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    other.load_state_dict(flow.state_dict())
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    assert torch.equal(other.log_prob(x, given=c), flow.log_prob(x, given=c))
    names = list(flow.state_dict())
    assert all(name.startswith("network.nodes.") for name in names)
    assert "network.nodes.affine_coupling_1.subnets.0.first.weight" in names
    assert "network.nodes.net.0.weight" in names


def test_autocast_keeps_values_and_log_dets_wide():
    flow = conditional().float()
    x, c = torch.randn(5, 4, dtype=torch.float32), torch.randn(5, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x, given=c)
        back, _ = flow.inverse(z, given=c)
        samples = flow.given(c).sample((3,))
    assert {t.dtype for t in (z, log_det, back, samples)} == {torch.float32}
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- transforms, compile, export


@IMPORTS
def test_torch_func_goes_through(flow):
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    plain = flow.log_prob(x, given=c)
    torch.testing.assert_close(torch.func.vmap(lambda v, g: flow.log_prob(v, given=g))(x, c), plain)
    torch.testing.assert_close(torch.func.vmap(lambda v: flow.log_prob(v, given=c[0]))(x), flow.log_prob(x, given=c[0]))
    jacobians = torch.func.vmap(torch.func.jacrev(lambda v, g: flow(v, given=g)[0]))(x, c)
    torch.testing.assert_close(torch.linalg.slogdet(jacobians)[1], flow(x, given=c)[1])
    forward = torch.func.vmap(torch.func.jacfwd(lambda v, g: flow(v, given=g)[0]))(x, c)
    torch.testing.assert_close(forward, jacobians)

    def loss(parameters):
        return -torch.func.functional_call(flow, parameters, (x,), {"given": c})[1].mean()

    parameters = dict(flow.named_parameters())
    gradients = torch.func.grad(loss)(parameters)
    (-flow(x, given=c)[1].mean()).backward()
    torch.testing.assert_close(
        gradients, {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()}
    )


@IMPORTS
def test_transforms_of_a_bound_distribution_keep_nothing(flow):
    flow.requires_grad_(False)
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    plain = flow.log_prob(x, given=c)
    torch.testing.assert_close(torch.func.vmap(lambda g, v: flow.given(g).log_prob(v))(c, x), plain)
    value, _ = torch.func.jvp(lambda g: flow.given(g).log_prob(x), (c,), (torch.ones_like(c),))
    torch.testing.assert_close(value, plain)
    posterior = flow.given(c)
    torch.func.vmap(lambda v: posterior.log_prob(v))(x[None])
    torch.testing.assert_close(posterior.log_prob(x), plain)


def test_full_graph_compile_of_both_directions():
    graph = fk.Graph()
    h = graph.features(nn.Linear(3, 4), graph.condition("c", (3,)))
    a, b = graph.add(fk.Split, graph.add(fk.AffineCoupling, graph.input("x", (4,)), given=h, subnet=MLP))
    graph.output("fine", a)
    graph.output("coarse", b)
    flow = fk.Flow(graph)
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    torch._dynamo.reset()
    log_prob = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(log_prob(x, given=c), flow.log_prob(x, given=c))
    log_prob(x, given=c).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    inverse = torch.compile(flow.inverse, fullgraph=True, backend="aot_eager")  # S x R rows, from prepared parts
    z = torch.randn(3, 5, 4)
    torch.testing.assert_close(inverse(z, given={"c": c}), flow.inverse(z, given=c))
    network = torch.compile(flow.network.inverse, fullgraph=True, backend="aot_eager")
    parts = tuple(flow.split(z[0]).values())
    torch.testing.assert_close(network(*parts, c), flow.network.inverse(*parts, c))


def test_export_of_the_network_in_both_directions(flow):
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    with torch.no_grad():
        out = flow.network(x, c)
    program = torch.export.export(flow.network, (x, c)).module()
    torch.testing.assert_close(program(x, c), out)

    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = flow.network

        def forward(self, *arguments):
            return self.network.inverse(*arguments)

    program = torch.export.export(Inverse(), (*out[0], c)).module()
    torch.testing.assert_close(program(*out[0], c)[0], x)
