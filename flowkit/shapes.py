"""Event shapes: how they are written, read and compared. Plain Python, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flowkit.arguments import is_int
from flowkit.errors import ShapeError
from flowkit.strict_json import shown

Shape = tuple[int, ...]


def as_shape(value: int | Sequence[int]) -> Shape:
    """One event shape: an int n is `(n,)`, a sequence of ints is a tuple.

    >>> as_shape(3), as_shape([2, 4, 4]), as_shape(())
    ((3,), (2, 4, 4), ())
    """
    if isinstance(value, bool) or not isinstance(value, int | Sequence) or isinstance(value, str | bytes):
        raise ShapeError(f"a shape is an int or a tuple of ints, got {shown(value)}")
    shape = (value,) if isinstance(value, int) else tuple(value)
    for size in shape:
        if not is_int(size) or size < 1:
            raise ShapeError(f"a shape is made of positive ints, got {shown(value)}")
    return shape


def as_shapes(value: int | Sequence) -> tuple[Shape, ...]:
    """Several event shapes, as `given` takes them: an int or a bare tuple of ints is one shape.

    >>> as_shapes(10), as_shapes((3, 8, 8)), as_shapes(((10,), (3, 8, 8))), as_shapes(())
    (((10,),), ((3, 8, 8),), ((10,), (3, 8, 8)), ())
    """
    if not isinstance(value, int | Sequence) or isinstance(value, str | bytes):
        raise ShapeError(f"shapes are an int, a tuple of ints or a tuple of those, got {shown(value)}")
    if isinstance(value, int) or (len(value) > 0 and all(isinstance(v, int) for v in value)):
        return (as_shape(value),)
    return tuple(as_shape(v) for v in value)


def numel(shape: Shape) -> int:
    """The number of elements of one event; 1 for a scalar `()`."""
    return math.prod(shape)


def listing(names: Sequence[str]) -> str:
    """Names as a sentence holds them: `'a', 'b' and 'c'`."""
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 2:
        return "".join(quoted) or "none"
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]


def adaptor_hint(condition: Shape, data: Shape) -> str:
    """Which adaptor brings a condition to the data's spatial size; the end of an error's sentence.

    >>> adaptor_hint((10,), (2, 8, 8))
    'bring it there with graph.features(fk.ToMap((8, 8)), condition)'
    """
    if not condition:
        return "make a label a vector with graph.features(fk.OneHot(n), condition), declare a number as (1,)"
    spatial = data[1:]
    size = f"({', '.join(map(str, spatial))}{',' if len(spatial) == 1 else ''})"
    if not spatial:
        return "bring it there with graph.features(fk.ToVector(), condition)"
    if len(condition) == 1:
        return f"bring it there with graph.features(fk.ToMap({size}), condition)"
    if len(condition) == len(data):
        return f"bring it there with graph.features(fk.Resize({size}), condition)"
    return f"it must be a map (channels, {', '.join(map(str, spatial))})"
