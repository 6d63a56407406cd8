"""A density of noise given data and conditions: what dequantisation, augmentation and slicing draw from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from flowkit.bijection import Bijection, as_tuple, event_sum
from flowkit.bijections.elementwise import ElementwiseAffine
from flowkit.distributions import Base
from flowkit.errors import ConfigError, FlowkitError, ShapeError
from flowkit.shapes import Shape, numel
from flowkit.strict_json import shown

LATENTS = ("normal", "logistic")
LIMIT = 4.0  # on the log-scale that the default predicts: e^4 is far beyond what noise needs
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Noise(nn.Module):
    """q(e | x, c): noise e of one shape, its density conditioned on data x and on the conditions c.

    What it is made of, `recipe`:

    | recipe | q |
    | --- | --- |
    | None | independent elements, location and scale predicted by `subnet` from x and c; standard at the start |
    | a class of `fk.Base`, or a callable | that base of e, flat; given x and c, flat, where it takes `given` |
    | an instance of `fk.Base` | that base, unconditional, or with conditions of those flat shapes |
    | an instance of a bijection | a flow: its input is e, its conditions x and c, or none; its latents are standard |

    Args:
        owner: the class that an error names.
        recipe: see above.
        shape: of e.
        given: the shapes of x and of the conditions.
        subnet: the recipe of the net, where `recipe` is None.
        latent: the standard law of a flow's latents, `"normal"` or `"logistic"`.

    Raises:
        ConfigError: a recipe that is none of these; a subnet beside one.
        ShapeError: one of other shapes.
    """

    def __init__(
        self,
        owner: str,
        recipe: Any,
        shape: Shape,
        given: tuple[Shape, ...],
        subnet: Any = None,
        latent: str = "normal",
    ):
        super().__init__()
        self.shape, self.latent = shape, latent
        self.base: Any = None
        self.flow: Any = None
        if recipe is None:
            recipe = ElementwiseAffine(shape, given=given, subnet=subnet, clamp="softsign", limit=LIMIT)
        elif subnet is not None:
            raise ConfigError(f"{owner}: a subnet predicts the default noise alone, got noise={recipe!r} beside it")
        if isinstance(recipe, Bijection):
            if recipe.in_shapes != (shape,) or recipe.condition_shapes not in ((), given):
                raise ShapeError(
                    f"{owner}: noise must be a bijection of input shape {shape} with no conditions or those of shapes "
                    f"{given}, {type(recipe).__name__} has {recipe.in_shapes} and {recipe.condition_shapes}"
                )
            self.flow = recipe
            return
        flat = tuple((numel(each),) for each in given)
        if not isinstance(recipe, nn.Module):
            if not callable(recipe):
                raise ConfigError(
                    f"{owner}: noise must be a fk.Base, a class of them, or an instance of a bijection, got {recipe!r}"
                )
            try:
                conditional = "given" in inspect.signature(recipe).parameters
                recipe = recipe(numel(shape), given=flat) if conditional else recipe(numel(shape))
            except FlowkitError:
                raise
            except Exception as error:
                raise ConfigError(f"{owner}: noise {shown(recipe)} makes no fk.Base of a dimension: {error}") from error
        if not isinstance(recipe, Base):
            raise ConfigError(f"{owner}: noise must be a fk.Base or a bijection, got {type(recipe).__name__}")
        if recipe.dim != numel(shape) or recipe.condition_shapes not in ((), flat):
            raise ShapeError(
                f"{owner}: noise must be a base of {numel(shape)} dimensions with no conditions or those of shapes "
                f"{flat}, {type(recipe).__name__} has {recipe.dim} and {recipe.condition_shapes}"
            )
        self.base = recipe

    def _flow_conditions(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        return given if self.flow.condition_shapes else ()

    def _base_conditions(self, given: Sequence[Tensor]) -> list[Tensor]:
        if not self.base.condition_shapes:
            return []
        return [each.flatten(1) if each.dim() > 1 else each.unsqueeze(1) for each in given]

    def _log_latent(self, z: Tensor) -> Tensor:
        """The log-density of the standard law, summed over the event."""
        if self.latent == "logistic":
            return event_sum(logsigmoid(z) + logsigmoid(-z))
        return event_sum(-0.5 * z.square() - HALF_LOG_2PI)

    def _draw_latent(self, shape: Shape, x: Tensor) -> Tensor:
        full = (x.shape[0], *shape)
        if self.latent == "logistic":
            draws = torch.empty(2, *full, dtype=x.dtype, device=x.device).exponential_().log()
            return draws[0] - draws[1]  # the difference of two Gumbel draws is logistic, without a logit of 0 or 1
        return torch.randn(full, dtype=x.dtype, device=x.device)

    def draw(self, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """`(e, log q(e | x, c))`, one draw for each row of x; differentiable where the recipe's samples are."""
        given = (x, *conditions)
        if self.base is not None:
            flat = self._base_conditions(given)
            e = self.base.sample((x.shape[0],), *flat)
            return e.reshape(x.shape[0], *self.shape), self.base.log_prob(e, *flat)
        z = tuple(self._draw_latent(shape, x) for shape in self.flow.out_shapes)
        e, log_det = self.flow.inverse(*z, *self._flow_conditions(given))
        return e, self._sum([self._log_latent(each) for each in z]) - log_det

    def log_prob(self, e: Tensor, x: Tensor, *conditions: Tensor) -> Tensor:
        """log q(e | x, c), `(B,)`."""
        given = (x, *conditions)
        if self.base is not None:
            return self.base.log_prob(e.flatten(1), *self._base_conditions(given))
        z, log_det = self.flow(e, *self._flow_conditions(given))
        return self._sum([self._log_latent(each) for each in as_tuple(z)]) + log_det

    @staticmethod
    def _sum(terms: Sequence[Tensor]) -> Tensor:
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
