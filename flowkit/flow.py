"""Flow: an invertible network and a base distribution, together a density that is exact and can be sampled."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.assembly import find_base_wires, graph_of, make_base
from flowkit.backprop import check_options
from flowkit.bijection import Bijection, Prepared, as_tuple
from flowkit.call import Batch, check_batch, check_temperature, common_lead, is_tail, rows, sizes_of, to_rows
from flowkit.conditional import FlowDistribution
from flowkit.errors import ConfigError, InputError
from flowkit.graph import Graph, InvertibleNetwork, Wire
from flowkit.shapes import Shape, numel
from flowkit.trace import Trace, check_finite, initialize, trace

Data = Tensor | dict[str, Tensor]
Given = Tensor | Mapping[str, Tensor] | None


class Flow(nn.Module):
    """A density q(x | y) = p(f(x; y)) |det df/dx|, from a graph of bijections f and a base distribution p.

    Every method takes any number of leading batch dimensions, and conditions broadcast against the data's. x is a
    tensor
    `(..., *shape)` of the one data input, or a dictionary by name where there are several; `given` likewise for
    conditions. z is one flat tensor `(..., D)`, whatever the number of outputs: `latents` maps each output's name to
    its slice and shape.

    forward: z = f(x; y), log-det log|det df/dx|. inverse: x = f^-1(z; y), log-det log|det df^-1/dz|, `(...)`.

    Args:
        network: a `Graph`, which is built here (new weights for every part that was added as a class), a built
            `InvertibleNetwork`, or any `Bijection` (its inputs are then named x, its conditions y, its outputs z;
            x1, x2, ... where there are several).
        base: a distribution of z, an `fk.Base` or a module like one; or a callable that makes one from D (and, with
            `base_given`, `given=shapes`), such as the class `fk.DiagonalNormal`. Standard normal by default.
        base_given: the conditions of a conditional base: condition wires of the graph, features among them, or names.
        backprop: `"plain"`; `"reverse"`, whose memory does not grow with depth but for the snapshots; `"checkpoint"`;
            `"auto"`, reverse with as many plain blocks as the budget allows.
        snapshots: in reverse mode, keep the value after every so many blocks; 0 for none (then float32 drifts with
            depth).
        chunk: in reverse mode and checkpoint, the rows that a block takes at a time; None for all.
        budget: for `"auto"`, the bytes that a forward and backward pass may hold, gradients included.

    Attributes: `network`, `base`, `input_shapes`, `condition_shapes`, `latents` (dictionaries by name), `dim` (D).

    Raises:
        GraphError: the graph cannot be built.
        InputError, ConditionError: a call with wrong names, shapes, dtypes, devices or batch sizes.

    >>> import flowkit as fk
    >>> graph = fk.Graph()
    >>> y, x = graph.condition("y", (3,)), graph.input("x", (2,))
    >>> graph.output("z", graph.add(fk.AffineCoupling, x, given=y))
    >>> flow = fk.Flow(graph)
    >>> given = torch.zeros(5, 3)
    >>> flow.log_prob(torch.zeros(5, 2), given=given).shape, flow.sample((7,), given=given).shape
    (torch.Size([5]), torch.Size([7, 5, 2]))
    """

    def __init__(
        self,
        network: Graph | Bijection,
        base: nn.Module | Callable[..., nn.Module] | None = None,
        base_given: Wire | str | Sequence[Wire | str] | None = None,
        backprop: str = "plain",
        snapshots: int = 8,
        chunk: int | None = None,
        budget: int | None = None,
    ):
        super().__init__()
        graph = network if isinstance(network, Graph) else graph_of(network)
        wires = find_base_wires(graph, base_given)
        if isinstance(network, InvertibleNetwork):
            self.network = network
        else:
            self.network = InvertibleNetwork(graph=graph, also_used=wires)
        self._base_wires = tuple(wire.index for wire in wires)
        self._base_shapes = tuple(wire.shape for wire in wires)
        self.input_shapes: dict[str, Shape] = dict(zip(self.network.input_names, self.network.in_shapes, strict=True))
        self.condition_shapes: dict[str, Shape] = dict(
            zip(self.network.condition_names, self.network.condition_shapes, strict=True)
        )
        self._condition_dtypes = {wire.name: wire.dtype for wire in self.network.graph.conditions}
        self._latent_shapes = dict(zip(self.network.output_names, self.network.out_shapes, strict=True))
        self.latents: dict[str, tuple[slice, Shape]] = {}
        self.dim = 0
        for name, shape in self._latent_shapes.items():
            self.latents[name] = (slice(self.dim, self.dim + numel(shape)), shape)
            self.dim += numel(shape)
        sizes = {name: numel(shape) for name, shape in self._latent_shapes.items()}
        self.base: Any = make_base(base, self.dim, self._base_shapes, sizes)
        check_options(backprop, snapshots, chunk, budget)
        self.network.backprop, self.network.snapshots = backprop, snapshots
        self.network.chunk, self.network.budget = chunk, budget

    @classmethod
    def from_toml(cls, path: str | os.PathLike) -> Flow:
        """The flow, with new weights, of a graph and a base that somebody wrote by hand: see `docs/files.md`."""
        from flowkit.graph.toml import read_toml

        graph, base, base_given = read_toml(path)
        return cls(graph, base=base, base_given=base_given or None)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hugging Face Hub, with a model card: see `flowkit.interop.hub.push_to_hub`."""
        from flowkit.interop.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)

    # ------------------------------------------------------------------ density and samples

    def forward(self, x: Data, given: Given = None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`: the flat latent `(..., D)`, and log|det dz/dx| `(...)`."""
        parts, log_det, lead, _ = self._encode(x, self._conditions(given), None)
        flat = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return flat, log_det.reshape(lead)

    def inverse(self, z: Tensor, given: Given = None) -> tuple[Data, Tensor]:
        """`(x, log_det)` from the flat latent `(..., D)`: log|det dx/dz| `(...)`."""
        x, log_det, _ = self._decode(z, self._conditions(given), None, with_log_det=True)
        return x, log_det

    def log_prob(self, x: Data, given: Given = None) -> Tensor:
        """log q(x | y) in nats, `(...)`: exact where `exact` is True. NaN in the data propagates.

        Where a part changes the dimension (dequantisation, augmentation) it is one draw of a lower bound: the
        logarithm of the mean of exp over many draws, `log_prob(x.expand(draws, ...))`, tends to log q(x | y). Where a
        part is stochastic for another reason it is an estimate. `exact` says which part and why.
        """
        return self._log_prob(x, self._conditions(given), None)

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = (), given: Given = None, temperature: float = 1.0) -> Data:
        """Samples `(*shape, *batch of the conditions, *event)`; feature nets run once for each y. Without gradients.

        Temperature scales z about the base's location.
        """
        conditions = self._conditions(given)
        lead = torch.Size((*sizes_of(shape), *conditions.lead))
        return self._sample(lead, conditions, None, temperature, with_log_prob=False)[0]

    def given(self, given: Given = None) -> FlowDistribution:
        """The distribution q(x | y), its condition work done once: `.log_prob`, `.sample`, `.rsample` and the like."""
        return FlowDistribution(self, self._conditions(given))

    # ------------------------------------------------------------------ the latent

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """The flat latent `(..., D)` as named parts `(..., *shape)`; views."""
        self._check_latent(z)
        return {name: z[..., part].reshape(*z.shape[:-1], *shape) for name, (part, shape) in self.latents.items()}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Named parts as one flat latent `(..., D)`: the inverse of `split`."""
        batch = check_batch(parts, self._latent_shapes, "latent", self.network.reference)
        return torch.cat(
            [
                batch.tensors[n].expand(*batch.lead, *s).reshape(*batch.lead, numel(s))
                for n, s in self._latent_shapes.items()
            ],
            -1,
        )

    # ------------------------------------------------------------------ looking inside, and preparing for data

    def trace(self, x: Data, given: Given = None) -> Trace:
        """Every node's values, log-det, round-trip error and scales, in order; without gradients, in eval mode.

        Raises:
            NonFiniteError: the data or the conditions hold NaN or infinity; the message has the index.
        """
        inputs, conditions = self._finite_rows(x, given)
        return trace(self.network, inputs, conditions)

    def initialize(self, x: Data, given: Given = None, again: bool = False) -> Flow:
        """Data-dependent initialisation, in forward order, of the nodes not yet initialised (of all with `again`).

        Raises:
            NonFiniteError: the data, the conditions, or what a node makes of them hold NaN or infinity.
        """
        inputs, conditions = self._finite_rows(x, given)
        initialize(self.network, inputs, conditions, again)
        return self

    @property
    def exact(self) -> Exactness:
        """Whether `log_prob` is the exact likelihood: true, or false with the reason in its text."""
        why = [
            f"'{name}' ({type(part).__name__}) "
            f"{'changes the dimension' if part.dimension_changing else 'is stochastic'}"
            f"{part.inexact and f' ({part.inexact})'}"
            for name, part in self.network.nodes.items()
            if isinstance(part, Bijection) and (part.dimension_changing or part.stochastic)
        ]
        return Exactness("" if not why else f"log_prob is an estimate or a bound: {'; '.join(why)}")

    @property
    def backprop(self) -> str:
        """How gradients are computed, `"plain"`, `"checkpoint"`, `"reverse"` or `"auto"`: see `flowkit.backprop`."""
        return self.network.backprop

    @backprop.setter
    def backprop(self, mode: str) -> None:
        check_options(mode, self.network.snapshots, self.network.chunk, self.network.budget)
        if mode != "plain" and self.network._compiled_call_impl is not None:
            raise ConfigError(f"a flow compiled as a whole takes backprop='plain' alone, got {mode!r}")
        self.network.backprop = mode

    @property
    def drift(self) -> float:
        """In reverse mode, since the last forward: the largest relative distance of a value from its snapshot."""
        return float(self.network.drift)

    def resized(self, **shapes: int | Sequence[int]) -> Flow:
        """The same flow, sharing all weights, for data and conditions of other sizes: `flow.resized(ab=(2, 128, 128))`.

        Raises:
            GraphError: a part's parameters depend on the size; it is named. A name that is not one.
        """
        from flowkit.resize import resized

        return resized(self, shapes)

    def __repr__(self) -> str:
        from flowkit.graph.draw import summary

        inside = summary(self.network.graph, "Flow", self.network.nodes).rsplit("\n", 1)[0]
        return f"{inside}\n  base: {self.base!r}\n)"

    # ------------------------------------------------------------------ the work

    def _conditions(self, given: Given) -> Batch:
        return check_batch(given, self.condition_shapes, "condition", self.network.reference, self._condition_dtypes)

    def _finite_rows(self, x: Data, given: Given) -> tuple[list[Tensor], list[Tensor]]:
        data, conditions = check_batch(x, self.input_shapes, "input", self.network.reference), self._conditions(given)
        check_finite(data.tensors, "input")
        check_finite(conditions.tensors, "condition")
        lead = common_lead(data, conditions, "input")
        return rows(data, self.input_shapes, lead), rows(conditions, self.condition_shapes, lead)

    def _prepare(self, conditions: Batch) -> Prepared | None:
        """All the work that depends on the conditions alone, at their own rows."""
        if not conditions.tensors:
            return None
        return Prepared(self.network.prepare(*rows(conditions, self.condition_shapes, conditions.lead)) or ())

    def _arguments(self, conditions: Batch, lead: torch.Size, prepared: Prepared | None) -> tuple:
        """What the network gets for its conditions: themselves where each row has its own, else what was prepared."""
        if not conditions.tensors:
            return ()
        if prepared is None and conditions.lead == lead:
            plain = rows(conditions, self.condition_shapes, lead)
            return (Prepared((self.network.condition_values(*plain), {})),) if self._base_wires else tuple(plain)
        prepared = prepared if prepared is not None else self._prepare(conditions)
        assert prepared is not None
        if conditions.lead == lead or is_tail(conditions.lead, lead):
            return (prepared,)
        # The conditions broadcast in another way than repeating outermost: features once for each, then expanded.
        values = {
            wire: to_rows(value.reshape(*conditions.lead, *value.shape[1:]), tuple(value.shape[1:]), lead)
            for wire, value in prepared[0].items()
        }
        return (Prepared((values, {})),)

    def _base_conditions(self, arguments: tuple, conditions: Batch, lead: torch.Size) -> list[Tensor]:
        if not self._base_wires:
            return []
        values = arguments[-1][0]
        found = []
        for wire, shape in zip(self._base_wires, self._base_shapes, strict=True):
            value = values[wire]
            own = value.shape[0] == math.prod(conditions.lead) and conditions.lead != lead
            found.append(value.reshape((*(conditions.lead if own else lead), *shape)))
        return found

    def _encode(
        self, x: Data, conditions: Batch, prepared: Prepared | None
    ) -> tuple[list[Tensor], Tensor, torch.Size, list[Tensor]]:
        data = check_batch(x, self.input_shapes, "input", self.network.reference)
        lead = common_lead(data, conditions, "input")
        arguments = self._arguments(conditions, lead, prepared)
        out, log_det = self.network(*rows(data, self.input_shapes, lead), *arguments)
        parts = [
            part.reshape(*lead, numel(shape))
            for part, shape in zip(as_tuple(out), self._latent_shapes.values(), strict=True)
        ]
        return parts, log_det, lead, self._base_conditions(arguments, conditions, lead)

    def _decode(
        self, z: Tensor, conditions: Batch, prepared: Prepared | None, *, with_log_det: bool
    ) -> tuple[Data, Any, list[Tensor]]:
        self._check_latent(z)
        data = Batch(self.split(z), z.shape[:-1])
        lead = common_lead(data, conditions, "latent")
        arguments = self._arguments(conditions, lead, prepared)
        parts = rows(data, self._latent_shapes, lead)
        if with_log_det:
            out, log_det = self.network.inverse(*parts, *arguments)
            log_det = log_det.reshape(lead)
        else:
            out, log_det = self.network.inverse_only(*parts, *arguments), None
        named = {
            name: value.reshape(*lead, *shape)
            for (name, shape), value in zip(self.input_shapes.items(), as_tuple(out), strict=True)
        }
        x: Data = named if len(named) > 1 else next(iter(named.values()))
        return x, log_det, self._base_conditions(arguments, conditions, lead)

    def _log_prob(self, x: Data, conditions: Batch, prepared: Prepared | None) -> Tensor:
        parts, log_det, lead, base_conditions = self._encode(x, conditions, prepared)
        of_parts = getattr(self.base, "log_prob_of_parts", None)
        if of_parts is not None:
            log_prob = of_parts(parts, *base_conditions)
        else:
            log_prob = self.base.log_prob(parts[0] if len(parts) == 1 else torch.cat(parts, -1), *base_conditions)
        return log_prob + log_det.reshape(lead)

    def _sample(
        self, lead: torch.Size, conditions: Batch, prepared: Prepared | None, temperature: float, *, with_log_prob: bool
    ) -> tuple[Data, Tensor | None]:
        check_temperature(temperature)
        prepared, base_conditions = self._for_base(lead, conditions, prepared)
        z = self.base.sample(lead, *base_conditions, temperature=temperature)
        x, log_det, _ = self._decode(z, conditions, prepared, with_log_det=with_log_prob)
        return x, self.base.log_prob(z, *base_conditions) - log_det if with_log_prob else None

    def _sample_of_noise(self, noise: Tensor, conditions: Batch, temperature: Tensor) -> Data:
        """Samples without random numbers or a look at the temperature: what is exported."""
        prepared, base_conditions = self._for_base(noise.shape[:-1], conditions, None)
        z = self.base.from_noise(noise, *base_conditions, temperature=temperature)
        return self._decode(z, conditions, prepared, with_log_det=False)[0]

    def _for_base(
        self, lead: torch.Size, conditions: Batch, prepared: Prepared | None
    ) -> tuple[Prepared | None, list[Tensor]]:
        if not self._base_wires:
            return prepared, []
        prepared = prepared if prepared is not None else self._prepare(conditions)
        return prepared, self._base_conditions((prepared,), conditions, lead)

    def _check_latent(self, z: Tensor) -> None:
        if not isinstance(z, Tensor) or z.dim() < 1 or z.shape[-1] != self.dim:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise InputError(f"z must be of shape (..., {self.dim}), got {got}")
        if z.layout is not torch.strided:
            raise InputError(f"z must be dense, got {z.layout}: z.to_dense() makes it so")
        if z.dtype != self.network.reference.dtype or z.device != self.network.reference.device:
            wanted = self.network.reference
            raise InputError(f"z must be {wanted.dtype} on {wanted.device} as the flow is, got {z.dtype} on {z.device}")


class Exactness:
    """True where the likelihood is exact; else false, and its text says why."""

    def __init__(self, why_not: str):
        self.why_not = why_not

    def __bool__(self) -> bool:
        return not self.why_not

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    def __hash__(self) -> int:
        return hash(self.why_not)

    def __repr__(self) -> str:
        return "exact" if self else self.why_not
