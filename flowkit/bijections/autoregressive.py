"""Autoregressive maps of vectors: each element is transformed as the elements before it, and conditions, decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, Prepared, event_sum, join
from flowkit.bijections.conditioning import check_conditions
from flowkit.errors import ConfigError, ShapeError
from flowkit.masked import LARGEST_MASK, MaskedMLP
from flowkit.registry import Example, register
from flowkit.univariate import (
    Affine,
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
    LinearSpline,
    RationalQuadraticSpline,
    VolumePreservingAffine,
    build_univariate,
)
from flowkit.univariate.univariate import offer_examples


def _examples() -> list[Example]:
    small: dict[str, Any] = {"hidden": (6,), "activation": "silu"}
    spline = RationalQuadraticSpline.recipe(bins=3)
    chain = ((False, False, False), (True, False, False), (True, False, False))
    return [
        Example((3,), order="reversed", **small),
        Example((1,), given=(2,), **small),
        Example((3,), given=((1,), (2,)), univariate=spline, order=(1, 0, 2), **small),
        Example((3,), given=(2,), inverted=True, passes=2, **small),
        Example((3,), univariate=spline, adjacency=chain, **small),
        Example((2,), univariate=CircularRationalQuadraticSpline.recipe(bins=2), **small),
        Example((3,), univariate=BoundedRationalQuadraticSpline.recipe(bins=2), passes=2, **small),
        Example((2,), given=(1,), univariate=LinearSpline.recipe(bins=3), inverted=True, **small),
    ]


@register("flowkit.masked_autoregressive", examples=_examples)
class MaskedAutoregressive(Bijection):
    """A masked autoregressive map (MAF; `inverted`, IAF): the elements before one, and conditions, decide its map.

    With f(x; p) a univariate map and p predicted by a masked net (MADE) in which p_i sees the elements before i alone:

    | | as is (MAF) | `inverted` (IAF) |
    | --- | --- | --- |
    | forward | y_i = f(x_i; p_i(x_<i, c)), one pass | y_i = f^-1(x_i; p_i(y_<i, c)), element by element |
    | its log-det | sum of log f' at x | minus the sum of log f' at y |
    | inverse | x_i = f^-1(y_i; p_i(x_<i, c)), element by element | x_i = f(y_i; p_i(y_<i, c)), one pass |
    | its log-det | minus the sum of log f' at x | sum of log f' at y |

    The direction that goes element by element takes `passes` runs of the net, all recorded for gradients. It starts as
    the identity where the univariate map does.

    Shapes: x `(B, D)`, conditions `(B, C)`, log_det `(B,)`. State: the net, its masks, and the buffer `level` `(D,)`:
    the pass in which an element is found.

    Args:
        shape: event shape `(D,)`.
        given: shapes of the conditions, vectors; they enter every unit of the first hidden layer unmasked.
        univariate: a recipe such as `fk.RationalQuadraticSpline.recipe(bins=8)`, or a class of `fk.Univariate`.
        hidden: widths of the net's hidden layers.
        order: None, the elements' own; `"reversed"`; `"random"`, drawn from torch's generator; or a tuple, the elements
            from first to last.
        inverted: exchange forward and inverse, so that sampling takes one pass and the density many.
        passes: at most D: cut the order into so many groups, in which elements do not see each other; 2 is a coupling.
            None is D, or the depth of the adjacency.
        adjacency: rows of D booleans: element i sees those elements that row i marks, and no order is given.
        activation: of the net, see `fk.MLP`.

    Raises:
        ShapeError: data or conditions that are not vectors; an adjacency that is not D x D.
        ConfigError: an order that is no permutation, passes out of range, a cyclic adjacency, an adjacency together
            with an order or passes, a univariate map that is not a recipe or ties elements together, an unknown
            activation.

    Source: Papamakarios et al., Masked autoregressive flow for density estimation, 2017, equations 3 to 5; Kingma et
        al., Improved variational inference with inverse autoregressive flow, 2016; Germain et al., MADE, 2015.

    >>> flow = MaskedAutoregressive((4,), given=(2,), univariate=RationalQuadraticSpline.recipe(bins=4))
    >>> y, log_det = flow(torch.ones(5, 4), torch.zeros(5, 2))
    >>> y.shape, log_det.shape, flow.passes
    (torch.Size([5, 4]), torch.Size([5]), 4)
    """

    level: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        univariate: Any = Affine,
        hidden: int | Sequence[int] = (64, 64),
        order: str | Sequence[int] | None = None,
        inverted: bool = False,
        passes: int | None = None,
        adjacency: Any = None,
        activation: str = "relu",
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        name = type(self).__name__
        if len(shape) != 1:
            raise ShapeError(f"{name} needs vectors (D,), got shape {shape}: flatten the data with fk.Flatten")
        conditions = check_conditions(name, shape, self.condition_shapes)
        size = shape[0]
        if size * size > LARGEST_MASK:
            raise ShapeError(f"{name} is for vectors of at most {math.isqrt(LARGEST_MASK):,} values, got shape {shape}")
        if adjacency is None:
            levels = _levels_of_order(name, size, order, passes)
            visible = [{j for j in range(size) if levels[j] < level} for level in levels]
        elif order is not None or passes is not None:
            raise ConfigError(f"{name}: an adjacency decides the order and the passes, got order={order!r}, {passes=}")
        else:
            visible = _read_adjacency(name, size, adjacency)
            levels = _levels_of_graph(name, visible)
        self.inverted, self.passes = bool(inverted), max(levels) + 1
        self.register_buffer("level", torch.tensor(levels))
        self.univariate: Any = build_univariate(name, univariate, shape)
        if isinstance(self.univariate, VolumePreservingAffine):
            raise ConfigError(f"{name} needs a univariate map of each element alone, got {univariate!r}")
        numbers = self.univariate.numbers_per_element
        self.subnet = MaskedMLP(visible, size, conditions, numbers, hidden, activation)
        # An instance makes the promises of its univariate map and its order, which the class cannot know.
        self.iterative, self.tolerance = self.univariate.iterative, self.univariate.tolerance
        offer_examples(self, (self.univariate,), self.in_shapes[0])
        self.slow_inverse = not self.inverted and self.passes > 1

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """The conditions' part of the net's first layer."""
        c = join(conditions)
        return None if c is None else (self.subnet.prepare(c),)

    def _prepared(self, given: tuple) -> Tensor | None:
        if given and isinstance(given[0], Prepared):
            return given[0][0]
        c = join(given)
        return None if c is None else self.subnet.prepare(c)

    def _at_once(self, x: Tensor, given: tuple) -> tuple[Tensor, Tensor]:
        predicted = self.subnet.run(x, self.subnet.masked_weights(), self._prepared(given))
        return self.univariate(x, *self.univariate.split(predicted))

    def _by_passes(self, y: Tensor, given: tuple) -> tuple[Tensor, Tensor]:
        """The x that `_at_once` maps to y, and the log-derivatives of the inverse."""
        prepared, weights = self._prepared(given), self.subnet.masked_weights()
        found, log_derivative = torch.zeros_like(y), torch.zeros_like(y)
        for done in range(self.passes):
            predicted = self.subnet.run(found, weights, prepared)
            x, log_derivative = self.univariate.inverse(y, *self.univariate.split(predicted))
            if done < self.passes - 1:  # what is not final yet could overflow, and infinity times a masked 0 is NaN
                found = torch.where(self.level <= done, x, 0.0).to(y.dtype)
        return x, log_derivative  # in the last pass every element has had its final parameters

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """Data to latent: `(y, log_det)`; `given` is the conditions or one `fk.Prepared`."""
        y, log_derivative = (self._by_passes if self.inverted else self._at_once)(x, given)
        return y, event_sum(log_derivative)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """Latent to data: `(x, log_det)`, the log-det of the inverse map."""
        x, log_derivative = (self._at_once if self.inverted else self._by_passes)(y, given)
        return x, event_sum(log_derivative)

    def log_scales(self, x: Tensor, *given: Any) -> Tensor:
        """The log-derivatives applied to x, `(B, D)`."""
        return (self._by_passes if self.inverted else self._at_once)(x, given)[1]

    def extra_repr(self) -> str:
        """The event shape, the number of passes, and which direction takes them."""
        return f"{self.in_shapes[0]}, passes={self.passes}, inverted={self.inverted}"


def _levels_of_order(owner: str, size: int, order: Any, passes: int | None) -> list[int]:
    """For each element, the group of the order that it is in."""
    if passes is not None and (not is_int(passes) or not 1 <= passes <= size):
        raise ConfigError(f"{owner}: passes must be an int from 1 to D = {size}, got {passes!r}")
    if order is None or order == "reversed":
        sequence = list(range(size))[:: -1 if order else 1]
    elif order == "random":
        sequence = torch.randperm(size, device="cpu").tolist()
    else:
        sequence = list(order) if isinstance(order, (tuple, list)) else []
        if any(type(i) is not int for i in sequence) or sorted(sequence) != list(range(size)):
            raise ConfigError(
                f"{owner}: order must be None, 'reversed', 'random' or a permutation of 0 to {size - 1}, got {order!r}"
            )
    levels = [0] * size
    for rank, element in enumerate(sequence):
        levels[element] = rank * (passes or size) // size
    return levels


def _read_adjacency(owner: str, size: int, adjacency: Any) -> list[set[int]]:
    rows = adjacency.tolist() if isinstance(adjacency, Tensor) else adjacency
    try:
        lengths = [len(row) for row in rows]
    except TypeError:
        lengths = []
    if lengths != [size] * size:
        raise ShapeError(f"{owner}: adjacency must be {size} rows of {size} booleans, got rows of lengths {lengths}")
    return [{j for j, seen in enumerate(row) if seen} for row in rows]


def _levels_of_graph(owner: str, visible: Sequence[set[int]]) -> list[int]:
    """For each element, the longest path that leads to it."""
    levels: dict[int, int] = {}
    while len(levels) < len(visible):
        ready = [i for i, seen in enumerate(visible) if i not in levels and seen <= levels.keys()]
        if not ready:
            stuck = [i for i in range(len(visible)) if i not in levels]
            raise ConfigError(f"{owner}: adjacency must be acyclic, got a cycle among or before the elements {stuck}")
        levels.update({i: 1 + max((levels[j] for j in visible[i]), default=-1) for i in ready})
    return [levels[i] for i in range(len(visible))]
