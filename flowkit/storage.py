"""A flow as one safetensors file: graph, base, versions and weights; no pickle, no code."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flowkit._version import __version__
from flowkit.encoding import Decoder, Encoder
from flowkit.errors import FlowkitError, MissingDependencyError, RegistryError, StorageError
from flowkit.flow import Flow
from flowkit.graph.files import read_graph, write_graph

HEADER = "flowkit"
SCHEMA = 1


def save(flow: Flow, path: str | os.PathLike) -> None:
    """Write a flow to one safetensors file, whole or not at all: an earlier file survives a failure.

    Every part must be written by a registered name: the built-in ones are, yours are after `@fk.register`.

    Raises:
        StorageError: a part cannot be written (it is named), or the file cannot.

    >>> import flowkit as fk, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "scale.safetensors")
    >>> fk.save(fk.Flow(fk.ElementwiseAffine((3,))), path)
    >>> fk.load(path).input_shapes
    {'x': (3,)}
    """
    if not isinstance(flow, Flow):
        raise StorageError(f"a Flow can be saved, got {type(flow).__name__}")
    encoder = Encoder()
    description = {
        "schema": SCHEMA,
        "flowkit": __version__,
        "dtype": str(flow.network.reference.dtype).removeprefix("torch."),
        "graph": write_graph(flow.network.graph, encoder),
        "base": encoder.encode(flow.base, "the base"),
        "base_given": [flow.network.graph.wires[i].name for i in flow._base_wires],
        "plugins": sorted(encoder.prefixes),
    }
    if encoder.unwritable:
        where, what = next(iter(encoder.unwritable.items()))
        raise StorageError(
            f"{where}: {_in_one_line(what)} has no written form: register its class or function with fk.register, "
            "or use a built-in one"
        )
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in named_state(flow)}
    content = serialize(tensors, metadata={HEADER: json.dumps(description)})
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(content)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Flow:
    """The flow that `save` wrote, in eval mode, with the same numbers to the last bit.

    Raises:
        StorageError: not such a file, damaged, of a newer schema, or its weights do not fit its graph.
        RegistryError: it needs a plugin that is missing; the message names it.
    """
    description, tensors = read(path)
    dtype = getattr(torch, str(description.get("dtype")), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise StorageError(f"'{path}' is not a whole flowkit file: its dtype is {description.get('dtype')!r}")
    try:
        with torch.random.fork_rng(devices=[]), default_dtype(dtype):
            decoder = Decoder()
            graph = read_graph(description.get("graph"), decoder)
            base = decoder.decode(description.get("base"))
            flow = Flow(graph, base=base, base_given=description.get("base_given") or None)
    except (RegistryError, MissingDependencyError):
        raise
    except (FlowkitError, TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise StorageError(f"'{path}' cannot be read: {error}") from error
    _put_weights(flow, tensors, path)
    return flow.to(device).eval()


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors in a file, nothing built yet.

    Raises:
        StorageError: it is missing, damaged, or not flowkit's.
    """
    path = Path(path)
    if path.is_dir():
        raise StorageError(f"'{path}' is a folder, not a flow's file")
    if not path.exists():
        raise StorageError(f"the file '{path}' does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise StorageError(f"'{path}' is not a safetensors file, or is damaged: {error}") from error
    if header is None:
        raise StorageError(f"'{path}' is a safetensors file, but not one that flowkit wrote")
    try:
        description = json.loads(header)
    except json.JSONDecodeError as error:
        raise StorageError(f"'{path}' is damaged: its description is no JSON ({error})") from error
    if not isinstance(description, dict) or not isinstance(description.get("schema"), int):
        raise StorageError(f"'{path}' is damaged: its description has no schema")
    if description["schema"] > SCHEMA:
        raise StorageError(
            f"'{path}' was written by flowkit {description.get('flowkit')} in schema {description['schema']}; "
            f"this is flowkit {__version__}, which reads schema {SCHEMA}: update flowkit"
        )
    return description, tensors


def _in_one_line(text: str) -> str:
    """A repr as an error's sentence holds it; that of a module may have hundreds of lines."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by state name; a shared tensor once, under its first name."""
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _put_weights(flow: Flow, tensors: dict[str, Tensor], path: Any) -> None:
    expected = dict(named_state(flow))
    missing, surplus = [n for n in expected if n not in tensors], [n for n in tensors if n not in expected]
    if missing or surplus:
        what = f"'{missing[0]}' is missing" if missing else f"'{surplus[0]}' belongs to no part"
        raise StorageError(
            f"'{path}' is damaged: its weights do not fit its graph, {what} ({len(missing)} missing, "
            f"{len(surplus)} surplus)"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise StorageError(
                f"'{path}' is damaged: '{name}' must be of shape {tuple(tensor.shape)}, got "
                f"{tuple(tensors[name].shape)}"
            )
    flow.load_state_dict(tensors, strict=False, assign=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well, and is removed when it does not.

    Raises:
        StorageError: the folder is missing or cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are for their owner alone
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The default floating dtype for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
