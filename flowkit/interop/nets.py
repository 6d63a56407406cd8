"""The nets of nflows and zuko as modules of flowkit's own, which plain data describes: they run where neither is.

`native_net` takes over a friend's net, with its layers; what it gives computes the same. Their state holds the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkit.errors import ConfigError
from flowkit.interop.layers import as_layer, describe_layers, written_net

FUNCTIONS: dict[Callable, type[nn.Module]] = {  # what people pass as an activation, and the layer that is the same
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.celu: nn.CELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
}


@written_net
class Masked(nn.Linear):
    """A linear layer of whose weights only those under the buffer `mask` count.

    Args:
        in_features, out_features, bias: see `torch.nn.Linear`.
        degrees: of inputs and of outputs, ints: an output sees the inputs of no higher degree. None for a mask of ones,
            which somebody's state replaces.
        strict: an output sees the inputs of lower degrees alone.
    """

    mask: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, degrees: Any = None, strict: bool = False
    ):
        super().__init__(in_features, out_features, bias)
        self.degrees, self.strict = degrees, strict
        mask = torch.ones(out_features, in_features, dtype=torch.bool)
        if degrees is not None:
            below, above = (torch.tensor(each) for each in degrees)
            if len(below) != in_features or len(above) != out_features:
                raise ConfigError(f"a masked layer of {in_features} to {out_features} features cannot have {degrees}")
            mask = above.unsqueeze(1) > below if strict else above.unsqueeze(1) >= below
        self.register_buffer("mask", mask)

    def described(self) -> dict[str, Any]:
        """Its arguments."""
        degrees = {} if self.degrees is None else {"degrees": self.degrees, "strict": self.strict}
        bias = self.bias is not None
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": bias, **degrees}

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in_features)` to `(B, out_features)`."""
        return F.linear(x, self.weight * self.mask, self.bias)


