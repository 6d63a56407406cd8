"""FrEIA: its trained networks as flows, its modules as bijections, and flowkit's bijections as its modules."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, Output
from flowkit.bijections.linear import full_precision
from flowkit.errors import ConfigError
from flowkit.flow import Flow
from flowkit.graph import Graph
from flowkit.interop.freia_modules import (
    build_module,
    describe_module,
    dims_in_of,
    freia_modules,
    refuse,
    settle,
)
from flowkit.registry import Arguments, Example, Unwritable, register
from flowkit.strict_json import shown


def _examples() -> list[Example]:
    if importlib.util.find_spec("FrEIA") is None:
        return []

    def dense(c_in: int, c_out: int) -> dict:
        first = {"layer": "Linear", "in_features": c_in, "out_features": 6}
        last = {"layer": "Linear", "in_features": 6, "out_features": c_out}
        return {"layer": "Sequential", "layers": [first, {"layer": "SiLU"}, last]}

    def convolution(c_in: int, c_out: int) -> dict:
        return {"layer": "Conv2d", "in_channels": c_in, "out_channels": c_out, "kernel_size": 3, "padding": 1}

    def example(name: str, *shapes: tuple, given: tuple = (), subnets: dict | None = None, **options: Any) -> Example:
        written: dict[str, Any] = {"module": name, "dims_in": list(shapes), "options": options}
        return Example({**written, **({"dims_c": list(given)} if given else {}), "subnets": subnets or {}})

    return [
        example(
            "GLOWCouplingBlock",
            (3,),
            given=((2,),),
            subnets={"subnet1": dense(3, 4), "subnet2": dense(4, 2)},
            split_len=1,
        ),
        example(
            "GINCouplingBlock",
            (2, 2, 3),
            subnets={"subnet1": convolution(1, 2), "subnet2": convolution(1, 2)},
            clamp=1.0,
            clamp_activation="TANH",
        ),
        example("ConditionalAffineTransform", (2,), given=((3,),), subnets={"subnet": dense(3, 4)}),
        example("InvAutoAct", (3, 4)),
        example("PermuteRandom", (5,)),
        example("Split", (3, 2), section_sizes=(1, 2), dim=0),
    ]


@register("flowkit.freia", examples=_examples)
class FreiaBijection(Bijection):
    """A module of FrEIA as a bijection: it runs as it is, on tensors of its own, and shares its weights.

    forward: (y, log-det) = module(x, c). inverse: (x, log-det) = module(y, c, rev=True).

    Autocast is off within it, for its subnets too: FrEIA rounds its matrices, wavelets and log-scales to half precision
    with them, and in bfloat16 the inverse is then wrong in the second digit.

    It can be saved where the module is FrEIA's own and its subnets are of `flowkit.interop.layers.LAYERS` or registered
    classes; a clamp of the user's must be a registered function. The file holds the module's name, which is looked up
    among FrEIA's modules alone, and its arguments as plain data; with the same module in both places, what is loaded
    gives the same numbers to the last bit, which flowkit's own couplings, whose clamps differ, would not.

    Args:
        module: a built `FrEIA.modules.InvertibleModule`, whose shapes are `dims_in` and `dims_c`; or its description,
            a dictionary as files hold it.

    Raises:
        ConfigError: no such module, one whose log-det or inverse is known to be wrong in FrEIA 0.2, or a wrong
            description.
        MissingDependencyError: a description, and FrEIA is not installed.
    """

    def __init__(self, module: Any):
        if isinstance(module, Mapping):
            module = build_module(module)
        if not hasattr(module, "dims_in"):
            raise ConfigError(f"FreiaBijection needs a module of FrEIA, got {shown(module)}")
        refuse(module)
        settle(module)
        super().__init__(*dims_in_of(module), given=tuple(tuple(s) for s in module.dims_c))
        self.module = module
        self.out_shapes = tuple(tuple(int(n) for n in s) for s in module.output_dims(list(self.in_shapes)))

    def written_arguments(self) -> Arguments:
        """The module's description, for files; where it has none, the reason."""
        try:
            return Arguments(describe_module(self.module))
        except ConfigError as error:
            return Arguments(Unwritable(f"FrEIA's {type(self.module).__name__} ({error})"))

    def forward(self, *inputs_and_conditions: Tensor) -> tuple[Output, Tensor]:
        """Data to latent."""
        return self._run(inputs_and_conditions, len(self.in_shapes), False)

    def inverse(self, *outputs_and_conditions: Tensor) -> tuple[Output, Tensor]:
        """Latent to data."""
        return self._run(outputs_and_conditions, len(self.out_shapes), True)

    def _run(self, args: tuple[Tensor, ...], count: int, rev: bool) -> tuple[Output, Tensor]:
        # Copies, because the Haar modules halve what they are given in place; views need them contiguous.
        values = [x.clone(memory_format=torch.contiguous_format) for x in args[:count]]
        x = args[0]
        conditions = [c.to(x.dtype) if c.is_floating_point() else c for c in args[count:]]  # a net's may be half
        given = {"c": conditions} if self.condition_shapes else {}
        with full_precision(x):
            outputs, log_det = self.module(values, rev=rev, jac=True, **given)
        _forget(self.module)
        dtype = torch.promote_types(x.dtype, torch.float32)
        log_det = torch.as_tensor(log_det, dtype=dtype, device=x.device).expand(x.shape[0])
        return (outputs[0] if len(outputs) == 1 else tuple(outputs)), log_det


def _forget(module: Any) -> None:
    if getattr(module, "householder", 0):
        module.w_perm = module.w_perm_inv = None  # made anew in each call; with a gradient they cannot be copied


def from_freia(network: Any) -> Flow:
    """A built `GraphINN`, `ReversibleGraphNet` or `SequenceINN` as a flow with a copy of its trained weights.

    Conditions, inputs, outputs and nodes keep the names that a person gave them; the other conditions are c0, c1, ...

    Raises:
        MissingDependencyError: FrEIA is not installed.
        ConfigError: not such a network, or it has a module that is wrong in FrEIA 0.2.
    """
    freia_modules()
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
    _forget(module)
    return copy.deepcopy(module)


def as_freia(bijection: Bijection) -> Any:
    """A bijection as a `FrEIA.modules.InvertibleModule`; in a graph of theirs, `Node(x, as_freia(b).build, {})`.

    Raises:
        MissingDependencyError: FrEIA is not installed.
    """
    base: Any = freia_modules().InvertibleModule

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
