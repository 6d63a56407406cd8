"""What the paper does with the latent space, for any `fk.Flow` with one input: codes in, codes or data out.

A code z is flat, `(..., D)`, as `flow(x, given)` returns it; leading dimensions and conditions broadcast as the flow's
do. `flowkit examples latent` draws each of these for photographs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import flowkit as fk
from flowkit_cinn.interpolation import interpolate, interpolate_spherical, interpolation_grid, typical_code

__all__ = [
    "Components",
    "condition_features",
    "exchange_level",
    "interpolate",
    "interpolate_spherical",
    "interpolation_grid",
    "most_different",
    "most_likely",
    "outliers",
    "principal_components",
    "resample_level",
    "temperature_row",
    "transfer",
    "typical_code",
]

TEMPERATURES = (0.0, 0.7, 0.9, 1.0, 1.25)  # of Fig. 7

Data = Tensor | dict[str, Tensor]
Given = Tensor | Mapping[str, Tensor] | None


@torch.no_grad()
def temperature_row(
    flow: fk.Flow, z: Tensor, given: Given = None, temperatures: Sequence[float] = TEMPERATURES
) -> list[Data]:
    """One code at several temperatures, the condition fixed: x = f^-1(t z; y) for each t. Fig. 7.

    Args:
        flow: with a base whose mode is 0, such as the standard normal.
        z: `(..., D)`, usually of `typical_code`.
        given: the conditions.
        temperatures: 0 is the mode of the base, 1 the code itself, above 1 oversaturated.

    Returns:
        x `(..., *shape)` for each temperature.

    Raises:
        InputError: z of another shape or dtype than the flow's, or a temperature below 0.

    Source: the paper, Fig. 7.

    Example:
        >>> row = temperature_row(fk.Flow(fk.Identity((3,))), torch.ones(2, 3), temperatures=(0, 1.25))
        >>> [x[0].tolist() for x in row]
        [[0.0, 0.0, 0.0], [1.25, 1.25, 1.25]]
    """
    if not all(0 <= t < math.inf for t in temperatures):
        raise fk.InputError(f"temperatures must be 0 or more and finite, got {tuple(temperatures)}")
    return [flow.inverse(t * z, given=given)[0] for t in temperatures]


@torch.no_grad()
def transfer(flow: fk.Flow, x: Data, given: Given, onto: Given) -> Data:
    """The code of x under its own condition, decoded under another: x* = f^-1(f(x; y); y*). Fig. 8, color transfer.

    Args:
        flow: with conditions.
        x: `(..., *shape)`, the references.
        given: the conditions of the references.
        onto: the new conditions; broadcast against the references' leading dimensions.

    Returns:
        x* `(..., *shape)`; where onto is given, x itself to rounding.

    Raises:
        InputError, ConditionError: data or conditions that do not fit the flow.

    Source: the paper, Fig. 8.

    Example:
        >>> flow = fk.Flow(fk.AffineCoupling((4,), given=3))
        >>> x, y = torch.randn(2, 4), torch.randn(2, 3)
        >>> bool(torch.allclose(transfer(flow, x, y, y), x, atol=1e-5))
        True
    """
    return flow.inverse(flow(x, given=given)[0], given=onto)[0]


def exchange_level(flow: fk.Flow, z: Tensor, other: Tensor, level: str | Sequence[str]) -> Tensor:
    """z with the latents of one resolution level, or of several, taken from another code; the rest as it is.

    Args:
        flow: with several outputs.
        z: `(..., D)`.
        other: `(..., D)`; they broadcast.
        level: names among `flow.latents`.

    Returns:
        `(..., D)`, a new tensor.

    Raises:
        ConfigError: a level that the flow does not have.
        InputError: codes of another size than the flow's.

    Source: the paper, section 3: the latents split off at each resolution of the multi-scale flow.

    Example:
        >>> graph = fk.Graph()
        >>> fine, coarse = graph.add(fk.Split, graph.input("x", (4,)), sizes=(2, 2))
        >>> graph.output("fine", fine), graph.output("coarse", coarse)
        (None, None)
        >>> exchange_level(fk.Flow(graph), torch.zeros(4), torch.ones(4), "coarse").tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    names = (level,) if isinstance(level, str) else tuple(level)
    if unknown := [name for name in names if name not in flow.latents]:
        raise fk.ConfigError(f"the flow has the levels {', '.join(flow.latents)}, and no '{unknown[0]}'")
    if z.shape[-1:] != (flow.dim,) or other.shape[-1:] != (flow.dim,):
        raise fk.InputError(f"codes must be (..., {flow.dim}), got {tuple(z.shape)} and {tuple(other.shape)}")
    kept, fresh = torch.broadcast_tensors(z, other)
    mixed = kept.clone()
    for name in names:
        where = flow.latents[name][0]
        mixed[..., where] = fresh[..., where]
    return mixed


