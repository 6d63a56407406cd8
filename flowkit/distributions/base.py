"""The contract of a base distribution, and what those with predicted parameters share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.errors import ConditionError, ConfigError, InputError, ShapeError
from flowkit.shapes import Shape, as_shapes
from flowkit.strict_json import shown
from flowkit.subnets import MLP, build_subnet


def check_dim(owner: str, dim: int) -> None:
    """Refuse a number of dimensions that is no int of at least 1.

    Raises:
        ConfigError: where it is so.
    """
    if not is_int(dim) or dim < 1:
        raise ConfigError(f"{owner} needs a positive number of dimensions, got {shown(dim)}")


def _of_what_fits(name: str) -> Callable[[Callable], Callable]:
    """Has a method called with a latent and conditions of the base's shapes alone; a compiled graph looks at none."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def wrapped(self: Base, first: Any, *conditions: Any, **keywords: Any) -> Tensor:
            if not torch.compiler.is_compiling():
                _check_conditions(self, conditions, _lead_of_latent(self, first) if name == "log_prob" else None)
            return method(self, first, *conditions, **keywords)

        return wrapped

    return decorate


def _lead_of_latent(base: Base, z: Any) -> torch.Size:
    if not isinstance(z, Tensor) or not z.is_floating_point() or z.shape[-1:] != (base.dim,):
        got = f"{z.dtype} of shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise InputError(f"{type(base).__name__}: z must be floating-point of shape (..., {base.dim}), got {got}")
    return z.shape[:-1]


def _check_conditions(base: Base, conditions: Sequence[Any], lead: torch.Size | None) -> None:
    owner, shapes = type(base).__name__, base.condition_shapes
    if len(conditions) != len(shapes):
        wanted = ", ".join(map(str, shapes)) or "none"
        raise ConditionError(f"{owner} takes conditions of shape {wanted}, got {len(conditions)} of them")
    leads = [] if lead is None else [lead]
    for condition, shape in zip(conditions, shapes, strict=True):
        if not isinstance(condition, Tensor) or condition.shape[condition.dim() - len(shape) :] != shape:
            got = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
            raise ConditionError(
                f"{owner}: a condition must be of shape ({', '.join(['...', *map(str, shape)])}), got {got}"
            )
        leads.append(condition.shape[: condition.dim() - len(shape)])
    if len(set(leads)) > 1:
        try:
            torch.broadcast_shapes(*leads)
        except RuntimeError as error:
            listed = " and ".join(str(tuple(each)) for each in leads)
            raise ConditionError(f"{owner}: batches of shapes {listed} do not broadcast") from error


class Base(nn.Module):
    """A distribution of the flat latent z `(..., D)`, conditional or not.

    Implementing one: `log_prob`, and either `noise` and `from_noise` or, where samples are no function of noise whose
    law is fixed, `sample`; `condition_shapes` where it is conditional, which the flow fills
    from the wires that `fk.Flow(graph, base=..., base_given=...)` names. Temperature scales z about the base's
    location; log-probabilities are always those of the untempered distribution.

    Args:
        dim: D.
        given: event shapes of its conditions.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # An author's own methods see nothing but what fits: a z of one element would broadcast to a wrong density.
        for name in ("log_prob", "sample"):
            if name in cls.__dict__:
                setattr(cls, name, _of_what_fits(name)(cls.__dict__[name]))

    def __init__(self, dim: int, given: int | Sequence = ()):
        super().__init__()
        check_dim(type(self).__name__, dim)
        self.dim = dim
        self.condition_shapes = as_shapes(given)

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """Log-density of z `(..., D)`, `(...)`; the conditions' leading dimensions broadcast against z's."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    @_of_what_fits("sample")
    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """`(*shape, D)`, differentiable in the base's parameters; the conditions broadcast against `shape`."""
        return self.from_noise(self.noise(shape), *conditions, temperature=temperature)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Draws `(*shape, N)` that depend neither on parameters nor on conditions: what `from_noise` takes."""
        raise NotImplementedError(f"{type(self).__name__} has no noise, so nothing to make samples of")

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """The samples `(..., D)` of noise `(..., N)`, no random numbers drawn: what an exported `sample` runs."""
        raise NotImplementedError(f"{type(self).__name__} has no from_noise, so its samples cannot be made of noise")

    def log_prob_of_parts(self, parts: Sequence[Tensor], *conditions: Tensor) -> Tensor:
        """Log-density of a latent that lies in several tensors `(..., D_i)`; override where no flat copy is needed."""
        return self.log_prob(parts[0] if len(parts) == 1 else torch.cat(list(parts), -1), *conditions)

    def extra_repr(self) -> str:
        """The number of dimensions, and the conditions."""
        return f"{self.dim}" + (f", given={self.condition_shapes}" if self.condition_shapes else "")


class Parametrized(Base):
    """A base whose numbers are learned, or learned plus what a subnet predicts from the conditions: abstract.

    Without conditions they are the parameter `numbers`; with conditions a subnet, whose last layer starts at zero,
    adds to it, so that a conditional base starts as the unconditional one.

    Args:
        dim: D.
        start: the numbers at the start, `(N,)`.
        given: event shapes of the conditions, vectors.
        subnet: the recipe of the net, `fk.MLP` by default.

    Raises:
        ShapeError: a condition that is not a vector.
    """

    def __init__(self, dim: int, start: Tensor, given: int | Sequence = (), subnet: Callable | None = None):
        super().__init__(dim, given)
        self.numbers = nn.Parameter(start.to(torch.get_default_dtype()))
        self.net = predictor(type(self).__name__, self.condition_shapes, len(start), subnet)

    def predicted(self, conditions: tuple[Tensor, ...]) -> Tensor:
        """The numbers, `(..., N)`, float32 or wider."""
        if self.net is None:
            return self.numbers
        return self.numbers + predict(self.net, conditions)


def predictor(name: str, conditions: tuple[Shape, ...], count: int, subnet: Callable | None) -> Any:
    """The net that predicts `count` numbers from the conditions; None without any.

    Raises:
        ShapeError: a condition that is not a vector.
        ConfigError: a subnet without conditions.
    """
    if any(len(shape) != 1 for shape in conditions):
        raise ShapeError(f"{name} takes vectors as conditions, got {conditions}: use fk.ToVector()")
    if subnet is not None and not conditions:
        raise ConfigError(f"{name}: a subnet needs conditions to predict from, got {subnet!r} and none")
    if not conditions:
        return None
    return build_subnet(subnet if subnet is not None else MLP(), (sum(shape[0] for shape in conditions),), (), count)


def predict(net: Any, conditions: tuple[Tensor, ...]) -> Tensor:
    """What the net makes of the conditions, which broadcast against each other: `(..., count)`, float32 or wider."""
    lead = torch.broadcast_shapes(*[c.shape[:-1] for c in conditions])
    flat = torch.cat([c.expand(*lead, c.shape[-1]) for c in conditions], -1)
    predicted = net(flat.reshape(-1, flat.shape[-1]))
    # Wide before anything is drawn or summed: under autocast the net may give half precision.
    wide = predicted.to(torch.float64 if predicted.dtype == torch.float64 else torch.float32)
    return wide.reshape(*lead, wide.shape[-1])
