"""Any univariate map on every element by itself, its parameters learned or predicted from the conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, Prepared, event_sum, join
from flowkit.bijections.conditioning import check_conditions, default_subnet
from flowkit.errors import ConfigError
from flowkit.registry import Example, register
from flowkit.shapes import numel
from flowkit.subnets import MLP, ConvNet, build_subnet
from flowkit.univariate import (
    Additive,
    Affine,
    CubicSpline,
    LinearSpline,
    QuadraticSpline,
    RationalQuadraticSpline,
    VolumePreservingAffine,
    build_univariate,
)
from flowkit.univariate.univariate import offer_examples

DEFAULT = RationalQuadraticSpline.recipe(bins=8)


def _examples() -> list[Example]:
    mlp, conv = MLP(hidden=5, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    spline, affine = RationalQuadraticSpline.recipe(bins=3), Affine.recipe(clamp="tanh", limit=1.0)
    return [
        Example((3,)),
        Example((1, 2, 3), univariate=affine),
        Example((), given=((2,), (1,)), subnet=mlp, univariate=spline),
        Example((3, 2), given=((2, 2),), subnet=conv, univariate=spline),
        Example((2,), given=(2,), subnet=mlp, univariate=QuadraticSpline.recipe(bins=3), spread=0.5),
        Example((2,), given=(2,), subnet=mlp, univariate=CubicSpline.recipe(bins=2)),
        Example((1, 2, 3), univariate=LinearSpline.recipe(bins=4)),
    ]


@register("flowkit.elementwise", examples=_examples)
class Elementwise(Bijection):
    """y = f(x; p) for every element by itself, f any univariate map; p is learned, or predicted from the conditions.

    forward: y_i = f(x_i; p_i), log-det the sum of log f'(x_i; p_i) over the event.
    inverse: x_i = f^-1(y_i; p_i), log-det minus that sum at x.

    Without conditions every element has parameters p_i of its own, which are learned. With conditions `(B, C', ...)` of
    the data's spatial size (vectors for scalar data) a subnet predicts them. It starts as the identity where the
    univariate map does, unless there is a `spread`: components of a mixture that start alike are slow to part.

    Shapes: x `(B, C, ...)` or `(B,)`, log_det `(B,)`. State: the subnet, or `numbers` `(N C, ...)`, N of each element,
    which on maps depends on their size; with a spread both, and p is their sum.

    Args:
        shape: event shape `(C, ...)`, or `()`.
        given: shapes of the conditions.
        univariate: a recipe such as `fk.RationalQuadraticSpline.recipe(bins=8)`, which is the default, or a class of
            `fk.Univariate`.
        subnet: with conditions, a recipe, see `flowkit.subnets`; by default `MLP()` for vectors and scalars,
            `ConvNet()` for maps.
        spread: the standard deviation of the normal that `numbers` are drawn from at the start.

    Raises:
        ShapeError: a condition of another spatial size; a subnet that does not fit.
        ConfigError: a univariate map that is not a recipe; a subnet without conditions, or not a recipe; a spread that
            is negative or not finite.

    >>> elementwise = Elementwise((3,), given=(10,), univariate=Affine.recipe(clamp="atan"))
    >>> y, log_det = elementwise(torch.ones(5, 3), torch.zeros(5, 10))
    >>> y.shape, log_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        univariate: Any = DEFAULT,
        subnet: Any = None,
        spread: float = 0.0,
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        name = type(self).__name__
        channels = check_conditions(name, shape, self.condition_shapes)
        if subnet is not None and not self.condition_shapes:
            raise ConfigError(f"{name}: a subnet needs conditions to predict from, got {subnet!r} and none")
        if not 0 <= spread < math.inf:
            raise ConfigError(f"{name}: spread must be 0 or more and finite, got {spread!r}")
        self.univariate: Any = build_univariate(name, univariate, shape)
        # An instance makes the promises of its univariate map, which the class cannot know.
        self.iterative, self.tolerance = self.univariate.iterative, self.univariate.tolerance
        offer_examples(self, (self.univariate,), self.in_shapes[0])
        self.volume_preserving = isinstance(self.univariate, Additive | VolumePreservingAffine)
        learned_affine = isinstance(self.univariate, Affine) and not self.condition_shapes
        self.constant_log_det = self.volume_preserving or learned_affine
        count = self.univariate.numbers_per_element * numel(shape[:1])
        self.subnet: nn.Module | None = None
        if self.condition_shapes:
            recipe = default_subnet(shape) if subnet is None else subnet
            self.subnet = build_subnet(recipe, (channels, *shape[1:]), (), count)
        self.numbers: nn.Parameter | None = None
        if spread or self.subnet is None:
            start = torch.randn(count, *shape[1:]) * float(spread) if spread else torch.zeros(count, *shape[1:])
            self.numbers = nn.Parameter(start)

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """The predicted numbers for the rows of the conditions: all of the work but the map itself."""
        return (self._predicted(conditions),) if conditions else None

    def _predicted(self, conditions: Sequence[Tensor]) -> Tensor:
        assert self.subnet is not None
        predicted = self.subnet(join(conditions))
        return predicted if self.numbers is None else predicted + self.numbers

    def _parameters_for(self, x: Tensor, given: tuple) -> Sequence[Tensor]:
        """The univariate map's parameters for every row of x, which are views but where rows were prepared."""
        if self.subnet is None:
            assert self.numbers is not None
            predicted = self.numbers.unsqueeze(0).expand(x.shape[0], *self.numbers.shape)
        else:
            predicted = given[0][0] if isinstance(given[0], Prepared) else self._predicted(given)
        rows = predicted.shape[0]
        if rows != x.shape[0]:  # x has S x R rows, samples outermost
            samples = x.shape[0] // rows if rows else 0
            predicted = predicted.expand(samples, *predicted.shape).flatten(0, 1)
        return self.univariate.split(predicted)

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """Data to latent: `(y, log_det)`; `given` is the conditions or one `fk.Prepared`."""
        y, log_derivative = self.univariate(x, *self._parameters_for(x, given))
        return y, event_sum(log_derivative)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """Latent to data: `(x, log_det)`, the log-det of the inverse map."""
        x, log_derivative = self.univariate.inverse(y, *self._parameters_for(y, given))
        return x, event_sum(log_derivative)

    def log_scales(self, x: Tensor, *given: Any) -> Tensor:
        """The log-derivatives applied to x, in x's shape."""
        return self.univariate(x, *self._parameters_for(x, given))[1]

    def extra_repr(self) -> str:
        """The event shape."""
        return str(self.in_shapes[0])
