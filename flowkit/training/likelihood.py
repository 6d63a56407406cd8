"""The loss of maximum likelihood as one module with one forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkit.flow import Flow

Data = Tensor | dict[str, Tensor]


class _Touch(torch.autograd.Function):
    """The value unchanged; every parameter becomes part of its graph, with no gradient of its own from here."""

    @staticmethod
    def forward(value: Tensor, *parameters: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.count = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        return gradients[0], *((None,) * ctx.count)


class NegativeLogLikelihood(nn.Module):
    """The mean negative log-likelihood of a batch, in nats: `-flow.log_prob(x, given).mean()`.

    One `forward` that touches every parameter, the base's too, and those that this batch does not use (the unused level
    of a pyramid): so `DistributedDataParallel` wraps it with `find_unused_parameters=False`.

    Args:
        flow: any Flow.

    Example:
        >>> import flowkit as fk
        >>> graph = fk.Graph()
        >>> graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,))))
        >>> loss = NegativeLogLikelihood(fk.Flow(graph))(torch.randn(8, 4))
        >>> loss.shape
        torch.Size([])
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Data, given: Data | None = None) -> Tensor:
        """The scalar mean over every batch dimension of x.

        Args:
            x: a tensor, or tensors by input name.
            given: a tensor, tensors by condition name, or None.
        """
        loss = -self.flow.log_prob(x, given=given).mean()
        trained = [p for p in self.flow.parameters() if p.requires_grad]
        return _Touch.apply(loss, *trained) if torch.is_grad_enabled() and trained else loss
