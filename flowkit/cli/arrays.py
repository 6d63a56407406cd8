"""Arrays by name in files, for the commands that take data and conditions, and write samples."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkit.cli.output import write_file
from flowkit.errors import InputError, NonFiniteError, StorageError

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    from flowkit.flow import Flow


def read_arrays(path: Path) -> dict[str, numpy.ndarray]:
    """The arrays of an .npz file by name; that of an .npy or .csv file under the name "".

    Raises:
        StorageError: there is no such file, it is no file of arrays, or it holds pickled objects.
    """
    import numpy

    if not path.is_file():
        raise StorageError(f"there is no file {path}")
    ending = path.suffix.lower()
    if ending not in (".npz", ".npy", ".csv"):
        raise StorageError(f"{path} has to end in .npz, .npy or .csv")
    try:
        if ending == ".csv":
            if not path.read_text().strip():
                raise ValueError("it is empty")
            return {"": numpy.loadtxt(path, delimiter=",", ndmin=2)}
        loaded = numpy.load(path, allow_pickle=False)
        if isinstance(loaded, numpy.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # zlib, zipfile and numpy each have errors of their own for what is damaged
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"{path} cannot be read as {ending} of plain numbers, without pickles ({reason})") from error


def tensors(
    arrays: Mapping[str, numpy.ndarray], shapes: Mapping[str, tuple[int, ...]], flow: Flow, path: Path
) -> dict[str, Tensor]:
    """The arrays that a flow needs, `(rows, *shape)` each, as tensors of its dtype; a lone one may have any name.

    Raises:
        StorageError: a name is missing.
        InputError: a shape does not fit, the rows differ in number, or there are none.
        NonFiniteError: NaN or infinity; the message has the index.
    """
    if len(shapes) == 1 and len(arrays) == 1:
        arrays = dict(zip(shapes, arrays.values(), strict=True))
    missing = [name for name in shapes if name not in arrays]
    if missing:
        there = ", ".join(name or "one without a name" for name in arrays) or "none"
        raise StorageError(f"{path} lacks the array {', '.join(missing)}: its arrays are {there}")
    made = {name: _tensor(name, arrays[name], shape, flow, path) for name, shape in shapes.items()}
    rows = {name: len(value) for name, value in made.items()}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        raise InputError(f"{path} needs arrays with equal numbers of rows, at least one, got {rows}")
    return made


def _tensor(name: str, array: Any, shape: tuple[int, ...], flow: Flow, path: Path) -> Tensor:
    import numpy
    import torch

    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: the array {name} needs real numbers, got dtype {array.dtype}")
    if path.suffix.lower() == ".csv" and len(array) and array[0].size == numpy.prod(shape, dtype=int):
        array = array.reshape(len(array), *shape)  # a line of a table is a row, whatever its shape
    expected = f"({', '.join(['rows', *map(str, shape)])})"
    if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
        raise InputError(f"{path}: the array {name} needs the shape {expected}, got {array.shape}")
    finite = numpy.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in numpy.argwhere(~finite)[0])
        raise NonFiniteError(f"{path}: the array {name} needs finite numbers, got {array[index]} at {index}")
    dtype = flow._condition_dtypes.get(name) or flow.network.reference.dtype
    native = array.astype(array.dtype.newbyteorder("="))
    if not dtype.is_floating_point and array.dtype.kind == "f" and (array != numpy.round(array)).any():
        raise InputError(f"{path}: the array {name} needs whole numbers, got fractions")
    return torch.as_tensor(native).to(dtype)


def write_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Write tensors by name as one .npz file, whole or not at all."""
    import numpy

    held = io.BytesIO()
    # Not numpy.savez, whose own arguments' names no array could have
    with zipfile.ZipFile(held, "w") as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                numpy.lib.format.write_array(member, value.detach().cpu().numpy(), allow_pickle=False)
    write_file(path, held.getvalue())