@written_net
class Standardize(nn.Module):
    """Features with mean 0 and variance 1, over the last dimension: zuko's `LayerNorm`."""

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.eps = float(eps)

    def described(self) -> dict[str, Any]:
        """Its arguments."""
        return {"eps": self.eps}

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        variance, mean = torch.var_mean(x, unbiased=True, dim=-1, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt()


@written_net
class Residual(nn.Module):
    """x + net(x)."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = as_layer(net)

    def described(self) -> dict[str, Any]:
        """Its arguments."""
        return {"net": describe_layers(self.net)}

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.net(x)


@written_net
class ContextBlock(nn.Module):
    """A block of nflows' nets: x + W_2 drop(a(norm_2(W_1 a(norm_1(x))))), with the context in one of two ways.

    Args:
        kind: `"glu"`, the context gates the result; `"add"`, it is added after W_1; `"plain"`, without a sum around it,
            drop(a(W_1 norm_1(x))), and without the context.
        layers: W_1 and W_2, or W_1 alone.
        norms: none, or as many.
        activation: a.
        dropout: the probability.
        context: the layer that the context goes through; None for none.
    """

    def __init__(self, kind: str, layers: Any, norms: Any, activation: Any, dropout: float = 0.0, context: Any = None):
        super().__init__()
        if kind not in ("glu", "add", "plain"):
            raise ConfigError(f"a block is of kind 'glu', 'add' or 'plain', got {kind!r}")
        self.kind = kind
        self.layers = nn.ModuleList(as_layer(each) for each in layers)
        self.norms = nn.ModuleList(as_layer(each) for each in norms)
        self.activation, self.dropout = as_layer(activation), nn.Dropout(dropout)
        self.context = None if context is None else as_layer(context)

    def described(self) -> dict[str, Any]:
        """Its arguments."""
        return {
            "kind": self.kind,
            "layers": [describe_layers(each) for each in self.layers],
            "norms": [describe_layers(each) for each in self.norms],
            "activation": describe_layers(self.activation),
            "dropout": self.dropout.p,
            "context": None if self.context is None else describe_layers(self.context),
        }

    def _norm(self, index: int, h: Tensor) -> Tensor:
        return self.norms[index](h) if len(self.norms) else h

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same shape."""
        if self.kind == "plain":
            return self.dropout(self.activation(self.layers[0](self._norm(0, x))))
        h = self.layers[0](self.activation(self._norm(0, x)))
        told = None if context is None or self.context is None else self.context(context)
        if told is not None and self.kind == "add":
            h = h + told
        h = self.layers[1](self.dropout(self.activation(self._norm(1, h))))
        if told is not None and self.kind == "glu":
            h = F.glu(torch.cat((h, told), 1), 1)
        return x + h


@written_net
class ContextNet(nn.Module):
    """nflows' nets: a first layer, blocks, and a last one.

    Args:
        first, last: layers.
        blocks: see `ContextBlock`.
        context: in MADE, the layer of the context, whose activation is added after the first; None where the context is
            concatenated with x before it, or there is none.
        activation: of MADE's context, and after the first layer where there is no sum around blocks.
        masked: whether it is a MADE, which never concatenates.
    """

    def __init__(
        self, first: Any, blocks: Any, last: Any, context: Any = None, activation: Any = None, masked: bool = False
    ):
        super().__init__()
        self.first, self.last = as_layer(first), as_layer(last)
        self.blocks: Any = nn.ModuleList(as_layer(each) for each in blocks)
        self.context = None if context is None else as_layer(context)
        self.activation = None if activation is None else as_layer(activation)
        self.masked = bool(masked)

    def described(self) -> dict[str, Any]:
        """Its arguments."""
        return {
            "first": describe_layers(self.first),
            "blocks": [describe_layers(each) for each in self.blocks],
            "last": describe_layers(self.last),
            "context": None if self.context is None else describe_layers(self.context),
            "activation": None if self.activation is None else describe_layers(self.activation),
            "masked": self.masked,
        }

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`(B, C, ...)` and the context to `(B, C', ...)`."""
        if not self.masked:
            h = self.first(x if context is None else torch.cat((x, context), 1))
        else:
            h = self.first(x)
            if context is not None and self.context is not None:
                told = self.context(context)
                h = h + (told if self.activation is None else self.activation(told))
            if self.activation is not None and len(self.blocks) and self.blocks[0].kind == "plain":
                h = self.activation(h)
        for block in self.blocks:
            h = block(h, context)
        return self.last(h)


def native_net(theirs: nn.Module) -> nn.Module:
    """A friend's net as one that plain data describes; the layers, and so the weights, are the same objects.

    Raises:
        ConfigError: a layer or an activation that has no written form.
    """
    made = _native(theirs)
    describe_layers(made)
    return made


def activation_layer(function: Any) -> nn.Module:
    """An activation as a layer.

    Raises:
        ConfigError: a function that is not known.
    """
    if isinstance(function, nn.Module):
        return function
    if function not in FUNCTIONS:
        name = getattr(function, "__name__", repr(function))
        raise ConfigError(f"the activation {name} has no written form: use one of torch's")
    return FUNCTIONS[function]()


def _native(theirs: Any) -> nn.Module:
    cls = type(theirs)
    home, name = cls.__module__.partition(".")[0], cls.__name__
    if home == "zuko":
        if name == "Linear" and theirs.weight.dim() == 2:
            return _linear(nn.Linear(theirs.in_features, theirs.out_features, theirs.bias is not None), theirs)
        if name == "MaskedLinear":
            return _masked(theirs)
        if name == "LayerNorm" and theirs.dim == -1:
            return Standardize(theirs.eps)
        if name == "Residual":
            return Residual(nn.Sequential(*[_native(each) for each in theirs]))
    if cls is nn.Sequential or (home == "zuko" and name in ("MLP", "MaskedMLP")):
        return nn.Sequential(*[_native(each) for each in theirs])
    if home == "nflows":
        if name == "MaskedLinear":
            return _masked(theirs)
        if name in ("ResidualNet", "ConvResidualNet"):
            blocks = [_block("glu", each) for each in theirs.blocks]
            return ContextNet(theirs.initial_layer, blocks, theirs.final_layer)
        if name in ("MADE", "MixtureOfGaussiansMADE"):
            return _made(theirs)
    return theirs


def _linear(made: nn.Linear, theirs: Any) -> nn.Module:
    made.weight, made.bias = theirs.weight, theirs.bias
    return made.train(theirs.training)


def _masked(theirs: Any) -> nn.Module:
    made = Masked(theirs.in_features, theirs.out_features, theirs.bias is not None)
    made.mask = theirs.mask.bool().clone()  # zuko shares one between the layers of a residual block
    return _linear(made, theirs)


def _block(kind: str, theirs: Any) -> ContextBlock:
    layers = getattr(theirs, "conv_layers", None) or theirs.linear_layers
    norms: Sequence[nn.Module] = theirs.batch_norm_layers if theirs.use_batch_norm else []
    context = getattr(theirs, "context_layer", None)
    activation = activation_layer(theirs.activation)
    return ContextBlock(kind, [_native(each) for each in layers], norms, activation, theirs.dropout.p, context)


def _made(theirs: Any) -> nn.Module:
    blocks = []
    for block in theirs.blocks:
        if hasattr(block, "linear_layers"):
            blocks.append(_block("add", block))
        else:
            norms: list[nn.Module] = [] if block.batch_norm is None else [block.batch_norm]
            layers, activation = [_native(block.linear)], activation_layer(block.activation)
            blocks.append(ContextBlock("plain", layers, norms, activation, block.dropout.p))
    # The MADE of the mixtures is an older one, without the activation.
    outer = activation_layer(theirs.activation) if hasattr(theirs, "activation") else None
    context = getattr(theirs, "context_layer", None)
    return ContextNet(_native(theirs.initial_layer), blocks, _native(theirs.final_layer), context, outer, True)
