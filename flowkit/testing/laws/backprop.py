"""Memory-frugal gradients: `backprop="reverse"` and `"checkpoint"` give what plain autograd gives."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.bijection import as_tuple
from flowkit.flow import Flow
from flowkit.testing.findings import Findings
from flowkit.testing.registry import law
from flowkit.testing.subject import Subject

TOLERANCE = 1e-9


def _gradients(subject: Subject, mode: str) -> dict[str, Tensor]:
    flow = Flow(subject.bijection.to(torch.float64), backprop=mode, snapshots=0)
    network, count = flow.network, subject.arity("forward")
    points = [p.to(torch.float64) if p.is_floating_point() else p for p in subject.points("forward")]
    leaves = [p.clone().requires_grad_() if p.is_floating_point() else p for p in points]
    names = [f"data {i}" if i < count else f"condition {i - count}" for i in range(len(points))]
    wanted = {n: leaf for n, leaf in zip(names, leaves, strict=True) if leaf.requires_grad}
    wanted |= {f"parameter {n}": p for n, p in network.named_parameters() if p.requires_grad}
    torch.manual_seed(subject.seed)
    out, log_det = network(*leaves)
    generator = torch.Generator().manual_seed(subject.seed)
    loss = torch.zeros((), dtype=torch.float64)
    for tensor in (*as_tuple(out), log_det):
        loss = loss + (torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * tensor).sum()
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, grads, strict=True))


@law(number=11)
def frugal_gradients(subject: Subject, expect: Findings) -> None:
    """In reverse mode and with checkpoints, the gradients of data, conditions and parameters are plain autograd's."""
    plain = _gradients(subject, "plain")
    for mode in ("reverse", "checkpoint"):
        found = _gradients(subject, mode)
        for name, want in plain.items():
            text = f"backprop={mode!r}: the gradient of {name} is not plain autograd's"
            expect.close(found[name], want, text, TOLERANCE)
