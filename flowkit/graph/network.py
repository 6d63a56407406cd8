"""A built graph: the parts, and the two schedules that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.backprop import Pass, applies, carrier, report_drift
from flowkit.bijection import Bijection, Output, Prepared, as_tuple
from flowkit.dry_run import named_outputs
from flowkit.errors import ConditionError, GraphError, ShapeError
from flowkit.graph.construct import build
from flowkit.graph.graph import Graph
from flowkit.graph.parts import Wire, describe
from flowkit.graph.schedule import Step, make_schedule
from flowkit.memory import plain_from
from flowkit.registry import Example, register
from flowkit.shapes import Shape, as_shape, as_shapes

Values = dict[int, Tensor]


class Nodes(nn.Module):
    """The parts of a network by node name; unlike `nn.ModuleDict`, any identifier is a name."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        self._modules.update(parts)

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[name]  # type: ignore[return-value]

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def items(self) -> Any:
        """Names and parts."""
        return self._modules.items()


def _examples() -> list[Example]:
    from flowkit.bijections import AffineCoupling, Split
    from flowkit.subnets import MLP

    graph, mlp = Graph(), MLP(hidden=5, activation="silu")
    c, x = graph.condition("c", (2,)), graph.input("x", (4,))
    left, right = graph.add(Split, graph.add(AffineCoupling, x, given=c, subnet=mlp))
    graph.output("left", left)
    graph.output("right", graph.add(AffineCoupling, right, given=[left, c], subnet=mlp))
    return [Example(graph=graph)]


