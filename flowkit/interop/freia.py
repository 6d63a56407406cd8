"""FrEIA: its trained networks as flows, its modules as bijections, and flowkit's bijections as its modules."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, Output
from flowkit.errors import ConfigError, MissingDependencyError
from flowkit.flow import Flow
from flowkit.graph import Graph

REFUSED = {  # modules of FrEIA 0.2 that are no bijection with a right log-det
    "LearnedElementwiseScaling": "the log-det of its inverse has the wrong sign",
    "InvAutoFC": "it is no bijection, and its log-det is always zero",
    "InvAutoConv2D": "it is no bijection, and its log-det is always zero",
    "IResNetLayer": "its log-det is a truncated random estimate, and its call changes the caller's tensor",
    "GaussianMixtureModel": "it takes component indices among its conditions, and maps to several latents at once",
    "ActNorm": "its first call, in either direction, changes its weights",
}
ORTHOGONAL = 1e-4


class FreiaBijection(Bijection):
    """A module of FrEIA as a bijection: it runs as it is, on tensors of its own, and shares its weights.

    forward: (y, log-det) = module(x, c). inverse: (x, log-det) = module(y, c, rev=True).

    Args:
        module: a built `FrEIA.modules.InvertibleModule`; its shapes are `dims_in` and `dims_c`.

    Raises:
        ConfigError: a module whose log-det or inverse is known to be wrong in FrEIA 0.2.
    """

    def __init__(self, module: Any):
        refuse(module)
        super().__init__(*_outer(module), given=tuple(tuple(s) for s in module.dims_c))
        self.module = module
        self.out_shapes = tuple(tuple(int(n) for n in s) for s in module.output_dims(list(self.in_shapes)))

    def forward(self, *inputs_and_conditions: Tensor) -> tuple[Output, Tensor]:
        """Data to latent."""
        return self._run(inputs_and_conditions, len(self.in_shapes), False)

    def inverse(self, *outputs_and_conditions: Tensor) -> tuple[Output, Tensor]:
        """Latent to data."""
        return self._run(outputs_and_conditions, len(self.out_shapes), True)

    def _run(self, args: tuple[Tensor, ...], count: int, rev: bool) -> tuple[Output, Tensor]:
        # Copies, because the Haar modules halve what they are given in place; views need them contiguous.
        values = [x.clone(memory_format=torch.contiguous_format) for x in args[:count]]
        given = {"c": list(args[count:])} if self.condition_shapes else {}
        outputs, log_det = self.module(values, rev=rev, jac=True, **given)
        x = args[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        log_det = torch.as_tensor(log_det, dtype=dtype, device=x.device).expand(x.shape[0])
        return (outputs[0] if len(outputs) == 1 else tuple(outputs)), log_det


def _outer(module: Any) -> list[tuple[int, ...]]:
    # The upsampling modules initialise their parents with the output's shape, and so report that one.
    names = {cls.__name__ for cls in type(module).__mro__}
    if names & {"IRevNetUpsampling", "HaarUpsampling"}:
        return [(4 * c, h // 2, w // 2) for c, h, w in module.dims_in]
    return [tuple(int(n) for n in shape) for shape in module.dims_in]


def refuse(module: Any) -> None:
    """Refuse a module of FrEIA 0.2 that is wrong, by name."""
    for cls in type(module).__mro__:
        name = cls.__name__
        reason = REFUSED.get(name) if cls.__module__.startswith("FrEIA.") else None
        if name == "InvertibleSigmoid" and len(module.dims_in[0]) > 1:
            reason = "its log-det is summed over channels alone"
        elif name == "HouseholderPerm" and module.conditional:
            reason = "its product with a condition's reflections fails"
        elif name == "OrthogonalTransform":
            w = module.weights.detach()
            if (w @ w.T - torch.eye(len(w), dtype=w.dtype, device=w.device)).abs().max() > ORTHOGONAL:
                reason = "its matrix has drifted from orthogonality, so its inverse and log-det are wrong"
        if reason:
            raise ConfigError(f"FrEIA's {name} cannot be converted: {reason}")


def from_freia(network: Any) -> Flow:
    """A built `GraphINN`, `ReversibleGraphNet` or `SequenceINN` as a flow with a copy of its trained weights.

    Conditions, inputs, outputs and nodes keep the names that a person gave them; the other conditions are c0, c1, ...

    Raises:
        MissingDependencyError: FrEIA is not installed.
        ConfigError: not such a network, or it has a module that is wrong in FrEIA 0.2.
    """
    _freia()
    import FrEIA.framework as ff

    if isinstance(network, ff.SequenceINN):
        return _from_sequence(network)
    if not isinstance(network, ff.GraphINN):
        raise ConfigError(
            f"from_freia takes a GraphINN, ReversibleGraphNet or SequenceINN, got {type(network).__name__}"
        )
    graph = Graph()
    wires: dict[Any, Any] = {}
    for i, node in enumerate(network.condition_nodes):
        wires[node, 0] = graph.condition(_name(node) or f"c{i}", node.output_dims[0])
    for i, node in enumerate(network.in_nodes):
        default = "x" if len(network.in_nodes) == 1 else f"x{i + 1}"
        wires[node, 0] = graph.input(_name(node) or default, node.output_dims[0])
    for node in network.node_list:
        if node.module is None:
            continue
        inputs = [wires[source] for source in node.inputs]
        given = [wires[c, 0] for c in node.conditions] or None
        made = graph.add(FreiaBijection(_copy(node.module)), *inputs, given=given, name=_name(node))
        for i, wire in enumerate(made if isinstance(made, tuple) else (made,)):
            wires[node, i] = wire
    for i, node in enumerate(network.out_nodes):
        default = "z" if len(network.out_nodes) == 1 else f"z{i + 1}"
        graph.output(_name(node) or default, wires[node.inputs[0]])
    return _like(Flow(graph), network)


def _from_sequence(network: Any) -> Flow:
    graph = Graph()
    conditions: dict[int, Any] = {}
    for index, module in sorted(
        ((i, m) for i, m in zip(network.conditions, network.module_list, strict=True) if i is not None),
        key=lambda pair: pair[0],
    ):
        if index not in conditions:
            conditions[index] = graph.condition(f"c{index}", module.dims_c[0])
    x = graph.input("x", network.shapes[0])
    for index, module in zip(network.conditions, network.module_list, strict=True):
        given = None if index is None else conditions[index]
        x = graph.add(FreiaBijection(_copy(module)), x, given=given)
    graph.output("z", x)
    return _like(Flow(graph), network)


def _like(flow: Flow, network: Any) -> Flow:
    # The base is made in torch's default dtype, the modules keep that of the network.
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return flow.to(device=parameter.device, dtype=parameter.dtype)
    return flow


def _name(node: Any) -> str | None:
    # FrEIA's own names are the last six characters of an address.
    name = str(node.name)
    if name == hex(id(node))[-6:] or (re.fullmatch(r"[0-9a-f]*x?[0-9a-f]+", name) and len(name) == 6):
        return None
    name = re.sub(r"\W", "_", name)
    return f"_{name}" if name[0].isdigit() else name


def _copy(module: Any) -> Any:
    refuse(module)
    if getattr(module, "householder", 0):
        module.w_perm = module.w_perm_inv = None  # made anew in each call; with a gradient they cannot be copied
    return copy.deepcopy(module)


def _freia() -> Any:
    try:
        import FrEIA.modules as fm
    except ImportError as error:
        raise MissingDependencyError("this needs FrEIA: python -m pip install FrEIA") from error
    return fm


def as_freia(bijection: Bijection) -> Any:
    """A bijection as a `FrEIA.modules.InvertibleModule`; in a graph of theirs, `Node(x, as_freia(b).build, {})`.

    Raises:
        MissingDependencyError: FrEIA is not installed.
    """
    base: Any = _freia().InvertibleModule

    class FlowkitModule(base):
        """A bijection of flowkit, called as FrEIA calls its modules."""

        def __init__(self, part: nn.Module):
            super().__init__(list(bijection.in_shapes), list(bijection.condition_shapes))
            self.bijection = part

        def forward(self, x_or_z: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
            run: Any = self.bijection.inverse if rev else self.bijection
            output, log_det = run(*x_or_z, *(c or ()))
            return (output if isinstance(output, tuple) else (output,)), log_det

        def output_dims(self, input_dims: Any) -> Any:
            return list(bijection.out_shapes)

        def build(self, dims_in: Any, dims_c: Any = None) -> Any:
            return self

    return FlowkitModule(bijection)
