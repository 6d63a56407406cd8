"""Ordinary torch layers as plain data, so that a file can hold a friend's subnets: those listed here, no others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flowkit.errors import ConfigError
from flowkit.registry import name_of

# Whatever a file says, only these are built; each keeps its constructor's arguments as attributes.
LAYERS = (
    *("Linear", "Conv1d", "Conv2d", "Conv3d"),
    *("ReLU", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid", "Softplus"),
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm"),
    *("AvgPool1d", "AvgPool2d", "MaxPool1d", "MaxPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d"),
    *("Flatten", "Unflatten", "Dropout", "Identity"),
)
NETS: dict[str, type] = {}  # flowkit's own nets, with the `written_net` of each
LAYER = "layer"
SEQUENTIAL = "Sequential"
NO_ARGUMENTS = ("device", "dtype", "args", "kwargs")


def written_net(cls: type) -> type:
    """A net of flowkit's own, whose `described()` is its arguments, becomes one that a description may name."""
    NETS[cls.__name__] = cls
    return cls


def as_layer(layer: Any) -> nn.Module:
    """A layer, built where it is a description."""
    return layer if isinstance(layer, nn.Module) else build_layers(layer)


def describe_layers(module: nn.Module) -> Any:
    """A net of these layers as plain data, `{"layer": "Linear", "in_features": 3, ...}`; a registered module as it is.

    Raises:
        ConfigError: a layer that is not listed, or one with hooks or parametrizations.

    >>> describe_layers(nn.Sequential(nn.Linear(3, 8), nn.ReLU()))["layers"]
    [{'layer': 'Linear', 'in_features': 3, 'out_features': 8}, {'layer': 'ReLU'}]
    """
    if name_of(module) is not None:
        return module
    name = type(module).__name__
    if module._forward_hooks or module._forward_pre_hooks:
        raise ConfigError(f"a {name} with hooks has no written form")
    if NETS.get(name) is type(module):
        return {LAYER: name, **module.described()}  # type: ignore[operator]
    if type(module) is nn.Sequential:
        names = list(module._modules)
        written = {LAYER: SEQUENTIAL, "layers": [describe_layers(part) for part in module]}
        return written if names == [str(i) for i in range(len(names))] else {**written, "names": names}
    if name not in LAYERS or type(module) is not getattr(nn, name):
        raise ConfigError(f"{name} has no written form: register its class with fk.register, or use layers of torch.nn")
    return {LAYER: name, **_arguments(module)}


def _arguments(module: nn.Module) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in NO_ARGUMENTS:
            continue
        value = getattr(module, name)
        if name == "bias":
            value = isinstance(value, Tensor)
        value = tuple(value) if isinstance(value, list | tuple) else value
        if value != parameter.default or parameter.default is inspect.Parameter.empty:
            arguments[name] = value
    return arguments


def build_layers(described: Any) -> nn.Module:
    """The net that `describe_layers` described, with new weights.

    Raises:
        ConfigError: it is no such description, or names a layer that is not listed.

    >>> build_layers({"layer": "Linear", "in_features": 3, "out_features": 8, "bias": False})
    Linear(in_features=3, out_features=8, bias=False)
    """
    if isinstance(described, nn.Module) and name_of(described) is not None:
        return described
    if not isinstance(described, Mapping) or not isinstance(described.get(LAYER), str):
        raise ConfigError(f"a layer must be described as {{'layer': name, ...}}, got {described!r}")
    name, arguments = described[LAYER], {k: v for k, v in described.items() if k != LAYER}
    if name == SEQUENTIAL:
        layers, names = arguments.get("layers"), arguments.get("names")
        if not isinstance(layers, list | tuple) or (names is not None and len(names) != len(layers)):
            raise ConfigError(f"a Sequential must be described with its layers, got {described!r}")
        net = nn.Sequential()
        for place, layer in enumerate(layers):
            net.add_module(str(place) if names is None else str(names[place]), build_layers(layer))
        return net
    if name not in LAYERS and name not in NETS:
        raise ConfigError(f"the layer '{name}' is not one of those that a description may name: {', '.join(LAYERS)}")
    try:
        return (NETS[name] if name in NETS else getattr(nn, name))(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the layer '{name}' cannot be built from {arguments}: {error}") from error