def resample_level(
    flow: fk.Flow, z: Tensor, level: str | Sequence[str], count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """z with the latents of one resolution level, or of several, drawn anew `count` times; the rest as it is.

    Args:
        flow: with several outputs and a standard normal base.
        z: `(..., D)`.
        level: names among `flow.latents`.
        count: how many.
        generator: on the CPU; torch's own where None.

    Returns:
        `(count, ..., D)`.

    Raises:
        ConfigError: a level that the flow does not have, a base that is not the standard normal, or a negative count.
        InputError: a code of another size than the flow's.

    Source: the paper, section 3: the latents split off at each resolution of the multi-scale flow.

    Example:
        >>> resample_level(fk.Flow(fk.Identity((3,))), torch.zeros(2, 3), "z", 5).shape
        torch.Size([5, 2, 3])
    """
    if count < 0:
        raise fk.ConfigError(f"the count must be 0 or more, got {count}")
    if not isinstance(flow.base, fk.StandardNormal):
        raise fk.ConfigError(
            f"a level is drawn from the standard normal, and this flow's base is {type(flow.base).__name__}: "
            f"draw a code from the base, and use exchange_level"
        )
    fresh = torch.randn(count, *z.shape, generator=generator, dtype=z.dtype)
    return exchange_level(flow, z, fresh.to(z.device), level)


def most_likely(
    flow: fk.Flow, z: Tensor, given: Given = None, *, steps: int = 100, lr: float = 0.05
) -> tuple[Tensor, Tensor]:
    """The most likely x, as its code: log q(x | y) climbed over z by Adam, from z on. Each row keeps its best.

    log q(f^-1(z; y) | y) = log p(z) - log|det df^-1/dz|. This is not z = 0: the log-det depends on z too. The density
    has many peaks, so the start decides which is found; a sharper x is not the aim, a denser one is.

    Args:
        flow: in eval mode; its parameters get no gradients.
        z: `(..., D)`, the start.
        given: the conditions.
        steps: of Adam.
        lr: its learning rate, in standard deviations of the code.

    Returns:
        The best codes seen `(..., D)` and their log q(x | y) `(...)`, in nats: never lower than the start's.

    Raises:
        ConfigError: negative steps, or a learning rate that is not positive.
        InputError, ConditionError: codes or conditions that do not fit the flow.

    Source: the paper, section 4.2; the appendix has the most likely colorizations.

    Example:
        >>> z, log_prob = most_likely(fk.Flow(fk.Identity((2,))), torch.ones(3, 2), steps=50)
        >>> bool((z.abs() < 0.5).all()), log_prob.shape
        (True, torch.Size([3]))
    """
    if steps < 0 or not 0 < lr < math.inf:
        raise fk.ConfigError(f"steps must be 0 or more and lr positive, got {steps} and {lr}")
    climbing = z.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([climbing], lr=lr)
    with torch.enable_grad():
        value = _log_prob_of_code(flow, climbing, given)
        best, best_value = z.detach().clone(), value.detach()
        if best_value.shape != best.shape[:-1]:  # conditions with more rows than the start
            raise fk.InputError(f"z needs a row for each condition, {tuple(best_value.shape)}, got {tuple(z.shape)}")
        for _ in range(steps):
            (climbing.grad,) = torch.autograd.grad(-value.sum(), climbing)
            optimizer.step()
            value = _log_prob_of_code(flow, climbing, given)
            better = value.detach() > best_value  # false for NaN
            best = torch.where(better[..., None], climbing.detach(), best)
            best_value = torch.where(better, value.detach(), best_value)
    return best, best_value


def condition_features(flow: fk.Flow, given: Given) -> dict[str, Tensor]:
    """What the conditioning nets make of the conditions, by wire name, in the graph's order. Fig. 6.

    Args:
        flow: with feature nets.
        given: the conditions, `(B, *shape)`.

    Returns:
        Each feature of conditions alone, `(B, *shape)`: maps `(B, C, H, W)`, and vectors `(B, C)` where there are some.

    Raises:
        ConditionError: conditions of other names.

    Source: the paper, Fig. 6.

    Example:
        >>> graph = fk.Graph()
        >>> label = graph.features(fk.OneHot(3), graph.condition("label", (), dtype=torch.int64), name="one_hot")
        >>> graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=label))
        >>> [tuple(feature.shape) for feature in condition_features(fk.Flow(graph), torch.tensor([0, 2])).values()]
        [(2, 3)]
    """
    names = list(flow.condition_shapes)
    named = dict(given) if isinstance(given, Mapping) else {} if given is None else {names[0] if names else "": given}
    if set(named) != set(names):
        raise fk.ConditionError(f"the flow has the conditions {names}, got {sorted(named)}")
    with torch.no_grad():
        values = flow.network.condition_values(*(named[name] for name in names))
    wires = [wire for node in flow.network.graph.nodes if node.kind == "features" for wire in node.outputs]
    return {wire.name: values[wire.index] for wire in wires if wire.index in values}


@dataclass(frozen=True)
class Components:
    """Principal components: directions `(K, C)`, variances `(K,)`, scores `(B, K, ...)`, and the mean `(C,)`."""

    directions: Tensor
    variances: Tensor
    scores: Tensor
    mean: Tensor


def principal_components(features: Tensor, count: int = 3) -> Components:
    """PCA of features over the batch and all places: the directions in which they vary most, in falling order. Fig. 6.

    Args:
        features: `(B, C, ...)`: maps or vectors.
        count: K, from 1 to the smaller of C and the number of places.

    Returns:
        Orthonormal directions, each with its largest entry positive; the variance along each; and the centred features
        projected on them, of the shape of the features with K channels.

    Raises:
        InputError: fewer than two places, or features that are not finite.
        ConfigError: a count out of range.

    Source: the paper, section 4.1 and Fig. 6.

    Example:
        >>> found = principal_components(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 1)
        >>> [round(v, 4) for v in found.directions[0].tolist()], round(found.variances.item(), 4)
        ([0.6, 0.8], 12.5)
    """
    if features.dim() < 2:
        raise fk.InputError(f"features must be (B, C, ...), got {tuple(features.shape)}")
    places = features.detach().movedim(1, -1)
    flat = places.reshape(-1, features.shape[1])
    if len(flat) < 2 or not bool(flat.isfinite().all()):
        raise fk.InputError(f"PCA needs two places or more, all finite, got features {tuple(features.shape)}")
    if not 1 <= count <= min(flat.shape):
        raise fk.ConfigError(f"the count must be from 1 to {min(flat.shape)}, got {count}")
    mean = flat.mean(0)
    _, sizes, rows = torch.linalg.svd(flat - mean, full_matrices=False)
    directions = rows[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0).to(directions)
    scores = ((places - mean) @ directions.T).movedim(-1, 1)
    return Components(directions, sizes[:count] ** 2 / (len(flat) - 1), scores, mean)


def most_different(x: Tensor, count: int) -> Tensor:
    """Among many samples the most different ones, by farthest-point choice. Fig. 9, diverse colorizations.

    The two that are farthest from each other; then, again and again, the one farthest from all chosen.

    Args:
        x: `(N, ...)`; the distance is Euclidean.
        count: K, from 1 to N.

    Returns:
        Their indices `(K,)`, in the order of choice.

    Raises:
        ConfigError: a count out of range.

    Source: the paper, Fig. 9.

    Example:
        >>> most_different(torch.tensor([0.0, 0.1, 1.0, 0.6]), 3).tolist()
        [0, 2, 3]
    """
    if not 1 <= count <= len(x):
        raise fk.ConfigError(f"the count must be from 1 to the {len(x)} samples, got {count}")
    flat = x.detach().reshape(len(x), -1)
    # Differences, not products: those cancel where samples are alike.
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = [int(distance.amax(1).argmax())]
    nearest = distance[chosen[0]].clone()
    while len(chosen) < count:
        nearest[chosen] = -1.0  # equal samples are at 0, and none is chosen twice
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return torch.tensor(chosen, device=x.device)


@torch.no_grad()
def outliers(flow: fk.Flow, x: Data, given: Given = None, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Which x are least likely: of samples the sampling outliers of Fig. 10, top; of data what the flow knows least.

    Args:
        flow: any.
        x: `(N, *shape)`.
        given: the conditions, a row each or one for all.
        count: K; None for all N.

    Returns:
        Indices `(K,)`, least likely first, and log q(x | y) of those `(K,)` in nats. NaN counts as least likely of all.

    Raises:
        ConfigError: a count out of range.
        InputError, ConditionError: data or conditions that do not fit the flow.

    Source: the paper, Fig. 10.

    Example:
        >>> which, _ = outliers(fk.Flow(fk.Identity((1,))), torch.tensor([[0.0], [5.0], [-1.0]]), count=2)
        >>> which.tolist()
        [1, 2]
    """
    log_prob = flow.log_prob(x, given=given)
    if log_prob.dim() != 1 or (count is not None and not 1 <= count <= len(log_prob)):
        raise fk.ConfigError(f"the count must be from 1 to N of x (N, *shape), got {count} of {tuple(log_prob.shape)}")
    order = log_prob.nan_to_num(nan=-math.inf).argsort(stable=True)[:count]
    return order, log_prob[order]


def _log_prob_of_code(flow: fk.Flow, z: Tensor, given: Given) -> Tensor:
    x, log_det = flow.inverse(z, given=given)
    if getattr(flow.base, "condition_shapes", ()):  # then the base needs features, which the flow finds
        return flow.log_prob(x, given=given)
    value: Tensor = flow.base.log_prob(z) - log_det
    return value
