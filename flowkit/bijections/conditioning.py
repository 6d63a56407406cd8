"""What bijections with conditions share: checking their shapes, joining them, choosing a subnet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowkit.errors import ShapeError
from flowkit.shapes import Shape, adaptor_hint
from flowkit.subnets import MLP, ConvNet


def check_conditions(owner: str, shape: Shape, conditions: Sequence[Shape]) -> int:
    """The channels of the conditions together, each of which must have the data's spatial size.

    Raises:
        ShapeError: a condition of another spatial size; the message names the adaptor that mends it.
    """
    spatial = shape[1:]
    wanted = f"maps (channels, {', '.join(map(str, spatial))})" if spatial else "vectors (channels,)"
    for condition in conditions:
        if not condition:
            raise ShapeError(
                f"{owner} on data of shape {shape} needs conditions that are {wanted}, got one of shape (): "
                "make an integer label a vector with graph.features(fk.OneHot(n), label), declare a number as (1,)"
            )
        if condition[1:] != spatial:
            raise ShapeError(
                f"{owner} on data of shape {shape} needs conditions that are {wanted}, got one of shape {condition}: "
                f"{adaptor_hint(condition, shape)}"
            )
    return sum(condition[0] for condition in conditions)


def default_subnet(shape: Shape) -> Any:
    """The recipe used where none is given: an MLP for vectors and scalars, convolutions for maps."""
    return ConvNet() if len(shape) > 1 else MLP()
