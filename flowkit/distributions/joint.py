"""A base for each of several named outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.distributions.base import Base
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import register
from flowkit.shapes import as_shapes
from flowkit.strict_json import shown


@register("flowkit.joint_base")
class JointBase(Base):
    """Independent bases, one for each output of the graph, by name and in the order in which outputs are declared.

    log p(z) = the sum of log p_i(z_i), z_i the part of z that output i gives. Conditions and temperature are passed on:
    every conditional part gets all of the joint conditions, or those that `takes` lists for it by their index. A flow
    refuses names, an order or dimensions that are not those of its outputs.

    Args:
        parts: bases by the outputs' names, instances of `fk.Base`.
        given: event shapes of the joint conditions; by default those of the conditional parts, which must then agree.
        takes: for a part, by name, the indices of the joint conditions that it takes.

    Raises:
        ConfigError: no parts, parts that are no `fk.Base`, unknown names or indices in `takes`.
        ShapeError: a part takes other conditions than it would get.

    >>> from flowkit.distributions import Laplace, StandardNormal
    >>> base = JointBase({"fine": StandardNormal(6), "coarse": Laplace(2)})
    >>> base.dim, base.sample((5,)).shape
    (8, torch.Size([5, 8]))
    """

    def __init__(
        self,
        parts: Mapping[str, Base],
        given: int | Sequence | None = None,
        takes: Mapping[str, Sequence[int]] | None = None,
    ):
        if not isinstance(parts, Mapping) or not parts or not all(isinstance(p, Base) for p in parts.values()):
            raise ConfigError(f"JointBase needs instances of fk.Base by the names of outputs, got {shown(parts)}")
        if wrong := [name for name in parts if not (isinstance(name, str) and name.isidentifier())]:
            raise ConfigError(f"JointBase: outputs have identifiers for names, got {shown(wrong[0])}")
        if given is None:
            given = next((part.condition_shapes for part in parts.values() if part.condition_shapes), ())
        super().__init__(sum(part.dim for part in parts.values()), given)
        takes = dict(takes or {})
        if unknown := [name for name in takes if name not in parts]:
            raise ConfigError(f"JointBase: takes names '{unknown[0]}', the parts are {', '.join(parts)}")
        self.parts: Any = nn.ModuleDict(parts)
        self.takes: dict[str, tuple[int, ...]] = {}
        known = range(len(self.condition_shapes))
        for name, part in parts.items():
            indices = tuple(takes.get(name, known if part.condition_shapes else ()))
            if any(i not in known for i in indices):
                raise ConfigError(f"JointBase: '{name}' takes conditions {indices}, there are {len(known)}")
            got = tuple(self.condition_shapes[i] for i in indices)
            if as_shapes(part.condition_shapes) != got:
                raise ShapeError(
                    f"JointBase: '{name}' ({type(part).__name__}) takes conditions of shapes {part.condition_shapes}, "
                    f"it would get {got}"
                )
            self.takes[name] = indices
        self.sizes = [part.dim for part in parts.values()]

    def check_latents(self, dims: Mapping[str, int]) -> None:
        """Refuse outputs of other names, in another order, or of other dimensions; called by the flow."""
        own = {name: part.dim for name, part in self.parts.items()}
        if list(own.items()) != list(dims.items()):
            raise ShapeError(f"JointBase has parts {own}, in this order, the flow's outputs are {dict(dims)}")

    def _conditions(self, name: str, conditions: Sequence[Tensor]) -> list[Tensor]:
        return [conditions[i] for i in self.takes[name]]

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """The sum over the parts."""
        return self.log_prob_of_parts(z.split(self.sizes, -1), *conditions)

    def log_prob_of_parts(self, parts: Sequence[Tensor], *conditions: Tensor) -> Tensor:
        """The same, of z in several tensors; without a copy where they are the outputs."""
        if [part.shape[-1] for part in parts] != self.sizes:
            return self.log_prob(torch.cat(list(parts), -1), *conditions)
        terms = [
            base.log_prob(z, *self._conditions(name, conditions))
            for (name, base), z in zip(self.parts.items(), parts, strict=True)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """A sample of each, side by side."""
        drawn = [
            base.sample(shape, *self._conditions(name, conditions), temperature=temperature)
            for name, base in self.parts.items()
        ]
        return torch.cat(drawn, -1)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """The noise of each, side by side; a part whose samples are no function of noise says so."""
        return torch.cat([base.noise(shape) for base in self.parts.values()], -1)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """What each makes of its noise, side by side."""
        pieces = noise.split([base.noise((0,)).shape[-1] for base in self.parts.values()], -1)
        made = [
            base.from_noise(piece, *self._conditions(name, conditions), temperature=temperature)
            for (name, base), piece in zip(self.parts.items(), pieces, strict=True)
        ]
        return torch.cat(made, -1)
