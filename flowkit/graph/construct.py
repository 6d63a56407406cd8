"""Building one part of a graph: on the meta device to learn its shapes, for real when a network is built."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from flowkit.bijection import Bijection
from flowkit.errors import ConfigError, FlowkitError, GraphError, ShapeError
from flowkit.graph.parts import Wire, describe
from flowkit.shapes import Shape, listing


def probe(
    cls: type[Bijection], name: str, inputs: tuple[Wire, ...], given: tuple[Wire, ...], config: dict
) -> Bijection:
    """The part on the meta device: no weights, no random numbers consumed. Only its shapes are looked at."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build(cls, name, inputs, given, config)
        except FlowkitError as error:
            if error.__cause__ is None or isinstance(error.__cause__, FlowkitError):
                raise
            # A plugin's constructor may do what the meta device cannot; the real one decides.
            return build(cls, name, inputs, given, config)


def build(
    cls: type[Bijection], name: str, inputs: tuple[Wire, ...], given: tuple[Wire, ...], config: dict
) -> Bijection:
    """The part for real; whatever goes wrong names the node, its wires and their shapes."""
    keywords = {**config, "given": tuple(wire.shape for wire in given)} if given else dict(config)
    _check_signature(cls, name, given, keywords, len(inputs))
    try:
        part = cls(*[wire.shape for wire in inputs], **keywords)
    except (ShapeError, ConfigError, GraphError) as error:
        where = f"node '{name}' on {describe(inputs)}" + (f", given {describe(given)}" if given else "")
        raise type(error)(f"{where}: {error}") from error
    except FlowkitError:
        raise
    except Exception as error:
        raise GraphError(f"node '{name}': {cls.__name__} cannot be constructed: {error}") from error
    _compare(f"node '{name}': {cls.__name__} takes inputs of shape", part.in_shapes, inputs)
    _compare(f"node '{name}': {cls.__name__} takes conditions of shape", part.condition_shapes, given)
    return part


def _check_signature(cls: type, name: str, given: tuple[Wire, ...], keywords: dict, count: int) -> None:
    parameters = inspect.signature(cls).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    if given and "given" not in parameters:
        raise GraphError(f"node '{name}': {cls.__name__} takes no conditions, but {describe(given)} was given")
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    shapes = {p.name for p in positional[:count]} if not several else set()
    options = [p for p in parameters if p not in ("self", "given") and p not in shapes]
    options = [p for p in options if parameters[p].kind is not inspect.Parameter.VAR_POSITIONAL]
    unknown = [key for key in keywords if key not in options and key != "given"]
    if unknown:
        raise GraphError(
            f"node '{name}': {cls.__name__} has no option {listing(unknown)}; its options are {listing(options)}"
        )
    needed = [p for p in positional if p.default is p.empty and p.name not in keywords]
    if not several and len(needed) > count:
        missing = [p.name for p in needed[count:]]
        raise GraphError(
            f"node '{name}': {cls.__name__} needs {listing(missing)}, which {count} wire(s) and no option gave"
        )
    required = [p for p in positional if p.default is p.empty]
    if not several and count > max(1, len(required)):
        takes = "one wire" if len(required) < 2 else f"at most {len(required)} wires"
        raise GraphError(f"node '{name}': {cls.__name__} takes {takes}, got {count}")


def check_instance(
    part: Bijection, name: str, inputs: tuple[Wire, ...], given: tuple[Wire, ...], config: dict[str, Any]
) -> None:
    """Refuse an instance whose shapes are not the wires'."""
    kind = type(part).__name__
    if config:
        raise GraphError(
            f"node '{name}': an instance of {kind} is built already and takes no options, got {listing(list(config))}"
        )
    _compare(f"node '{name}': this {kind} takes inputs of shape", part.in_shapes, inputs)
    _compare(f"node '{name}': this {kind} takes conditions of shape", part.condition_shapes, given)


def _compare(what: str, shapes: tuple[Shape, ...], wires: tuple[Wire, ...]) -> None:
    if tuple(wire.shape for wire in wires) != shapes:
        wanted = ", ".join(map(str, shapes)) or "none"
        raise ShapeError(f"{what} {wanted}, got {describe(wires)}")
