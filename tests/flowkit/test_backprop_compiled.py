"""Memory-frugal gradients under fk.compile and torch.compile; a flow compiled as a whole."""

import copy

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.memory import saved_bytes

from .backprop_helpers import assert_equal, chain, gradients, perturb, set_mode

# torch's compiler hides it itself, but not from those who made warnings errors before it was imported.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Dropping(nn.Module):
    """Draws random numbers in training."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(c_in, 8), nn.Dropout(0.4), nn.Linear(8, c_out))

    def forward(self, x):
        return self.net(x)


class Adaptive(fk.Bijection):
    """Says that its number of steps depends on the data."""

    adaptive = True


def conv_chain(depth, **options):
    graph = fk.Graph()
    c, x = graph.condition("c", (3, 4, 4)), graph.input("x", (4, 4, 4))
    for i in range(depth):
        subnet = fk.ConvNet(hidden=6, activation="silu")
        x = graph.add(fk.AffineCoupling, x, given=c, subnet=subnet, active=("second", "first")[i % 2])
    graph.output("z", x)
    return perturb(fk.Flow(graph, **options))


def test_compiled_blocks_have_plain_gradients_and_flat_memory():
    """By inductor, which keeps copies of what it laid out anew, if it is let to."""
    torch.compiler.reset()
    flow, x, c = conv_chain(2), torch.randn(8, 4, 4, 4), torch.randn(8, 3, 4, 4)
    plain = gradients(flow, lambda f: f.log_prob(x, given=c).mean())
    bytes_at = {}
    for depth in (2, 5):
        deep = conv_chain(depth, backprop="reverse", snapshots=0)
        if depth == 2:
            deep.load_state_dict(flow.state_dict())
        fk.compile(deep)
        if depth == 2:
            assert_equal(gradients(deep, lambda f: f.log_prob(x, given=c).mean()), plain, 1e-11)
        known = [x, c, *deep.parameters(), *deep.buffers()]
        bytes_at[depth] = saved_bytes(lambda deep=deep: deep.log_prob(x, given=c), besides=known)
    assert bytes_at[2] == bytes_at[5] == x.numel() * x.element_size()


def test_under_torch_compile_reverse_mode_works_and_refuses_what_it_cannot_replay():
    torch.compiler.reset()
    flow, x = chain(2), torch.randn(8, 6)
    plain = gradients(flow, lambda f: f.log_prob(x).mean())
    set_mode(flow, "reverse")
    compiled = torch.compile(flow.log_prob, backend="aot_eager", fullgraph=True)
    assert_equal(gradients(flow, lambda f: compiled(x).mean()), plain)
    noisy = fk.Flow(fk.AffineCoupling((4,), subnet=Dropping), backprop="reverse").train()
    with pytest.raises(Exception, match=r"torch.compile cannot replay .* use fk.compile, which can"):
        torch.compile(noisy.log_prob, backend="aot_eager", fullgraph=True)(torch.randn(5, 4))


def test_a_flow_compiled_as_a_whole_computes_the_same_and_stays_plain():
    torch.compiler.reset()
    flow, x, c = conv_chain(2), torch.randn(5, 4, 4, 4), torch.randn(5, 3, 4, 4)
    want = gradients(flow, lambda f: f.log_prob(x, given=c).mean())
    torch.manual_seed(1)
    samples = flow.sample((3,), given=c)
    assert fk.compile(flow, whole=True, backend="aot_eager") is flow
    assert_equal(gradients(flow, lambda f: f.log_prob(x, given=c).mean()), want)
    torch.manual_seed(1)
    assert torch.allclose(flow.sample((3,), given=c), samples)
    with pytest.raises(fk.ConfigError, match="compiled as a whole takes backprop='plain' alone, got 'reverse'"):
        flow.backprop = "reverse"
    assert copy.deepcopy(flow).network._compiled_call_impl is None
    with pytest.raises(fk.ConfigError, match=r"whole=True\) needs backprop='plain', got 'reverse'"):
        fk.compile(chain(2, backprop="reverse"), whole=True)
    with pytest.raises(fk.ConfigError, match=r"whole=True\) cannot take Adaptive"):
        fk.compile(fk.Flow(Adaptive((2,))), whole=True)