@register("flowkit.network", examples=_examples)
class InvertibleNetwork(Bijection):
    """A built graph. It is itself a bijection, so graphs nest.

    forward: the nodes in declaration order, from the inputs to the outputs; log-det: the sum of the nodes'.
    inverse: the nodes backwards, each as soon as what it needs is known; log-det: the sum of the nodes' inverses'.

    Args:
        in_shapes: none, or those of the graph's inputs, as `graph.add(fk.InvertibleNetwork, x, graph=inner)` passes
            them.
        given: likewise of its conditions.
        graph: the declaration; later declarations on it do not change the network.
        also_used: condition wires that are used outside the network, by a base distribution.

    Shapes: inputs `(B, *shape)` in the order of `input_names`, conditions in the order of `condition_names`; outputs in
    the order of `output_names`; log_det `(B,)`.

    Raises:
        GraphError: the graph cannot be built; the message names nodes, wires and shapes.

    >>> import flowkit as fk
    >>> graph = fk.Graph()
    >>> graph.output("z", graph.add(fk.Permute, graph.input("x", (2,))))
    >>> fk.InvertibleNetwork(graph)(torch.tensor([[1.0, 2.0]]))
    (tensor([[2., 1.]]), tensor([0.]))
    """

    def __init__(self, *in_shapes: Any, given: Any = (), graph: Graph | None = None, also_used: Sequence[Wire] = ()):
        if graph is None and len(in_shapes) == 1 and isinstance(in_shapes[0], Graph):
            graph, in_shapes = in_shapes[0], ()
        if not isinstance(graph, Graph):
            raise GraphError(f"InvertibleNetwork needs a Graph, got {type(graph).__name__}")
        schedule = make_schedule(graph, tuple(also_used))
        super().__init__(*[wire.shape for wire in graph.inputs], given=[wire.shape for wire in graph.conditions])
        self._check_shapes("inputs", tuple(as_shape(shape) for shape in in_shapes), graph.inputs)
        self._check_shapes("conditions", as_shapes(given), graph.conditions)
        self.graph = graph.snapshot()
        self.out_shapes = tuple(wire.shape for wire in graph.outputs.values())
        self.input_names = tuple(wire.name for wire in graph.inputs)
        self.condition_names = tuple(wire.name for wire in graph.conditions)
        self.output_names = tuple(graph.outputs)
        self.nodes = Nodes(
            {
                node.name: node.module
                if node.module is not None
                else build(node.cls, node.name, node.inputs, node.given, node.config)
                for node in graph.nodes
            }
        )
        # Follows the network's dtype and device, so that both are known without asking any part.
        self.register_buffer("reference", torch.zeros(()), persistent=False)
        self.reference: Tensor
        self.register_buffer("drift", torch.zeros(()), persistent=False)
        self.drift: Tensor
        self.backprop, self.snapshots = "plain", 8
        self.chunk: int | None = None
        self.budget: int | None = None
        self._cuts: dict[tuple, int] = {}
        self._schedule = schedule
        self._inputs = tuple(wire.index for wire in graph.inputs)
        self._conditions = tuple(wire.index for wire in graph.conditions)
        self._outputs = tuple(wire.index for wire in graph.outputs.values())
        self._take_promises()

    # ------------------------------------------------------------------ the contract

    def forward(self, *inputs_and_conditions: Tensor) -> tuple[Output, Tensor]:
        """`(outputs, log_det)`: one tensor, or a tuple where the graph has several outputs."""
        inputs, values, prepared = self._arguments(inputs_and_conditions, len(self._inputs), "inputs")
        values.update(zip(self._inputs, inputs, strict=True))
        if self.backprop != "plain" and applies(list(values.values()), self):
            return self._frugal(values, prepared, self._cut(values, prepared))
        log_det = self._run(self._schedule.forward, values, prepared, inputs[0], inverse=False)
        return _one_or_all([values[i] for i in self._outputs]), log_det

    def inverse(self, *outputs_and_conditions: Tensor) -> tuple[Output, Tensor]:
        """`(inputs, log_det)` from latents: the log-det is that of the inverse."""
        outputs, values, prepared = self._arguments(outputs_and_conditions, len(self._outputs), "outputs")
        values.update(zip(self._outputs, outputs, strict=True))
        log_det = self._run(self._schedule.inverse, values, prepared, outputs[0], inverse=True)
        return _one_or_all([values[i] for i in self._inputs]), log_det

    def inverse_only(self, *outputs_and_conditions: Tensor) -> Output:
        """The inputs without the log-det, by each node's `inverse_only`."""
        outputs, values, prepared = self._arguments(outputs_and_conditions, len(self._outputs), "outputs")
        values.update(zip(self._outputs, outputs, strict=True))
        rows = outputs[0].shape[0]
        for step in self._schedule.inverse:
            part = self.nodes._modules[step.name]
            if step.features:
                self._run_features(step, values, None if prepared is None else rows)
            else:
                arguments = (*[values[i] for i in step.takes], *self._given(step, values, prepared, rows))
                values.update(zip(step.gives, as_tuple(part.inverse_only(*arguments)), strict=True))  # type: ignore[union-attr, operator]
            for i in step.drops:
                del values[i]
        return _one_or_all([values[i] for i in self._inputs])

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """All condition wires' values, and every node's prepared part, at the rows of the conditions."""
        values = self.condition_values(*conditions)
        pure, parts = self._schedule.pure, {}
        for step in self._schedule.forward:
            if step.given and not step.features and all(i in pure for i in step.given):
                part: Any = self.nodes._modules[step.name]
                prepared = part.prepare(*[values[i] for i in step.given])
                if prepared is not None:
                    parts[step.name] = Prepared(prepared)
        return values, parts

    # ------------------------------------------------------------------ what Flow, trace and initialize use

    def condition_values(self, *conditions: Tensor) -> Values:
        """The conditions and the features of them, by wire index."""
        if len(conditions) != len(self._conditions):
            raise ConditionError(
                f"the network needs {len(self._conditions)} conditions {self.condition_names}, got {len(conditions)}"
            )
        values = dict(zip(self._conditions, conditions, strict=True))
        for step in self._schedule.conditions:
            self._run_features(step, values)
        return values

    def walk(
        self,
        visit: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
        conditions: Sequence[Tensor],
        prefix: str = "",
    ) -> tuple[Tensor, ...]:
        """Forward, node by node, nested ones inlined: `visit(name, bijection, inputs, conditions)` gives outputs."""
        values = self.condition_values(*conditions)
        values.update(zip(self._inputs, inputs, strict=True))
        for step in self._schedule.forward:
            part: Any = self.nodes._modules[step.name]
            name = prefix + step.name
            if step.features:
                self._run_features(step, values)
                continue
            taken, given = [values[i] for i in step.takes], [values[i] for i in step.given]
            if isinstance(part, InvertibleNetwork):
                outputs = part.walk(visit, taken, given, f"{name}.")
            else:
                outputs = visit(name, part, taken, given)
            values.update(zip(step.gives, outputs, strict=True))
        return tuple(values[i] for i in self._outputs)

    # ------------------------------------------------------------------ running

    def _frugal(self, values: Values, prepared: dict | None, cut: int) -> tuple[Output, Tensor]:
        """Forward for a backward pass that recomputes the steps before `cut`: see `flowkit.backprop`."""
        like, steps = values[self._inputs[0]], self._schedule.forward
        if prepared is not None:
            _repeat(values, tuple(values), like.shape[0])
        frugal = Pass(self.backprop, self.snapshots, self.chunk, self.drift, like)
        carriers = {i: carrier(values[i]) for i in self._inputs}
        self._frugal_steps(frugal, steps[:cut], values, carriers)
        live = list(carriers)
        anchored, _ = frugal.anchor([values[i] for i in live], [carriers[i] for i in live])
        values.update(zip(live, anchored, strict=True))
        log_det = frugal.log_det
        if cut < len(steps):
            log_det = log_det + self._run(steps[cut:], values, None, like, inverse=False)
        return _one_or_all([values[i] for i in self._outputs]), log_det

    def _cut(self, values: Values, prepared: dict | None) -> int:
        """The first step that keeps what plain autograd keeps; found once for each batch size in mode auto."""
        steps = len(self._schedule.forward)
        if torch.compiler.is_compiling():
            return steps
        report_drift(self.drift)
        if self.backprop != "auto" or self.budget is None:
            return steps
        like = values[self._inputs[0]]
        trained = tuple(t.requires_grad for t in (*values.values(), *self.parameters()))
        options = (torch.is_autocast_enabled(like.device.type), self.training, self.budget, self.snapshots, self.chunk)
        key = (like.shape[0], like.dtype, *options, trained)
        if key not in self._cuts:
            rows = like.shape[0]
            full = {i: v if v.shape[0] == rows else repeat_rows(v, rows) for i, v in values.items()}
            self._cuts[key] = plain_from(self, full, self.budget)
        return self._cuts[key]

    def _frugal_steps(self, frugal: Pass, steps: Sequence[Step], values: Values, carriers: Values) -> None:
        for step in steps:
            if step.features:
                self._run_features(step, values)
                continue
            part: Any = self.nodes._modules[step.name]
            taken, given = [values[i] for i in step.takes], [values[i] for i in step.given]
            hats = [carriers.pop(i) for i in step.takes]  # a carrier is used once, though its value may yet condition
            if isinstance(part, InvertibleNetwork):
                inside = part.condition_values(*given)
                inside.update(zip(part._inputs, taken, strict=True))
                inner = dict(zip(part._inputs, hats, strict=True))
                part._frugal_steps(frugal, part._schedule.forward, inside, inner)
                outputs, hats = [inside[i] for i in part._outputs], [inner[i] for i in part._outputs]
            else:
                outputs, hats = frugal.step(part, taken, hats, given)  # type: ignore[assignment]
            values.update(zip(step.gives, outputs, strict=True))
            carriers.update(zip(step.gives, hats, strict=True))
            for i in step.drops:
                del values[i]

    def _arguments(self, arguments: tuple, count: int, what: str) -> tuple[tuple[Tensor, ...], Values, dict | None]:
        if len(arguments) == count + 1 and isinstance(arguments[-1], Prepared):
            values, parts = arguments[-1]
            return arguments[:-1], dict(values), parts
        if len(arguments) < count:
            raise ConditionError(
                f"the network needs {count} {what} and {len(self._conditions)} conditions, got {len(arguments)} tensors"
            )
        return arguments[:count], self.condition_values(*arguments[count:]), None

    def _run(
        self, steps: Sequence[Step], values: Values, prepared: dict | None, like: Tensor, *, inverse: bool
    ) -> Tensor:
        log_dets, rows, modules = [], like.shape[0], self.nodes._modules
        for step in steps:
            if step.features:
                self._run_features(step, values, None if prepared is None else rows)
            else:
                part: Any = modules[step.name]
                arguments = [values[i] for i in step.takes]
                if step.given:
                    arguments += self._given(step, values, prepared, rows)
                outputs, log_det = part.inverse(*arguments) if inverse else part(*arguments)
                if isinstance(outputs, tuple):
                    values.update(zip(step.gives, outputs, strict=True))
                else:
                    values[step.gives[0]] = outputs
                if not part.volume_preserving:
                    log_dets.append(log_det)
            for i in step.drops:
                del values[i]
        if len(log_dets) > 1:
            return torch.stack(log_dets).sum(0)  # one operation for all, where adding them up takes one each
        if log_dets:
            return log_dets[0]
        return like.new_zeros(rows, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)

    def _run_features(self, step: Step, values: Values, rows: int | None = None) -> None:
        net: Any = self.nodes._modules[step.name]
        if rows is not None:
            _repeat(values, step.takes, rows)
        outputs = named_outputs(net(*[values[i] for i in step.takes]))
        if len(outputs) != len(step.keys) or any(
            key not in outputs for key in step.keys
        ):  # shapes= said something else than what it returns
            raise GraphError(
                f"features '{step.name}' returned the outputs {list(outputs)}, declared were {list(step.keys)}"
            )
        values.update((i, outputs[key]) for i, key in zip(step.gives, step.keys, strict=True))

    def _given(self, step: Step, values: Values, prepared: dict | None, rows: int) -> tuple:
        if prepared is None:
            return tuple([values[i] for i in step.given])
        if step.name in prepared:
            return (prepared[step.name],)
        _repeat(values, step.given, rows)  # once, for all the nodes that have no prepared part
        return tuple([values[i] for i in step.given])

    # ------------------------------------------------------------------ construction

    def _check_shapes(self, what: str, shapes: tuple[Shape, ...], wires: list[Wire]) -> None:
        if shapes and shapes != tuple(wire.shape for wire in wires):
            raise ShapeError(f"the nested graph takes {what} {describe(wires)}, got {', '.join(map(str, shapes))}")

    def _take_promises(self) -> None:
        """A network promises what all its bijections promise; what any of them is, it is."""
        parts: list[Any] = [self.nodes._modules[s.name] for s in self._schedule.forward if not s.features]
        for promise in ("constant_log_det", "volume_preserving"):
            setattr(self, promise, all(getattr(part, promise) for part in parts))
        for nature in ("stochastic", "iterative", "slow_inverse", "adaptive", "dimension_changing", "embedded"):
            setattr(self, nature, any(getattr(part, nature) for part in parts))
        self.tolerance = max([part.tolerance for part in parts], default=0.0)

    def __repr__(self) -> str:
        from flowkit.graph.draw import summary

        return summary(self.graph, type(self).__name__, self.nodes)


def repeat_rows(values: Tensor, rows: int) -> Tensor:
    """R rows as S x R rows, samples outermost.

    >>> repeat_rows(torch.tensor([[1], [2]]), 4).flatten().tolist()
    [1, 2, 1, 2]
    """
    samples = rows // values.shape[0] if values.shape[0] else 0
    return values.unsqueeze(0).expand(samples, *values.shape).flatten(0, 1)


def _repeat(values: Values, wires: tuple[int, ...], rows: int) -> None:
    for i in wires:
        if values[i].shape[0] != rows:
            values[i] = repeat_rows(values[i], rows)


def _one_or_all(tensors: list[Tensor]) -> Output:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
