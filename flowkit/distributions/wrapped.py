"""Any distribution of torch.distributions as a base."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from flowkit.distributions.base import Base
from flowkit.errors import ConfigError, InputError, ShapeError
from flowkit.registry import register

Factory = str | Callable[..., td.Distribution]


@register("flowkit.torch_distribution")
class TorchDistribution(Base):
    """Any continuous `torch.distributions.Distribution` of vectors as a base.

    log p(z) is the distribution's; minus infinity outside of its support, and for von Mises' angles, also those in a
    mixture or transformed, outside of [-pi, pi], one turn. Where it is of single numbers, there are D of
    them, independent. Arguments that are numbers or lists of numbers become buffers, so that they follow the dtype and
    the device; nothing is learned.

    Args:
        dim: D.
        factory: what makes the distribution of the arguments: the name of a class in `torch.distributions`, such as
            `"Gumbel"`; a class or function that is registered with `fk.register`; or any other callable, with which a
            flow works, and cannot be saved (`fk.save` names it). A name is looked up in `torch.distributions` alone, so
            a file cannot make flowkit import anything.
        given: event shapes of conditions, which the factory then gets first, `(..., *shape)`.
        arguments: for the factory, by name: numbers, lists of numbers, anything else as it is.

    Temperature scales about the mean where that is finite, else about the mode; where neither is, temperatures other
    than 1 are refused.

    Raises:
        ConfigError: no such factory; it makes no distribution, a discrete one, or one on a simplex; arguments that the
            distribution refuses.
        ShapeError: a distribution of vectors of another size.

    >>> TorchDistribution(2, "Gumbel", loc=0.0, scale=[1.0, 2.0]).sample((5,)).shape
    torch.Size([5, 2])
    """

    def __init__(self, dim: int, factory: Factory, given: int | Sequence = (), **arguments: Any):
        super().__init__(dim, given)
        self.factory = _find(factory) if isinstance(factory, str) else factory
        if not callable(self.factory):
            raise ConfigError(f"TorchDistribution needs a name, a class or a function, got {factory!r}")
        self.label = factory if isinstance(factory, str) else getattr(factory, "__name__", repr(factory))
        self.arguments: dict[str, Any] = {}
        self.numeric: list[str] = []
        for name, value in arguments.items():
            if (isinstance(value, int | float) and not isinstance(value, bool)) or isinstance(value, list | tuple):
                self.register_buffer(f"argument_{name}", torch.as_tensor(value, dtype=torch.get_default_dtype()))
                self.numeric.append(name)
            else:
                self.arguments[name] = value
        self.register_buffer("origin", torch.zeros(()), persistent=False)  # follows dtype and device
        self.origin: Tensor
        if not self.origin.is_meta:
            self._check_arguments()
            self.distribution(*[torch.zeros(shape) for shape in self.condition_shapes])

    def _check_arguments(self) -> None:
        """Refuse a negative scale and the like; where there are conditions, they may mend or be what is wrong."""
        if self.condition_shapes or not (inspect.isclass(self.factory) and issubclass(self.factory, td.Distribution)):
            return
        numbers = {name: getattr(self, f"argument_{name}") for name in self.numeric}
        try:
            self.factory(**numbers, **{"validate_args": True, **self.arguments})
        except (TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"TorchDistribution: {self.label} cannot be made: {why}") from error

    def distribution(self, *conditions: Tensor) -> td.Distribution:
        """The distribution itself, of event shape `(D,)`.

        Raises:
            ConfigError, ShapeError: see the class.
        """
        numbers = {name: getattr(self, f"argument_{name}") for name in self.numeric}
        if inspect.isclass(self.factory) and issubclass(self.factory, td.Distribution):
            numbers["validate_args"] = False
        try:
            made = self.factory(*conditions, **numbers, **self.arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"TorchDistribution: {self.label} cannot be made: {error}") from error
        if not isinstance(made, td.Distribution):
            raise ConfigError(f"TorchDistribution: {self.label} made a {type(made).__name__}, no torch Distribution")
        made = _unchecked(made)
        try:
            discrete = made.support is not None and made.support.is_discrete
        except NotImplementedError:
            discrete = False
        if discrete:
            raise ConfigError(f"TorchDistribution: {self.label} is discrete, a base needs a density")
        if not made.event_shape:
            lead = made.batch_shape[:-1]
            if made.batch_shape[-1:] != (self.dim,):
                if made.batch_shape[-1:] not in ((), (1,)):
                    raise ShapeError(
                        f"TorchDistribution: {self.label} has {made.batch_shape[-1]} elements, not {self.dim}"
                    )
                made = made.expand((*lead, self.dim))
            made = td.Independent(made, 1, validate_args=False)
        if made.event_shape != (self.dim,):
            raise ShapeError(
                f"TorchDistribution: {self.label} is of shape {tuple(made.event_shape)}, the base of ({self.dim},)"
            )
        if _on_simplex(made):
            raise ConfigError(f"TorchDistribution: {self.label} lives on a simplex, so has no density in ({self.dim},)")
        return made

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """See the class; NaN where z is."""
        made = self.distribution(*conditions)
        if not z.numel():  # torch cannot reshape an empty batch
            return z.sum(-1).expand(torch.broadcast_shapes(z.shape[:-1], made.batch_shape))
        log_prob = made.log_prob(z)
        inside = _inside(made, z)
        if inside is None:
            return log_prob
        nan = z.isnan().any(-1)
        return torch.where(nan, z.sum(-1), torch.where(inside | nan, log_prob, -math.inf))

    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """The distribution's own draws, scaled about its mean or mode."""
        made = self.distribution(*conditions)
        lead = made.batch_shape
        if lead:
            made = made.expand(torch.broadcast_shapes(lead, tuple(shape)))
            shape = ()
        z = made.rsample(tuple(shape)) if made.has_rsample else made.sample(tuple(shape))
        if temperature == 1:
            return z
        centre = self._centre(made)
        return centre + (z - centre) * temperature

    def _centre(self, made: td.Distribution) -> Tensor:
        for name in ("mean", "mode"):
            try:
                centre = getattr(made, name)
            except (NotImplementedError, AttributeError):
                continue
            if bool(centre.isfinite().all()):
                return centre
        raise InputError(f"TorchDistribution: {self.label} has no finite mean or mode, so its temperature must be 1")

    def extra_repr(self) -> str:
        """D, the conditions, and the factory."""
        return f"{super().extra_repr()}, {self.label}"


