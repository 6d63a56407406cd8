import copy
import subprocess
import sys

import torch

import flowkit as fk
from flowkit.training import NegativeLogLikelihood

from .training_helpers import make_flow


def test_it_is_the_mean_negative_log_likelihood():
    flow, x, label = make_flow(), torch.randn(5, 4), torch.eye(3)[[0, 1, 2, 0, 1]]
    expected = -flow.log_prob(x, given=label).mean()
    assert torch.equal(NegativeLogLikelihood(flow)(x, label), expected)
    assert torch.equal(NegativeLogLikelihood(flow)({"x": x}, {"label": label}), expected)


def test_gradients_are_those_of_the_likelihood():
    flow, x, label = make_flow(), torch.randn(5, 4), torch.eye(3)[[0, 1, 2, 0, 1]]
    other = copy.deepcopy(flow)
    NegativeLogLikelihood(flow)(x, label).backward()
    (-other.log_prob(x, given=label).mean()).backward()
    for ours, theirs in zip(flow.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_every_parameter_is_part_of_the_graph():
    class TwoLevels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, y):
            return self.used(y), self.unused(y)

    graph = fk.Graph()
    used, _ = graph.features(TwoLevels(), graph.condition("y", (3,)))
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=used))
    module = NegativeLogLikelihood(fk.Flow(graph))
    called = []
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: called.append(name))
    loss = module(torch.randn(4, 2), torch.randn(4, 3))
    reached, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        todo += [following for following, _ in node.next_functions if following is not None]
    assert reached == {id(p) for p in module.parameters()}
    loss.backward()
    assert any("unused" in name for name, _ in module.named_parameters())


def test_it_compiles():
    graph = fk.Graph()
    graph.output("z", graph.add(fk.ElementwiseAffine, graph.input("x", (4,))))
    module, x = NegativeLogLikelihood(fk.Flow(graph)), torch.randn(5, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), module(x), rtol=0, atol=1e-12)


def test_it_needs_no_lightning():
    code = "import sys; sys.modules['lightning'] = None\nfrom flowkit.training import NegativeLogLikelihood\n"
    code += "import flowkit\ntry:\n    from flowkit.training import FlowModule\n"
    code += "except flowkit.MissingDependencyError as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'training needs Lightning: python -m pip install "flowkit[train]" brings it'
