"""What `flowkit check` does: the laws on a registered bijection, or a diagnosis of a saved flow with its weights."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import flowkit as fk
from flowkit import diagnostics
from flowkit.interop.hub import is_address
from flowkit.testing.check import check_bijection
from flowkit.testing.laws.exactness import LARGEST_JACOBIAN
from flowkit.testing.report import Finding, Report, Result
from flowkit.trace import Trace

FILE_SUFFIX = ".safetensors"
ROWS = 4
# Trained weights may be worse conditioned than redrawn ones; beyond these a flow's numbers cannot be trusted.
LIMITS = {torch.float32: 1e-2, torch.float64: 1e-6}


@dataclass(frozen=True)
class Checked:
    """What was found: `ok`, and `str()` of it a table.

    Attributes:
        target: what was checked.
        report: each law, or each diagnosis, with its figure.
        trace: of a file's flow, node by node; None for a bijection.
    """

    target: str
    report: Report
    trace: Trace | None = None

    @property
    def ok(self) -> bool:
        """Nothing is broken."""
        return self.report.ok

    def __str__(self) -> str:
        return str(self.report) if self.trace is None else f"{self.report}\n\n{self.trace!r}"


def check(target: str, imports: Sequence[str] = ()) -> Checked:
    """Check a bijection by its registered name, or the flow in a `.safetensors` file or at an address of the Hub.

    Args:
        target: a name, a path that ends in `.safetensors`, or an address `hf://owner/name[@revision]/file`.
        imports: modules to import first; they are looked for in the working directory, too.

    Raises:
        ConfigError: a module cannot be imported, or the name is that of no bijection.
        RegistryError: no such name.
        StorageError: the file cannot be read.
    """
    for module in imports:
        _import(module)
    if target.endswith(FILE_SUFFIX) or is_address(target):
        return check_file(target)
    return Checked(target, check_bijection(target, raises=False))


def _import(module: str) -> None:
    here = os.getcwd()
    if here not in sys.path:  # the command's own path does not have it, unlike `python -m`
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except Exception as error:
        raise fk.ConfigError(f"the module '{module}' cannot be imported: {type(error).__name__}: {error}") from error


def check_file(path: str) -> Checked:
    """A diagnosis of a saved flow with its weights as they are: round trip, log-det, finite numbers, scales by node."""
    flow = fk.load(path)
    x, given = _normal_data(flow)
    results = [_round_trip(flow, x, given, dtype) for dtype in (torch.float32, torch.float64)]
    results.append(_log_det(flow, x, given))
    trace = flow.trace(x, given=given)
    bad = trace.first_bad(LIMITS[torch.float32])
    findings = () if bad is None else (Finding(f"node '{bad.name}' is the first that goes wrong"),)
    results.append(Result("trace", "failed" if findings else "passed", path, findings))
    notes = (f"{ROWS} rows of standard normal data and conditions; real data may lie elsewhere",)
    return Checked(path, Report(tuple(Result(**{**vars(r), "subject": path}) for r in results), notes), trace)


def _normal_data(flow: fk.Flow) -> tuple[dict[str, Tensor] | Tensor, dict[str, Tensor] | None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dtype = flow.network.reference.dtype
        x = {name: torch.randn(ROWS, *shape, dtype=dtype) for name, shape in flow.input_shapes.items()}
        given = {
            wire.name: torch.randn(ROWS, *wire.shape, dtype=dtype)
            if wire.dtype is None or wire.dtype.is_floating_point
            else torch.zeros(ROWS, *wire.shape, dtype=wire.dtype)
            for wire in flow.network.graph.conditions
        }
    if flow.network.embedded:  # normal numbers are on no surface: its own samples are
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return flow.sample(() if given else (ROWS,), given=given or None), given or None
    return (next(iter(x.values())) if len(x) == 1 else x), given or None


def _cast(value: Tensor | dict[str, Tensor] | None, dtype: torch.dtype) -> Tensor | dict[str, Tensor] | None:
    if isinstance(value, dict):
        return {name: _cast(tensor, dtype) for name, tensor in value.items()}  # type: ignore[misc]
    return value if value is None or not value.is_floating_point() else value.to(dtype)


def _judged(law: str, figures: dict[str, float], limit: float) -> Result:
    findings = tuple(Finding(text, value, limit) for text, value in figures.items() if not value <= limit)
    return Result(law, "failed" if findings else "passed", "", findings, "", max(figures.values()), limit)


def _round_trip(flow: fk.Flow, x: object, given: object, dtype: torch.dtype) -> Result:
    name = f"round_trip_{str(dtype).removeprefix('torch.')}"
    if not flow.exact:
        return Result(name, "skipped", reason=f"the flow is not exact: {flow.exact!r}")
    copied = copy.deepcopy(flow).to(dtype)
    found = diagnostics.round_trip(copied, _cast(x, dtype), _cast(given, dtype))  # type: ignore[arg-type]
    figures = {"inverse(forward(x)) differs from x": found.relative, "the log-dets do not cancel": found.log_det_error}
    return _judged(name, figures, LIMITS[dtype])


def _log_det(flow: fk.Flow, x: object, given: object) -> Result:
    if not flow.exact:
        return Result("log_det", "skipped", reason=f"the flow is not exact: {flow.exact!r}")
    if flow.network.embedded:
        return Result("log_det", "skipped", reason="a part is on a surface: its class is checked by the kit")
    if flow.dim > LARGEST_JACOBIAN:
        return Result(
            "log_det", "skipped", reason=f"{flow.dim} dimensions: the Jacobian is tried up to {LARGEST_JACOBIAN}"
        )
    found = diagnostics.log_det_error(flow, x, given)  # type: ignore[arg-type]
    figures = {"forward's log-det differs from the Jacobian's": found.forward, "the inverse's differs": found.inverse}
    return _judged("log_det", figures, LIMITS[torch.float64])