def _on_simplex(made: td.Distribution) -> bool:
    try:
        return made.support is td.constraints.simplex
    except NotImplementedError:
        return False


PARTS = ("base_dist", "_component_distribution", "_mixture_distribution")  # what distributions are made of


def _unchecked(made: td.Distribution) -> td.Distribution:
    """A copy that computes the density of whatever it gets: data outside has density 0, it is no error."""
    made = copy.copy(made)
    made._validate_args = False
    for name in PARTS:
        if isinstance(part := made.__dict__.get(name), td.Distribution):
            setattr(made, name, _unchecked(part))
    return made


def _inside(made: td.Distribution, z: Tensor) -> Tensor | None:
    """Where z `(..., *event)` has a density, `(...)`; None where the distribution does not say.

    What torch calls the support of a transformed distribution is its last transform's image, whatever the base covers,
    and that of von Mises' distribution is all of the line, although its density is that of one turn.
    """
    try:
        inside = made.support.check(z) if made.support is not None else None
    except NotImplementedError:
        return None
    parts, at, extra = None, z, 0
    if isinstance(made, td.VonMises):
        parts = z.abs() <= math.pi
    elif isinstance(made, td.Independent):
        parts, extra = _inside(made.base_dist, z), made.reinterpreted_batch_ndims
    elif isinstance(made, td.MixtureSameFamily):
        components = _inside(made.component_distribution, z.unsqueeze(-1 - len(made.event_shape)))
        parts = components if components is None else components.any(-1)
    elif isinstance(made, td.TransformedDistribution):
        for transform in reversed(made.transforms):
            at = transform.inv(at)
        parts, extra = _inside(made.base_dist, at), len(made.event_shape) - len(made.base_dist.event_shape)
    if parts is not None and extra > 0:
        parts = parts.flatten(-extra).all(-1)
    return inside if parts is None else parts if inside is None else inside & parts


def _find(name: str) -> Callable[..., td.Distribution]:
    found = getattr(td, name, None)
    if not (inspect.isclass(found) and issubclass(found, td.Distribution)):
        raise ConfigError(f"TorchDistribution: torch.distributions has no distribution '{name}'")
    return found
