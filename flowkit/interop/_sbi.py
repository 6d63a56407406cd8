"""sbi's density estimator around a flow: imported only where sbi is installed, for its class is an ancestor."""

from __future__ import annotations

from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from flowkit.flow import Flow


class FlowEstimator(ConditionalDensityEstimator):
    """A flow of standardised inputs, given embedded, standardised conditions, as sbi's `ConditionalDensityEstimator`.

    Made by `flowkit.interop.sbi_density_estimator`. Inputs are `(samples, batch, *event)` or `(batch, *event)`,
    conditions `(batch, *event)` or `(samples, batch, *event)`; log-probabilities `(samples, batch)`.
    """

    mean: Tensor
    scale: Tensor
    condition_mean: Tensor
    condition_scale: Tensor

    def __init__(self, flow: Flow, embedding: nn.Module, moments: tuple[Tensor, ...], shapes: tuple[Any, Any]):
        super().__init__(flow, input_shape=torch.Size(shapes[0]), condition_shape=torch.Size(shapes[1]))
        self._embedding = embedding
        for name, value in zip(("mean", "scale", "condition_mean", "condition_scale"), moments, strict=True):
            self.register_buffer(name, value)

    @property
    def embedding_net(self) -> nn.Module:
        """The net that conditions go through."""
        return self._embedding

    def _given(self, condition: Tensor) -> Tensor:
        self._check_condition_shape(condition)
        lead = condition.shape[: condition.dim() - len(self.condition_shape)]
        rows = (condition - self.condition_mean) / self.condition_scale
        embedded = self._embedding(rows.reshape(-1, *self.condition_shape))
        return embedded.reshape(*lead, -1)

    def log_prob(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """The log-density of each input, `(samples, batch)`."""
        self._check_input_shape(input)
        if input.dim() <= len(self.input_shape) + 1:
            input = input.unsqueeze(0)
        x = (input - self.mean) / self.scale
        given = self._given(condition)
        lead = torch.broadcast_shapes(x.shape[: x.dim() - len(self.input_shape)], given.shape[:-1])
        flat = x.expand(*lead, *self.input_shape).reshape(*lead, -1)
        return self.net.log_prob(flat, given=given) - self.scale.expand(self.input_shape).log().sum()

    def loss(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """Minus the log-density of each row, `(batch,)`."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Any, condition: Tensor, **_: Any) -> Tensor:
        """Samples `(*sample_shape, batch, *event)`; the conditions' work is done once."""
        return self._back(self.net.sample(tuple(sample_shape), given=self._given(condition)))

    def sample_and_log_prob(self, sample_shape: Any, condition: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities, in one pass."""
        x, log_prob = self.net.given(self._given(condition)).sample_and_log_prob(tuple(sample_shape))
        return self._back(x), log_prob - self.scale.expand(self.input_shape).log().sum()

    def _back(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.input_shape) * self.scale + self.mean
