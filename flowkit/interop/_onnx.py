"""ONNX: what it lacks is computed beforehand, or written in what it has, before torch's exporter runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from flowkit.errors import ExportError
from flowkit.interop._normal_quantile import normal_quantile
from flowkit.interop.export import EXAMPLE_ROWS, MARK, FlowFunction, _quiet, trace

TRIANGULAR = torch.ops.aten.linalg_solve_triangular.default
QUANTILE = torch.ops.aten.special_ndtri.default
# Linear algebra also by the names that it has before it is decomposed.
LACKING = re.compile(
    r"aten\.(_?linalg_|_?(det|logdet|slogdet|inverse|pinverse|matrix_exp|matrix_power|cholesky\w*|triangular_solve|"
    r"qr|svd|lu_\w+|geqrf|orgqr|special_ndtri)\.)"
)
LIMIT = 2**31 - 1  # of one ONNX file, in bytes


def onnx_program(function: FlowFunction) -> Any:
    """The function as a `torch.onnx.ONNXProgram`, for any batch size.

    Raises:
        ExportError: it has an operation that ONNX lacks; it is named.
    """
    function.flow.cpu()  # a file has no device
    weights = sum(t.numel() * t.element_size() for t in function.state_dict().values())
    if weights > LIMIT:
        raise ExportError(f"one ONNX file holds 2 GB, and the weights of this flow are {weights:,} bytes: use 'torch'")
    program = in_elementary_operations(function.program(), function.example(EXAMPLE_ROWS))
    try:
        with torch.no_grad(), _quiet(), _without_logs():
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=function.inputs,
                output_names=function.outputs,
            )
    except Exception as error:
        lacks = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", _story(error))))
        reason = f"it lacks {', '.join(lacks)}" if lacks else _story(error).strip().splitlines()[-1]
        raise ExportError(f"ONNX cannot hold this flow: {reason}; 'torch' and 'aoti' can") from error
    made.model.metadata_props[MARK] = function.description()
    return made


def in_elementary_operations(
    program: torch.export.ExportedProgram, example: tuple[Tensor, ...]
) -> torch.export.ExportedProgram:
    """The program without the operations that ONNX lacks; itself where it has none.

    What depends on the weights alone is computed here: matrix exponentials, solutions, determinants. A triangular
    system of weights becomes a product with the inverse, found in float64; one that depends on the data is solved by
    halves. The normal quantile becomes rational functions.
    """
    if not _may_lack(program):  # a decomposition takes as long as the rest of the export, which makes one of its own
        return program
    program = program.run_decompositions({})  # regions without autocast are graphs of their own until then
    if not any(_is_linear_algebra(node) or node.target is QUANTILE for node in program.graph.nodes):
        return program
    module: Any = program.module(check_guards=False)
    _Folding(module).run()
    return trace(module, example)


def solve_by_halves(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """A triangular system, by products and divisions alone: the first half, its part taken off, the second half.

    >>> a, b = torch.tensor([[2.0, 0.0], [1.0, 4.0]]), torch.tensor([[2.0], [9.0]])
    >>> solve_by_halves(a, b, upper=False).tolist()
    [[1.0], [2.0]]
    """
    if not left:  # X A = B is A^T X^T = B^T
        return solve_by_halves(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    size = a.shape[-1]
    if size == 1:
        return b if unitriangular else b / a
    half = size // 2
    first, second = (slice(half, None), slice(0, half)) if upper else (slice(0, half), slice(half, None))
    options = {"upper": upper, "unitriangular": unitriangular}
    x = solve_by_halves(a[..., first, first], b[..., first, :], **options)
    y = solve_by_halves(a[..., second, second], b[..., second, :] - a[..., second, first] @ x, **options)
    return torch.cat((y, x) if upper else (x, y), -2)


class _Folding:
    """Works on a graph of torch.export with its weights as attributes."""

    def __init__(self, module: fx.GraphModule):
        self.module, self.count = module, 0
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> None:
        graph = self.module.graph
        constant: set[fx.Node] = set()
        algebra: set[fx.Node] = set()  # what comes of linear algebra on weights alone
        for node in graph.nodes:
            if node.op == "get_attr" or (node.op == "call_function" and self._is_fixed(node, constant)):
                constant.add(node)
                if _is_linear_algebra(node) or any(n in algebra for n in node.all_input_nodes):
                    algebra.add(node)
        for node in list(graph.nodes):
            if node in algebra:
                self._fold(node, constant)
            elif node.target is TRIANGULAR:
                self._solve(node, constant)
            elif node.target is QUANTILE:
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.call_function(normal_quantile, node.args))
                graph.erase_node(node)
        graph.eliminate_dead_code()
        self.module.recompile()

    def _is_fixed(self, node: fx.Node, constant: set[fx.Node]) -> bool:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        return not random and all(n in constant for n in node.all_input_nodes)

    def _value(self, node: fx.Node) -> Any:
        if node not in self.values:
            if node.op == "get_attr":
                value: Any = self.module
                for part in str(node.target).split("."):
                    value = getattr(value, part)
            else:
                target: Any = node.target
                arguments, keywords = fx.map_arg((node.args, dict(node.kwargs)), self._value)
                value = target(*arguments, **keywords)
            self.values[node] = value
        return self.values[node]

    def _fold(self, node: fx.Node, constant: set[fx.Node]) -> None:
        outside = [user for user in node.users if user not in constant]
        if outside:
            with self.module.graph.inserting_before(node):
                held = self._hold(self._value(node))
            for user in outside:
                user.replace_input_with(node, held)

    def _hold(self, value: Tensor) -> fx.Node:
        self.count += 1
        name = f"folded_{self.count}"
        self.module.register_buffer(name, value.detach().contiguous().clone())
        return self.module.graph.get_attr(name)

    def _solve(self, node: fx.Node, constant: set[fx.Node]) -> None:
        a, b = node.args
        assert isinstance(a, fx.Node)
        options = {"upper": node.kwargs["upper"]}
        options |= {key: node.kwargs[key] for key in ("left", "unitriangular") if key in node.kwargs}
        with self.module.graph.inserting_before(node):
            if a in constant:
                matrix = self._value(a)
                wide = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
                triangle = {key: value for key, value in options.items() if key != "left"}
                inverse = self._hold(torch.linalg.solve_triangular(matrix.double(), wide, **triangle).to(matrix.dtype))
                pair = (inverse, b) if options.get("left", True) else (b, inverse)
                made = self.module.graph.call_function(torch.matmul, pair)
            else:
                made = self.module.graph.call_function(solve_by_halves, (a, b), options)
        node.replace_all_uses_with(made)
        self.module.graph.erase_node(node)


def _may_lack(program: torch.export.ExportedProgram) -> bool:
    """Whether an operation of the program, regions within it included, is or decomposes into what ONNX lacks."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    names = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return any(LACKING.match(name) for name in names)


def _is_linear_algebra(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op == "call_function" and name.startswith(("aten.linalg_", "aten._linalg_")) and "norm" not in name


def _story(error: BaseException) -> str:
    cause: BaseException | None = error
    told = []
    while cause is not None:
        told.append(str(cause))
        cause = cause.__cause__
    return "\n".join(told)


@contextmanager
def _without_logs() -> Iterator[None]:
    """onnxscript's optimiser tells what it leaves alone."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
