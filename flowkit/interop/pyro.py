"""Pyro: a flow as a distribution that `pyro.sample` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flowkit.conditional import FlowDistribution
from flowkit.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from flowkit.flow import Flow, Given


def as_pyro(flow: Flow, given: Given = None) -> Any:
    """q(x | y) as a Pyro distribution: what `flow.given(y)` is, with Pyro's methods.

    `pyro.sample("x", as_pyro(flow, y))`; register the flow's parameters with `pyro.module("flow", flow)`.

    Args:
        flow: a flow of one data input.
        given: its conditions, as for `flow.given`.

    Raises:
        MissingDependencyError: Pyro is not installed.
        ConfigError: a flow of several data inputs.
    """
    try:
        from pyro.distributions.torch_distribution import TorchDistributionMixin
    except ImportError as error:
        raise MissingDependencyError("this needs Pyro: python -m pip install pyro-ppl") from error
    if len(flow.input_shapes) != 1:
        raise ConfigError(f"pyro.sample takes one tensor, this flow has the inputs {', '.join(flow.input_shapes)}")
    mixin: Any = TorchDistributionMixin

    class PyroFlow(FlowDistribution, mixin):
        """q(x | y), with Pyro's methods."""

        def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
            return _as(PyroFlow, super().expand(batch_shape))

    return _as(PyroFlow, flow.given(given))


def _as(cls: Any, distribution: FlowDistribution) -> Any:
    made = cls(distribution.flow, distribution._conditions, distribution.batch_shape)
    made._cache = distribution._cache
    return made
