"""What the sub-commands that take a saved flow share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowkit.errors import StorageError

if TYPE_CHECKING:
    from flowkit.flow import Flow


# No `path_type=Path`: a Path makes one slash of an address's two.
saved_flow = click.argument("file", type=click.Path())


def local(file: str) -> Path:
    """The path of a saved flow; of an address `hf://owner/name[@revision]/file`, that of its copy on this machine.

    Raises:
        StorageError: an address that is none, or that cannot be had.
        MissingDependencyError: an address, and huggingface_hub is not installed.
    """
    from flowkit.interop.hub import fetch, is_address

    return fetch(file) if is_address(file) else Path(file)


def load_flow(file: str) -> Flow:
    """The flow in a file, or at an address of the Hugging Face Hub.

    Raises:
        StorageError: there is no such file, or it holds no flow.
        MissingDependencyError: an address, and huggingface_hub is not installed.
    """
    import flowkit as fk

    path = local(file)
    if not path.is_file():
        raise StorageError(
            f"there is no file {path}"
            if not path.exists()
            else f"{path} is a folder, and a .safetensors file is needed"
        )
    return fk.load(path)


def describe(file: str, size: int, flow: Flow) -> list[tuple[str, str]]:
    """The facts about a flow from a file of so many bytes that fit on a line each."""
    parameters = list(flow.parameters())
    facts = [("file", f"{file} ({size:,} bytes)")]
    facts += [(f"input {name}", str(shape)) for name, shape in flow.input_shapes.items()]
    facts += [(f"condition {name}", str(shape)) for name, shape in flow.condition_shapes.items()]
    facts += [
        (f"latent {name}", f"{shape} at z[{where.start}:{where.stop}]") for name, (where, shape) in flow.latents.items()
    ]
    facts.append(("base", type(flow.base).__name__))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    facts.append(
        (
            "parameters",
            f"{sum(p.numel() for p in parameters):,} in {len(parameters)} tensors, {', '.join(dtypes) or 'none'}",
        )
    )
    return facts
