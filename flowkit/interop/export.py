"""Flows as programs that run without flowkit: torch.export, ONNX and AOTInductor packages."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowkit._version import __version__
from flowkit.bijection import Bijection
from flowkit.distributions import Base
from flowkit.errors import ConfigError, ExportError, MissingDependencyError, StorageError
from flowkit.flow import Flow
from flowkit.graph import InvertibleNetwork
from flowkit.shapes import listing
from flowkit.storage import atomic_write

FUNCTIONS = ("log_prob", "forward", "inverse", "sample")
ENDINGS = {"torch": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}
MARK = "flowkit"  # under which a file says what it is
EXAMPLE_ROWS = 3  # neither 0 nor 1, which the exporter takes for fixed sizes


class FlowFunction(nn.Module):
    """One function of a flow as a module of tensors to tensors, one batch dimension each: what is exported.

    `log_prob(x, *conditions) -> log_prob`, `forward(x, *conditions) -> z, log_det`, `inverse(z, *conditions) -> x,
    log_det`, and `sample(noise, *conditions, temperature) -> x`, which draws nothing: the noise `(B, N)` is what
    `flow.base.noise((B,))` gives (standard normal numbers `(B, D)` for the usual bases), the temperature one number.
    Several data inputs are several tensors, in the order of the graph.

    Args:
        flow: the flow, which is copied; the copy is in eval mode, without gradients, not compiled.
        what: the function.

    Attributes: `inputs` and `outputs`, the names in order. A name of flowkit's own (`noise`, `temperature`, `log_det`,
    `log_prob`, `z`) that the flow already uses gets a `_` at its end.

    Raises:
        ConfigError: something else than a flow; an unknown function.
        ExportError: a part that is adaptive; for `sample`, a base whose samples are no function of noise.

    >>> import flowkit as fk
    >>> sample = FlowFunction(fk.Flow(fk.AffineCoupling((4,), given=2)), "sample")
    >>> sample.inputs, sample.outputs
    (('noise', 'y', 'temperature'), ('x',))
    """

    def __init__(self, flow: Flow, what: str):
        super().__init__()
        if not isinstance(flow, Flow):
            raise ConfigError(f"a Flow can be exported, got {type(flow).__name__}")
        if what not in FUNCTIONS:
            raise ConfigError(f"what can be exported of a flow is {listing(FUNCTIONS)}, got {what!r}")
        _refuse(flow, what)
        self.flow = copy.deepcopy(flow).eval().requires_grad_(False)
        self.flow.backprop = "plain"
        self.what = what
        conditions, data = tuple(flow.condition_shapes), tuple(flow.input_shapes)
        first = data if what in ("log_prob", "forward") else ("z",) if what == "inverse" else ("noise",)
        last = ("temperature",) if what == "sample" else ()
        taken = {*conditions, *(data if first == data else ())}
        self.inputs = (*(first if first == data else _free(first, taken)), *conditions, *_free(last, taken))
        ours = {"log_prob": ("log_prob",), "forward": ("z", "log_det"), "inverse": (*data, "log_det"), "sample": data}
        self.outputs = _free(ours[what], set(self.inputs))

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The tensors in the order of `inputs`; gives those of `outputs`, one or a tuple."""
        flow, count = self.flow, len(self.inputs)
        if len(tensors) != count:
            raise ConfigError(f"{self.what} takes {count} tensors, {listing(self.inputs)}, got {len(tensors)}")
        names = tuple(flow.condition_shapes)
        start = len(flow.input_shapes) if self.what in ("log_prob", "forward") else 1
        given = dict(zip(names, tensors[start : start + len(names)], strict=True)) or None
        if self.what == "sample":
            return _in_order(flow._sample_of_noise(tensors[0], flow._conditions(given), tensors[-1]), flow)
        if self.what == "inverse":
            x, log_det = flow.inverse(tensors[0], given=given)
            return (*_several(_in_order(x, flow)), log_det)
        data = tensors[0] if start == 1 else dict(zip(flow.input_shapes, tensors[:start], strict=True))
        return flow.log_prob(data, given=given) if self.what == "log_prob" else flow(data, given=given)

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Tensors of the right shapes and dtypes, of so many rows; the values mean nothing."""
        flow, like = self.flow, self.flow.network.reference
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            if self.what in ("log_prob", "forward"):
                first = [like.new_zeros(rows, *shape) for shape in flow.input_shapes.values()]
            else:
                first = [like.new_zeros(rows, flow.dim) if self.what == "inverse" else flow.base.noise((rows,))]
        given = [
            like.new_zeros(rows, *shape, dtype=flow._condition_dtypes.get(name) or like.dtype)
            for name, shape in flow.condition_shapes.items()
        ]
        return (*first, *given, *([like.new_ones(())] if self.what == "sample" else []))

    def program(self) -> torch.export.ExportedProgram:
        """The function as torch.export has it, its batch dynamic."""
        return trace(self, self.example(EXAMPLE_ROWS))

    def description(self) -> str:
        """What a file says about itself."""
        facts = {"flowkit": __version__, "what": self.what, "inputs": self.inputs, "outputs": self.outputs}
        return json.dumps(facts)


def export(
    flow: Flow,
    what: str = "log_prob",
    to: str = "torch",
    path: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Any:
    """A function of a flow as a program without flowkit, for any batch size; to a file if wanted, whole or not at all.

    What the function takes and gives is told by `FlowFunction`. The program has the flow's dtype, holds its weights,
    and runs as in eval mode. Conditions have as many rows as the data: repeat one that serves for many samples.

    Args:
        flow: the flow.
        what: `"log_prob"`, `"forward"`, `"inverse"` or `"sample"`.
        to: `"torch"`, a `torch.export.ExportedProgram` (`.pt2`); `"onnx"`, through torch's dynamo exporter (`.onnx`);
            `"aoti"`, an AOTInductor package: machine code for this machine's kind of processor (`.pt2`).
        path: where to write; `load_exported` reads it.
        overwrite: whether a file that is there already may be replaced.

    Returns:
        The `ExportedProgram`, the `torch.onnx.ONNXProgram`, or, for `"aoti"`, the path.

    Raises:
        ConfigError: an unknown `what` or `to`, no path for `"aoti"`, a path with another ending.
        ExportError: a part that is adaptive, or has an operation that the format lacks; it is named.
        MissingDependencyError: onnx and onnxscript are not installed; for `"aoti"`, no C++ compiler.
        StorageError: the file is there already, or cannot be written.

    >>> import flowkit as fk
    >>> program = export(fk.flows.realnvp(2, layers=2, hidden=4), "log_prob")
    >>> program.module()(torch.zeros(5, 2)).shape
    torch.Size([5])
    """
    if to not in ENDINGS:
        raise ConfigError(f"a flow is exported to {listing(list(ENDINGS))}, got {to!r}")
    where = None if path is None else check_path(path, to, overwrite)
    if to == "aoti" and where is None:
        raise ConfigError("an AOTInductor package is a file: pass path=")
    if to == "onnx":
        _need("onnx", "onnxscript")
    function = FlowFunction(flow, what)
    if to == "onnx":
        from flowkit.interop._onnx import onnx_program

        made = onnx_program(function)
        if where is not None:
            _write(where, made.model_proto.SerializeToString())
        return made
    program = function.program()
    if to == "aoti" and where is not None:
        return _package(program, function, where)
    if where is not None:
        with atomic_write(where) as temporary, temporary.open("wb") as file, _quiet():
            torch.export.save(program, file, extra_files={MARK: function.description()})
    return program


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """torch.export of a module whose tensors share a first, dynamic dimension, but for single numbers.

    Raises:
        ExportError: it depends on the values of its tensors.
    """
    batch = torch.export.Dim("batch", min=0)
    dims = tuple({0: batch} if tensor.dim() else {} for tensor in example)
    # FlowFunction takes *tensors, which is one argument; a module that was traced before has one for each.
    shapes: Any = (dims,) if isinstance(module, FlowFunction) else dims
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, example, dynamic_shapes=shapes)
    except Exception as error:  # torch has a class of its own for each cause
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ExportError(f"torch.export cannot take this flow: {type(error).__name__}: {reason}") from error


def check_path(path: str | os.PathLike, to: str, overwrite: bool, how: str = "overwrite=True") -> Path:
    """The path, if a file of this kind may be written there; refused before the work begins.

    Raises:
        ConfigError: another ending.
        StorageError: its folder is missing, or the file is there already.
    """
    where = Path(path)
    if where.suffix.lower() != ENDINGS[to]:
        raise ConfigError(f"the output '{where}' of an export to {to} has to end in {ENDINGS[to]}")
    if not where.parent.is_dir():
        raise StorageError(f"'{where}' cannot be written: there is no folder {where.parent}")
    if where.is_dir():
        raise StorageError(f"'{where}' cannot be written: it is a folder")
    if where.exists() and not overwrite:
        raise StorageError(f"'{where}' is there already, and only {how} replaces it")
    return where


def _package(program: torch.export.ExportedProgram, function: FlowFunction, where: Path) -> Path:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    configs = {"aot_inductor.metadata": {MARK: function.description()}}
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "flow.pt2")
        try:
            with torch.no_grad(), _quiet():
                aoti_compile_and_package(program, package_path=made, inductor_configs=configs)
        except InvalidCxxCompiler as error:
            raise MissingDependencyError("AOTInductor needs a C++ compiler: apt-get install g++") from error
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ExportError(f"AOTInductor cannot compile this flow: {type(error).__name__}: {reason}") from error
        _write(where, Path(made).read_bytes())
    return where


def _write(where: Path, content: bytes) -> None:
    with atomic_write(where) as temporary:
        temporary.write_bytes(content)


def _refuse(flow: Flow, what: str) -> None:
    adaptive = [f"'{name}' ({type(part).__name__})" for name, part in _parts(flow.network, "") if part.adaptive]
    if adaptive:
        raise ExportError(
            f"a program has a fixed number of steps, and that of {', '.join(adaptive)} depends on the data: give it a "
            "fixed number, or run the flow by flowkit"
        )
    if what == "sample":
        made = getattr(type(flow.base), "from_noise", Base.from_noise)
        if made is Base.from_noise:
            raise ExportError(
                f"{type(flow.base).__name__} has no from_noise, so its samples are no function of noise: export "
                "'inverse', and draw z by the base"
            )


def _parts(part: Any, prefix: str) -> Iterator[tuple[str, Bijection]]:
    """Every bijection that is no network, by its dotted name."""
    for name, node in part.nodes.items():
        if isinstance(node, InvertibleNetwork):
            yield from _parts(node, f"{prefix}{name}.")
        elif isinstance(node, Bijection):
            yield prefix + name, node


def _free(names: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    found = []
    for name in names:
        while name in taken:
            name += "_"
        found.append(name)
    return tuple(found)


def _in_order(x: Any, flow: Flow) -> Tensor | tuple[Tensor, ...]:
    return tuple(x[name] for name in flow.input_shapes) if isinstance(x, dict) else x


def _several(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(f"ONNX needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn about themselves; nothing that the caller could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
