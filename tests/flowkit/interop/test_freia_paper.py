"""The authors' two small networks, built in FrEIA layer by layer as their recipes say, and converted."""

import numpy as np
import pytest
import torch
from torch import nn

from flowkit.interop import from_freia

ff = pytest.importorskip("FrEIA.framework")
fm = pytest.importorskip("FrEIA.modules")

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


class AuthorsClamp:
    """0.636 atan(r / clamp), which FrEIA multiplies by the clamp: that of the authors' own version of FrEIA."""

    def __init__(self, clamp):
        self.clamp = clamp

    def __call__(self, r):
        return 0.636 * torch.atan(r / self.clamp)


def convolutions(hidden, kernel):
    def subnet(c_in, c_out):
        padding = kernel // 2
        return nn.Sequential(
            nn.Conv2d(c_in, hidden, kernel, padding=padding),
            nn.ReLU(),
            nn.Conv2d(hidden, c_out, kernel, padding=padding),
        )

    return subnet


def linear(hidden):
    def subnet(c_in, c_out):
        return nn.Sequential(nn.Linear(c_in, hidden), nn.ReLU(), nn.Linear(hidden, c_out))

    return subnet


def coupling(subnet, clamp):
    return {"subnet_constructor": subnet, "clamp": clamp, "clamp_activation": AuthorsClamp(clamp)}


def colorization():
    """2 x 64 x 64 given 64 maps of 64, 128 of 32, 128 of 16 and a vector of 512."""
    levels = [ff.ConditionNode(c, s, s, name=f"level{s}") for c, s in ((64, 64), (128, 32), (128, 16))]
    vector = ff.ConditionNode(512, name="vector")
    nodes = [ff.InputNode(2, 64, 64, name="ab")]

    def add(cls, options, conditions=None, source=None):
        nodes.append(ff.Node(source or nodes[-1], cls, options, conditions=conditions))
        return nodes[-1]

    def blocks(count, make, clamp, condition, permuted=True):
        for i in range(count):
            add(fm.GLOWCouplingBlock, coupling(make(i), clamp), condition)
            if permuted:
                add(fm.PermuteRandom, {"seed": len(nodes)})

    haar = {"rebalance": 0.5, "order_by_wavelet": False}
    blocks(2, lambda i: convolutions(32, 3), 1.0, levels[0], permuted=False)
    add(fm.HaarDownsampling, haar)
    blocks(4, lambda i: convolutions(64, (1, 3)[i % 2]), 1.0, levels[1])
    first = add(fm.Split, {"section_sizes": [2, 6], "dim": 0})
    add(fm.HaarDownsampling, haar, source=first.out0)
    blocks(4, lambda i: convolutions(128, (1, 3)[i % 2]), 0.6, levels[2])
    second = add(fm.Split, {"section_sizes": [4, 4], "dim": 0})
    add(fm.Flatten, {}, source=second.out0)
    blocks(4, lambda i: linear(512), 0.6, vector)
    outputs = [ff.OutputNode(wire) for wire in (first.out1, second.out1, nodes[-1])]
    return ff.GraphINN([*nodes, *levels, vector, *outputs])


def mnist():
    """784 given ten: 20 times a permutation and a coupling of 512 hidden units."""
    label = ff.ConditionNode(10, name="label")
    nodes = [ff.InputNode(1, 28, 28, name="image")]
    nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
    for i in range(20):
        nodes.append(ff.Node(nodes[-1], fm.PermuteRandom, {"seed": i}))
        nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, coupling(linear(512), 1.0), conditions=label))
    return ff.GraphINN([*nodes, label, ff.OutputNode(nodes[-1])])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("build", "start"), [(colorization, 0.02), (mnist, 0.01)])
def test_same_latents_and_log_dets_in_both_directions(build, start, dtype, tolerance):
    before = np.random.get_state()  # noqa: NPY002
    network = build().to(dtype)
    np.random.set_state(before)  # noqa: NPY002  # FrEIA's seed= is of the global generator
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=start)
        flow = from_freia(network)
        (shape,) = flow.input_shapes.values()
        x = torch.randn(2, *shape, dtype=dtype)
        given = {name: torch.randn(2, *s, dtype=dtype) for name, s in flow.condition_shapes.items()}
        conditions = [given[node.name] for node in network.condition_nodes]
        close = {"atol": tolerance, "rtol": tolerance}

        outputs, log_det = network(x, c=conditions)
        parts = [outputs] if torch.is_tensor(outputs) else list(outputs)
        assert log_det.abs().min() > 0.1
        z, found = flow(x, given=given)
        torch.testing.assert_close(z, torch.cat([part.flatten(1) for part in parts], 1), **close)
        torch.testing.assert_close(found, log_det.to(dtype), **close)

        # FrEIA's Haar halves in place what it is given, so it gets copies.
        latents = [torch.randn_like(part) for part in parts]
        flat = torch.cat([part.flatten(1) for part in latents], 1)
        copies = [part.clone() for part in latents]
        back, log_det = network(copies if len(parts) > 1 else copies[0], c=conditions, rev=True)
        found_back, found = flow.inverse(flat, given=given)
        torch.testing.assert_close(found_back, back, **close)
        torch.testing.assert_close(found, log_det.to(dtype), **close)
