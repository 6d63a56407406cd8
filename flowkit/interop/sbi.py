"""sbi: a flow as the density estimator of its posterior, likelihood and other inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import flows
from flowkit.errors import ConfigError, InputError, MissingDependencyError
from flowkit.flow import Flow
from flowkit.univariate import RationalQuadraticSpline

SPLINE = "spline"


def sbi_density_estimator(
    flow: str | Callable[[int, int], Flow] = SPLINE,
    embedding_net: nn.Module | None = None,
    z_score: bool = True,
    **options: Any,
) -> Callable[[Tensor, Tensor], Any]:
    """What sbi's `NPE(density_estimator=...)`, `NLE` and their like take: it builds a flow for their data.

    Args:
        flow: `"spline"`, a masked autoregressive flow of rational-quadratic splines; the name of another ready flow
            with conditions, such as `"nsf"`; or a callable `(features, condition) -> Flow` of two ints.
        embedding_net: conditions go through it first, `(batch, *event)` to `(batch, C)`; trained with the flow.
        z_score: standardise inputs and conditions by the data that the estimator is built from.
        options: of the ready flow, such as `layers=5`.

    Returns:
        A function of a batch of inputs and a batch of conditions, to sbi's `ConditionalDensityEstimator`.

    Raises:
        ConfigError: no such ready flow.
        MissingDependencyError: sbi is not installed; raised when the estimator is built.

    Run with sbi 0.27; flowkit's tests are skipped where sbi is not installed.

    >>> build = sbi_density_estimator("nsf", layers=3)  # NPE(prior, density_estimator=build)
    """
    ready = (SPLINE, *flows.__all__)
    if not callable(flow) and flow not in ready:
        raise ConfigError(f"sbi_density_estimator: flow must be a callable or one of {', '.join(ready)}, got {flow!r}")
    return Builder(flow, embedding_net, z_score, options)


class Builder:
    """What `sbi_density_estimator` returns: a class, so that it can be pickled with sbi's inference object."""

    def __init__(self, flow: Any, embedding_net: nn.Module | None, z_score: bool, options: dict[str, Any]):
        self.flow, self.embedding_net, self.z_score, self.options = flow, embedding_net, z_score, options

    def __call__(self, batch_x: Tensor, batch_y: Tensor) -> Any:
        """The estimator of x given y."""
        try:
            from flowkit.interop._sbi import FlowEstimator
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "sbi":
                raise
            raise MissingDependencyError("sbi is not installed: python -m pip install sbi") from error
        if batch_x.dim() < 2 or batch_y.dim() < 2:
            raise InputError(
                "sbi_density_estimator needs batches (rows, ...) of inputs and conditions, got shapes "
                f"{tuple(batch_x.shape)} and {tuple(batch_y.shape)}"
            )
        embedding = nn.Identity() if self.embedding_net is None else self.embedding_net
        moments = (*self._moments(batch_x), *self._moments(batch_y))
        with torch.no_grad():
            embedded = embedding.to(batch_y.device)((batch_y[:2] - moments[2]) / moments[3])
        made = self._build(batch_x[0].numel(), embedded[0].numel()).to(batch_x.device, batch_x.dtype)
        return FlowEstimator(made, embedding, moments, (batch_x.shape[1:], batch_y.shape[1:]))

    def _build(self, features: int, condition: int) -> Flow:
        if callable(self.flow):
            return self.flow(features, condition, **self.options)
        if self.flow == SPLINE:
            spline = {"univariate": RationalQuadraticSpline.recipe(bins=8, bound=4.0)}
            return flows.maf(features, condition=condition, **{**spline, **self.options})
        return getattr(flows, self.flow)(features, condition=condition, **self.options)

    def _moments(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        shape = batch.shape[1:]
        if not self.z_score:
            return batch.new_zeros(shape), batch.new_ones(shape)
        finite = batch.isfinite().flatten(1).all(1)  # sbi leaves failed simulations to be dropped later
        kept = batch[finite.nonzero()[:, 0]]
        mean, scale = kept.mean(0), kept.std(0, correction=0)
        constant = scale <= 10 * torch.finfo(batch.dtype).eps * mean.abs()
        return mean, torch.where(constant, torch.ones_like(scale), scale)
