"""A flow as one safetensors file: graph, base, versions and weights; no pickle, no code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowkit._version import __version__
from flowkit.allocation import AllocationLimit
from flowkit.container import SCHEMA, Opened, encode, open_file
from flowkit.encoding import DTYPES_BY_NAME, Decoder, Encoder
from flowkit.errors import FlowkitError, MissingDependencyError, RegistryError, StorageError
from flowkit.flow import Flow
from flowkit.graph import Graph
from flowkit.graph.files import read_graph, write_graph
from flowkit.shapes import Shape
from flowkit.strict_json import check, in_one_line, shown


def save(flow: Flow, path: str | os.PathLike) -> None:
    """Write a flow to one safetensors file, whole or not at all: it replaces an earlier one, which survives a failure.

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
            f"{where}: {in_one_line(what, 80)} has no written form: register its class or function with fk.register, "
            "or use a built-in one"
        )
    check(description, "the flow's description")  # what `load` would refuse is not written
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in named_state(flow)}
    content = encode(description, tensors)
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(content)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Flow:
    """The flow that `save` wrote, in eval mode, with the same numbers to the last bit.

    A stranger's file is safe to load: nothing in it is code, and what it asks for is first built without memory, on the
    meta device, and compared with the weights that the file has.

    Args:
        path: of the file, or an address `hf://owner/name[@revision]/file` of the Hugging Face Hub.
        device: where the flow is put.

    Raises:
        StorageError: not such a file, damaged, of a newer schema, or its weights do not fit its graph.
        RegistryError: it needs a plugin that is missing; the message names it.
        MissingDependencyError: an address, and huggingface_hub is not installed.
    """
    if str(path).startswith("hf://"):
        from flowkit.interop.hub import fetch

        path = fetch(str(path))
    file = open_file(path)
    dtype = DTYPES_BY_NAME.get(str(file.description.get("dtype")))
    if dtype is None or not dtype.is_floating_point:
        raise StorageError(f"'{path}' is not a whole flowkit file: its dtype is {shown(file.description.get('dtype'))}")
    limits = file.path.stat().st_size, len(file.specs)
    with torch.random.fork_rng(devices=[]), default_dtype(dtype):
        sketch = _sketch(file, limits)
        if sketch is not None:
            _compare(sketch, file.specs, path)
        tensors = file.tensors()
        with _refusals(path), AllocationLimit(*limits):
            flow = _build(file.description)
    _compare(flow, file.specs, path)
    for name, tensor in named_state(flow):
        tensor.data = tensors[name]  # in place of the tensor's own, so that what parts share stays shared
    with _refusals(path):
        for module in flow.modules():
            getattr(module, "check_state", _nothing)()
    return flow.to(device).eval()


def _sketch(file: Opened, limits: tuple[int, int]) -> Flow | None:
    """The flow on the meta device, where even an absurd one takes no memory; None if it cannot be built there."""
    with _refusals(file.path):
        try:
            with torch.device("meta"), AllocationLimit(*limits):
                return _build(file.description)
        except Exception as error:
            if _is_flowkit_s(error):
                raise
            # A plugin's constructor may do what the meta device cannot; the real one decides, and is watched.
            with AllocationLimit(*limits):
                _build(file.description)
            return None


def _is_flowkit_s(error: BaseException | None) -> bool:
    """Whether flowkit refused it, for a reason of its own."""
    return error is None or (isinstance(error, FlowkitError) and _is_flowkit_s(error.__cause__))


def _build(description: dict[str, Any]) -> Flow:
    decoder = Decoder()
    graph = read_graph(description.get("graph"), decoder)
    base = decoder.decode(description.get("base"))
    if isinstance(base, Graph):
        raise StorageError("its base is a graph")
    return Flow(graph, base=base, base_given=_names(description.get("base_given")))


def _names(written: Any) -> list[str] | None:
    if written is not None and not (isinstance(written, list) and all(isinstance(name, str) for name in written)):
        raise StorageError(f"base_given must be a list of wires' names, got {shown(written)}")
    return written or None


@contextmanager
def _refusals(path: Any) -> Iterator[None]:
    """Whatever goes wrong while a file's flow is built is one sentence about the file."""
    try:
        yield
    except (RegistryError, MissingDependencyError):
        raise
    # A stranger's description can make any constructor raise anything.
    except Exception as error:
        kind = "" if isinstance(error, FlowkitError) else f"{type(error).__name__}: "
        raise StorageError(f"'{path}' cannot be read: {kind}{in_one_line(str(error))}") from error


def _nothing() -> None:
    """What a part without a `check_state` does."""


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by state name; a shared tensor once, under its first name."""
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _compare(flow: Flow, specs: dict[str, tuple[Shape, torch.dtype]], path: Any) -> None:
    """Refuse weights that are missing, surplus, of another shape or of another kind than the graph's."""
    expected = dict(named_state(flow))
    missing, surplus = [n for n in expected if n not in specs], [n for n in specs if n not in expected]
    if missing or surplus:
        what = f"{shown(missing[0], 200)} is missing" if missing else f"{shown(surplus[0], 200)} belongs to no part"
        raise StorageError(
            f"'{path}' is damaged: its weights do not fit its graph, {what} ({len(missing)} missing, "
            f"{len(surplus)} surplus)"
        )
    for name, tensor in expected.items():
        shape, dtype = specs[name]
        if tuple(tensor.shape) != shape:
            raise StorageError(f"'{path}' is damaged: '{name}' must be of shape {tuple(tensor.shape)}, got {shape}")
        if not (tensor.dtype == dtype or (tensor.is_floating_point() and dtype.is_floating_point)):
            raise StorageError(f"'{path}' is damaged: '{name}' must be of {tensor.dtype}, got {dtype}")


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
