"""The safetensors file around a flow: read strictly, tensors last, and with a checksum over all that it says."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from flowkit._version import __version__
from flowkit.errors import StorageError
from flowkit.shapes import Shape
from flowkit.strict_json import in_one_line, parse, shown

HEADER = "flowkit"  # the key of safetensors' metadata that holds the description
CHECKSUM = "sha256"
SCHEMA = 1
KEYS = ("schema", "flowkit", "dtype", "graph", "base", "base_given", "plugins", CHECKSUM)
LARGEST_HEADER = 100_000_000  # bytes: safetensors' own bound

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Opened:
    """What a file says before a tensor is read.

    Attributes:
        path: where it is.
        description: the flow's, strictly parsed.
        specs: shape and dtype of each tensor by name.
    """

    path: Path
    description: dict[str, Any]
    specs: dict[str, tuple[Shape, torch.dtype]]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, no views of the file, checked against the checksum where the file has one.

        Raises:
            StorageError: they cannot be read, or are not those that were saved.
        """
        try:
            with safe_open(str(self.path), framework="pt") as file:
                # Cloned: what is mapped into memory would be at the mercy of whoever writes to the file later.
                read = {name: file.get_tensor(name).clone() for name in self.specs}
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise _damaged(self.path, error) from error
        told = self.description.get(CHECKSUM)
        if told is not None and told != checksum(self.description, read):
            raise StorageError(f"'{self.path}' is damaged: its contents do not have the checksum they were saved with")
        return read


def encode(description: dict[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The whole file's bytes."""
    whole = {**description, CHECKSUM: checksum(description, tensors)}
    return serialize(dict(tensors), metadata={HEADER: json.dumps(whole, allow_nan=False)})


def checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the description without its checksum, and of every tensor's name, dtype, shape and bytes."""
    plain = {key: value for key, value in description.items() if key != CHECKSUM}
    digest = hashlib.sha256(json.dumps(plain).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # One number counts as contiguous whatever its strides, of which a view as bytes wants the last to be 1.
        flat = tensor.as_strided((tensor.numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_file(path: str | os.PathLike) -> Opened:
    """What the file says of itself: its description, and the names, shapes and dtypes of its tensors.

    Raises:
        StorageError: it is missing, damaged, not flowkit's, or of a newer schema.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise StorageError(f"'{path}' is a folder, not a flow's file")
        if not path.exists():
            raise StorageError(f"the file '{path}' does not exist")
        if not path.is_file():
            raise StorageError(f"'{path}' is no regular file")
        header = _header(path)
    except (OSError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise _damaged(path, error) from error
    metadata = header.pop("__metadata__", None)
    text = metadata.get(HEADER) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise StorageError(f"'{path}' is a safetensors file, but not one that flowkit wrote")
    return Opened(path, _description(path, text), {name: _spec(path, name, each) for name, each in header.items()})


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
        text = file.read(length)
    try:
        header = parse(text, "its header")
    except StorageError as error:
        raise ValueError(str(error)) from None
    if not isinstance(header, dict):
        raise ValueError("its header is no dictionary")
    try:
        with safe_open(str(path), framework="pt"):  # where the tensors lie is for safetensors to judge
            return header
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _spec(path: Path, name: str, each: Any) -> tuple[Shape, torch.dtype]:
    dtype = DTYPES.get(each["dtype"]) if isinstance(each, dict) and isinstance(each.get("dtype"), str) else None
    if dtype is None:
        raise StorageError(f"'{path}' is damaged: the tensor {shown(name)} is of no dtype that a flow has")
    return tuple(each["shape"]), dtype


def _description(path: Path, text: str) -> dict[str, Any]:
    try:
        description = parse(text, "its description")
    except StorageError as error:
        raise StorageError(f"'{path}' is damaged: {error}") from error
    schema = description.get("schema") if isinstance(description, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise StorageError(f"'{path}' is damaged: its description has no schema")
    if schema > SCHEMA:
        raise StorageError(
            f"'{path}' was written by flowkit {_version(description)} in schema {schema}; "
            f"this is flowkit {__version__}, which reads schema {SCHEMA}: update flowkit"
        )
    if unknown := [key for key in description if key not in KEYS]:
        raise StorageError(f"'{path}' is damaged: its description has the unknown key {shown(unknown[0])}")
    return description


def _version(description: dict[str, Any]) -> str:
    return in_one_line(str(description.get("flowkit")), 30)


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(f"'{path}' is not a safetensors file, or is damaged: {in_one_line(str(error))}")
