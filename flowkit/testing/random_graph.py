"""Builds random graphs from a function that picks; hypothesis picks in `strategies`, a generator may elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from flowkit.registry import register

Pick = Callable[[Sequence[Any]], Any]
Shape = tuple[int, ...]

INPUT_SHAPES: tuple[Shape, ...] = (
    (),
    (1,),
    (2,),
    (3,),
    (5,),
    (2, 4),
    (1, 2, 2),
    (3, 2, 2),
    (2, 4, 4),
    (1, 4, 2),
    (2, 2, 2, 2),
)
CONDITION_SHAPES: tuple[Shape, ...] = ((1,), (3,), (1, 4, 4), (2, 2, 2), (2, 4), (1, 2, 2, 2))
LARGEST = 40  # elements of a wire


@register("testing.two_scales")
class TwoScales(nn.Module):
    """A feature net with two outputs, at two scales: a map `(C, *size)` as it is after a layer, and halved."""

    def __init__(self, channels: int, spatial: int) -> None:
        super().__init__()
        self.layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1](channels, 2, 1)
        self.spatial = spatial

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Fine and coarse."""
        fine = self.layer(c).tanh()
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.spatial - 1]
        return fine, pool(fine, 2)


@register("testing.vector_net")
class VectorNet(nn.Module):
    """A feature net from vectors, one or several, to a vector."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 2) for width in widths)

    def forward(self, *vectors: Tensor) -> Tensor:
        """The sum of a layer of each."""
        return sum((layer(v) for layer, v in zip(self.layers, vectors, strict=True)), vectors[0].new_zeros(())).tanh()


def subnet_for(shape: Shape) -> Any:
    """A small smooth subnet for data of this shape."""
    return (
        fk.MLP(hidden=4, activation="silu")
        if len(shape) < 2
        else fk.ConvNet(hidden=3, kernel=(3, 1), activation="silu")
    )


class GraphBuilder:
    """Grows a graph node by node.

    A data wire may condition a node when the inverse can know it by then. `needs` holds, for each data wire, the wires
    that must be known before it is: those of its consumer. A wire whose needs lead to the node's own inputs is refused.

    Args:
        pick: chooses one of a sequence.
        depth: how many levels of nesting are still allowed.
    """

    def __init__(self, pick: Pick, depth: int = 1) -> None:
        self.pick, self.depth = pick, depth
        self.graph = fk.Graph()
        self.live: list[fk.Wire] = []
        self.consumed: list[fk.Wire] = []
        self.done: list[fk.Wire] = []
        self.sources: dict[int, tuple[fk.Wire, set[int]]] = {}  # condition wires, and the data wires they come from
        self.needs: dict[int, set[int]] = {}
        self.unused: list[fk.Wire] = []
        self.shared: list[fk.Bijection] = []
        self.calls: list[str] = []

    # ------------------------------------------------------------------ the whole

    def declare(self, inputs: int, conditions: int) -> None:
        """Inputs and conditions of random shapes."""
        for i in range(conditions):
            self.condition(f"c{i}", self.pick(CONDITION_SHAPES))
        for i in range(inputs):
            self.input(f"x{i}", self.pick(INPUT_SHAPES))

    def input(self, name: str, shape: Shape) -> None:
        """One data input."""
        self.live.append(self.graph.input(name, shape))
        self.calls.append(f"{name} = graph.input({name!r}, {shape})")

    def condition(self, name: str, shape: Shape) -> None:
        """One condition."""
        wire = self.graph.condition(name, shape)
        self.calls.append(f"{name} = graph.condition({name!r}, {shape})")
        self.sources[wire.index] = (wire, set())
        self.unused.append(wire)

    def grow(self, nodes: int) -> None:
        """That many random nodes."""
        actions = (self.mix, self.mix, self.mix, self.conditional, self.conditional)
        rarer = (self.split, self.merge, self.nest, self.share, self.leave)
        for _ in range(nodes):
            self.pick((*actions, *rarer))()

    def finish(self) -> fk.Graph:
        """Use every condition that was not, and make every open wire an output."""
        while self.unused:
            self.conditional(self.unused[0])
        for i, wire in enumerate((*self.done, *self.live)):
            self.graph.output(f"z{i}", wire)
            self.calls.append(f"graph.output('z{i}', {wire.name!r})")
        return self.graph

    # ------------------------------------------------------------------ one node

    def add(self, part: Any, *wires: fk.Wire, given: Any = None, **config: Any) -> None:
        """A node on live wires."""
        out = self.graph.add(part, *wires, given=given, **config)
        outputs = out if isinstance(out, tuple) else (out,)
        conditions = list(given.values()) if isinstance(given, dict) else [given] if given is not None else []
        required = {wire.index for wire in outputs}
        for condition in conditions:
            required |= self.origins(condition)
        for wire in wires:
            self.needs[wire.index] = required
            self.live.remove(wire)
            self.consumed.append(wire)
        self.live.extend(outputs)
        what = getattr(part, "__name__", None) or (repr(part) if isinstance(part, fk.Bijection) else "a graph")
        options = ", ".join(f"{k}={v!r}" for k, v in config.items())
        names = ", ".join(wire.name for wire in wires)
        given_names = [c.name for c in conditions]
        gives = ", ".join(wire.name for wire in outputs)
        self.calls.append(f"{gives} = graph.add({what}, {names}, given={given_names}, {options})")

    def origins(self, wire: fk.Wire) -> set[int]:
        """The data wires that a condition comes from: itself, if it is one."""
        return self.sources[wire.index][1] if wire.index in self.sources else {wire.index}

    def mix(self) -> None:
        """One wire in, one out."""
        wire = self.pick(self.live)
        shape = wire.shape
        parts: list[tuple[Any, dict[str, Any]]] = [
            (fk.ElementwiseAffine, {}),
            (fk.ActNorm, {}),
            (fk.Flatten, {}),
            (fk.Identity, {}),
        ]
        if shape:
            parts += [(fk.Permute, {}), (fk.LULinear, {}), (fk.FixedRotation, {})]
            parts.append((fk.Reshape, {"to": tuple(reversed(shape))}))
        if len(shape) > 1:
            parts.append((fk.Permute, {"dim": -1}))
        if shape and shape[0] > 1:
            coupling = {"subnet": subnet_for(shape), "limit": 1.0}
            parts += [(fk.AffineCoupling, {**coupling, "two_sided": two_sided}) for two_sided in (False, True)]
        if 1 < len(shape) < 5 and all(side % 2 == 0 for side in shape[1:]):
            parts.append((fk.Squeeze, {}))
        if shape:
            new = fk.LULinear(shape)
            parts += [(new, {}), (fk.Inverse(new), {})]
        parts += [(instance, {}) for instance in self.shared if instance.in_shapes == (shape,)] * 2
        part, config = self.pick(parts)
        if isinstance(part, fk.Bijection) and all(part is not each for each in self.shared):
            self.shared.append(part)
        self.add(part, wire, **config)

    def conditional(self, condition: fk.Wire | None = None) -> None:
        """A conditional node, its condition brought to the data's size by an adaptor."""
        wire = self.pick(self.live)
        condition = condition or self.pick_condition((wire,))
        if condition is None:
            return self.mix()
        self.mark(condition)
        fitted = self.fit(self.feature(condition), wire.shape)
        cls = fk.ElementwiseAffine
        if wire.shape and wire.shape[0] > 1:
            cls = self.pick((fk.AffineCoupling, fk.ElementwiseAffine))
        self.add(cls, wire, given=fitted, subnet=subnet_for(wire.shape))
        return None

    def pick_condition(self, wires: Sequence[fk.Wire]) -> fk.Wire | None:
        """A condition wire, or a data wire that the inverse knows before it needs these."""
        inputs = {wire.index for wire in wires}
        known = [w for w, data in self.sources.values() if not self.closure(data) & inputs]
        known += [w for w in (*self.live, *self.done, *self.consumed) if not self.closure({w.index}) & inputs]
        return self.pick(known) if known else None

    def closure(self, wires: set[int]) -> set[int]:
        """These data wires, and all that must be known before them."""
        found, open_wires = set(wires), list(wires)
        while open_wires:
            for index in self.needs.get(open_wires.pop(), ()):
                if index not in found:
                    found.add(index)
                    open_wires.append(index)
        return found

    def mark(self, condition: fk.Wire) -> None:
        """It is used."""
        self.unused = [wire for wire in self.unused if wire.index != condition.index]

    def features(self, net: nn.Module, *wires: fk.Wire) -> tuple[fk.Wire, ...]:
        """A feature net's outputs."""
        out = self.graph.features(net, *wires)
        outputs = out if isinstance(out, tuple) else (out,)
        data = set().union(*(self.origins(wire) for wire in wires))
        for output in outputs:
            self.sources[output.index] = (output, data)
        self.calls.append(
            f"{', '.join(o.name for o in outputs)} = graph.features({net!r}, {', '.join(w.name for w in wires)})"
        )
        return outputs

    def feature(self, condition: fk.Wire) -> fk.Wire:
        """The condition, or a feature of it."""
        shape = condition.shape
        if not shape or not self.pick((False, True)):
            return condition
        if len(shape) == 1:
            return self.features(VectorNet(shape[0]), condition)[0]
        if 1 < len(shape) < 5 and all(side > 1 for side in shape[1:]):
            return self.pick(self.features(TwoScales(shape[0], len(shape) - 1), condition))
        return condition

    def fit(self, condition: fk.Wire, shape: Shape) -> fk.Wire:
        """The condition at the data's size."""
        size = shape[1:]
        if len(condition.shape) == max(1, len(shape)) and condition.shape[1:] == size:
            return condition
        if len(condition.shape) == len(shape) > 1:
            return self.features(fk.Resize(size), condition)[0]
        if len(condition.shape) != 1:
            condition = (
                self.features(fk.ToVector(), condition)[0]
                if condition.shape
                else self.features(_Unsqueeze(), condition)[0]
            )
        return self.features(fk.ToMap(size), condition)[0] if size else condition

    def split(self) -> None:
        """One wire in, two or three out."""
        wide = [wire for wire in self.live if wire.shape and wire.shape[0] > 1]
        if not wide:
            return self.mix()
        wire = self.pick(wide)
        channels = wire.shape[0]
        sizes = self.pick([None, (1, channels - 1), *([(1, 1, channels - 2)] if channels > 2 else [])])
        return self.add(fk.Split, wire, **({} if sizes is None else {"sizes": sizes}))

    def merge(self) -> None:
        """Two wires in, one out."""
        pairs = [
            (a, b)
            for a in self.live
            for b in self.live
            if a.index != b.index
            and a.shape
            and b.shape
            and a.shape[1:] == b.shape[1:]
            and len(a.shape) == len(b.shape)
        ]
        if not pairs:
            return self.split()
        return self.add(fk.Concat, *self.pick(pairs))

    def nest(self) -> None:
        """A whole graph as one node, on one wire or two."""
        if not self.depth:
            return self.mix()
        wires = [self.pick(self.live)]
        others = [wire for wire in self.live if wire.index != wires[0].index]
        if others and self.pick((False, True)):
            wires.append(self.pick(others))
        inner = GraphBuilder(self.pick, self.depth - 1)
        for i, wire in enumerate(wires):
            inner.input(f"x{i}", wire.shape)
        condition = self.pick_condition(wires)
        if condition is not None and condition.shape:
            inner.condition("c0", condition.shape)
            self.mark(condition)
        inner.grow(self.pick((1, 2, 3)))
        graph = inner.finish()
        self.calls += [f"    {call}" for call in inner.calls]
        given = {"c0": condition} if graph.conditions else None
        return self.add(graph, *wires, given=given)

    def share(self) -> None:
        """One instance at two places, with something between them."""
        wire = self.pick(self.live)
        shape = wire.shape
        if not shape:
            return self.mix()
        instances = [instance for instance in self.shared if instance.in_shapes == (shape,)]
        instance = self.pick(instances) if instances else fk.LULinear(shape)
        self.add(instance, wire)
        self.add(fk.ElementwiseAffine, self.live[-1])
        return self.add(instance, self.live[-1])

    def leave(self) -> None:
        """A wire becomes an output early: a latent at its own scale."""
        if len(self.live) < 2:
            return self.mix()
        wire = self.pick(self.live)
        self.live.remove(wire)
        self.done.append(wire)
        return None


@register("testing.unsqueeze")
class _Unsqueeze(nn.Module):
    """A scalar as a vector of one."""

    def forward(self, c: Tensor) -> Tensor:
        """`(B,)` as `(B, 1)`."""
        return c.unsqueeze(1)
