"""Programs that `export` wrote, read back: for a test, a small server, or a look."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkit.errors import InputError, MissingDependencyError, StorageError
from flowkit.interop.export import MARK
from flowkit.shapes import listing


class Exported:
    """A program from a file: call it with tensors in the order of `inputs`, or by name.

    Attributes: `what` it computes, the names of its `inputs` and `outputs`, and `kind`, one of torch, onnx and aoti.
    """

    def __init__(self, description: str, kind: str, run: Callable[..., Any]):
        facts = json.loads(description)
        self.what, self.kind = str(facts["what"]), kind
        self.inputs, self.outputs = tuple(facts["inputs"]), tuple(facts["outputs"])
        self._run = run

    def __call__(self, *tensors: Tensor, **by_name: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor, or a tuple in the order of `outputs`."""
        names = [*self.inputs[: len(tensors)], *by_name]
        if len(tensors) > len(self.inputs) or sorted(names) != sorted(self.inputs):
            raise InputError(
                f"{self.what} takes {listing(self.inputs)}, got {len(tensors)} tensors and {listing(list(by_name))}"
            )
        found = self._run(*tensors, *[by_name[name] for name in self.inputs[len(tensors) :]])
        found = found if isinstance(found, list | tuple) else (found,)
        return found[0] if len(found) == 1 else tuple(found)

    def __repr__(self) -> str:
        return f"Exported({self.kind}: {self.what}({', '.join(self.inputs)}) -> {', '.join(self.outputs)})"


def load_exported(path: str | os.PathLike) -> Exported:
    """A program that `export` wrote; an ONNX one runs in onnxruntime, on the processor.

    An AOTInductor package is machine code, and an exported program is rebuilt by torch: load only what you trust.

    Raises:
        StorageError: there is no such file, or it is not of `export`.
        MissingDependencyError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"there is no file '{path}'")
    try:
        found = _onnx(path) if path.suffix.lower() == ".onnx" else _torch(path)
    except (MissingDependencyError, StorageError):
        raise
    except Exception as error:  # each of the three readers has its own classes
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise StorageError(f"'{path}' cannot be read as an exported flow: {reason}") from error
    if found is None:
        raise StorageError(f"'{path}' is not a file that flowkit exported")
    return found


def _torch(path: Path) -> Exported | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        compiled = any("aotinductor" in name for name in archive.namelist())
    if compiled:
        loaded: Any = torch._inductor.aoti_load_package(str(path))
        description = loaded.get_metadata().get(MARK)
        return None if description is None else Exported(description, "aoti", loaded)
    extra = {MARK: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path, extra_files=extra)
    return Exported(extra[MARK], "torch", program.module()) if extra[MARK] else None


def _onnx(path: Path) -> Exported | None:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("this needs onnxruntime: python -m pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().custom_metadata_map.get(MARK)
    if description is None:
        return None
    used = {node.name for node in session.get_inputs()}  # an input that nothing depends on may be left out
    names = json.loads(description)["inputs"]

    def run(*tensors: Tensor) -> list[Tensor]:
        fed = {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True) if name in used}
        return [torch.from_numpy(value) for value in session.run(None, fed)]

    return Exported(description, "onnx", run)
