"""What the sub-commands that take a saved flow share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.errors import StorageError

if TYPE_CHECKING:
    from flowkit.flow import Flow


def load_flow(path: Path) -> Flow:
    """The flow in a file.

    Raises:
        StorageError: there is no such file, or it holds no flow.
    """
    import flowkit as fk

    if not path.is_file():
        raise StorageError(
            f"there is no file {path}"
            if not path.exists()
            else f"{path} is a folder, and a .safetensors file is needed"
        )
    return fk.load(path)


def describe(path: Path, flow: Flow) -> list[tuple[str, str]]:
    """The facts about a flow that fit on a line each."""
    parameters = list(flow.parameters())
    facts = [("file", f"{path} ({path.stat().st_size:,} bytes)")]
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
