"""Flows, modes and comparisons for the tests of memory-frugal gradients."""

import torch

import flowkit as fk


def set_mode(flow, backprop, snapshots=8, chunk=None, budget=None):
    network = flow.network
    network.snapshots, network.chunk, network.budget = snapshots, chunk, budget
    flow.backprop = backprop


def perturb(flow, scale=0.1):
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def chain(depth, dim=6, **options):
    graph = fk.Graph()
    x = graph.input("x", (dim,))
    for i in range(depth):
        subnet = fk.MLP(hidden=(8, 8), activation="silu")
        x = graph.add(fk.AffineCoupling, x, subnet=subnet, active=("second", "first")[i % 2])
    graph.output("z", x)
    return perturb(fk.Flow(graph, **options))


def gradients(flow, loss, tensors=()):
    wanted = [*tensors, *[p for p in flow.parameters() if p.requires_grad]]
    return torch.autograd.grad(loss(flow), wanted, allow_unused=True)


def assert_equal(got, want, tolerance=1e-12):
    for g, w in zip(got, want, strict=True):
        assert (g is None or not g.any()) if w is None else (g - w).abs().max() <= tolerance * (1 + w.abs().max())
