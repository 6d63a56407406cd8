"""Subnets: the nets inside couplings, made by recipes that a graph file can hold.

A recipe is any callable `(c_in, c_out) -> nn.Module`; conditions are then concatenated on channels. A recipe that also
has `build(in_shape, condition_shapes, c_out)` returns a module with `prepare(c)` and `forward(x, c=None,
prepared=None)`, where c holds the conditions concatenated on channels: its first layer's weight W is sliced into W_x
and W_c, so the condition's part is computed once for any number of samples. `MLP`, `ConvNet` and `ResidualNet` are
such recipes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from flowkit.dry_run import output_shapes
from flowkit.errors import ConfigError, FlowkitError, ShapeError
from flowkit.registry import arguments_of, register
from flowkit.shapes import Shape
from flowkit.strict_json import shown
from flowkit.subnet_parts import CONVOLUTIONS, Concatenated, FirstLayer, Subnet

Recipe = Callable[[int, int], nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()  # never in place: the first layer's input is the passive half of the data


def _widths(hidden: int | Sequence[int]) -> tuple[int, ...]:
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if not widths or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ConfigError(f"hidden must be a positive int or a tuple of them, got {hidden!r}")
    return widths


class _Recipe:
    """What the recipes share: written as called, compared by their arguments, shapes checked in one place."""

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        raise NotImplementedError

    def __repr__(self) -> str:
        arguments = arguments_of(self)
        if arguments is None:  # a subclass without a name of its own
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"
        parts = [repr(a) for a in arguments.args] + [f"{k}={v!r}" for k, v in arguments.kwargs.items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self).keys() == vars(other).keys() and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def _channels(self, in_shape: Shape, condition_shapes: Sequence[Shape], spatial: tuple[int, ...], hint: str) -> int:
        if len(in_shape) - 1 not in spatial:
            raise ShapeError(f"{type(self).__name__} cannot take shape {in_shape}: {hint}")
        for shape in condition_shapes:
            if shape[1:] != in_shape[1:]:
                raise ShapeError(f"{type(self).__name__} needs conditions of spatial size {in_shape[1:]}, got {shape}")
        return sum(shape[0] for shape in condition_shapes)


def _finish(last: nn.Module, zero_last: bool) -> nn.Module:
    if zero_last:  # every parameter predicted at the start is 0: the coupling starts as the identity
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return last


@register("flowkit.mlp")
class MLP(_Recipe):
    """A multilayer perceptron on vectors `(B, D)`.

    Args:
        hidden: widths of the hidden layers; an int is one layer.
        activation: between layers: relu, leaky_relu, elu, gelu, silu, softplus or tanh.
        dropout: probability of dropping a hidden unit in training.
        zero_last: start the last layer at zero, so that a coupling starts as the identity.

    >>> import torch
    >>> net = MLP(hidden=(32, 32)).build((3,), ((10,),), 4)
    >>> net(torch.zeros(5, 3), torch.zeros(5, 10)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = (128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        zero_last: bool = True,
    ):
        self.hidden, self.activation, self.dropout, self.zero_last = _widths(hidden), activation, dropout, zero_last
        _activation(activation)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout}")

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        """The net on vectors of `c_in` values."""
        return self.build((c_in,), (), c_out)

    def build(self, in_shape: Shape, condition_shapes: Sequence[Shape], c_out: int) -> Subnet:
        """The net with the conditions' part of its first layer apart."""
        c_c = self._channels(
            in_shape,
            condition_shapes,
            (0,),
            "it takes vectors; for maps use fk.ConvNet, or flatten the data with fk.Flatten",
        )
        rest: list[nn.Module] = []
        for width, following in zip(self.hidden, (*self.hidden[1:], None), strict=True):
            rest.append(_activation(self.activation))
            if self.dropout:
                rest.append(nn.Dropout(self.dropout))
            rest.append(
                _finish(nn.Linear(width, c_out), self.zero_last) if following is None else nn.Linear(width, following)
            )
        return Subnet(FirstLayer(in_shape[0], c_c, self.hidden[0], 0), nn.Sequential(*rest))


@register("flowkit.conv_net")
class ConvNet(_Recipe):
    """Convolutions on maps: `(B, C, W)`, `(B, C, H, W)` or `(B, C, D, H, W)`, the size kept by zero padding.

    Args:
        hidden: channels of the hidden layers; an int is one hidden layer, so two convolutions.
        kernel: an odd kernel size, or one for each of the `len(hidden) + 1` convolutions.
        activation: between layers; see `MLP`.
        norm: `"batch"` puts a batch normalisation after every convolution but the last; None has none.
        zero_last: start the last layer at zero, so that a coupling starts as the identity.

    >>> import torch
    >>> net = ConvNet(hidden=16).build((1, 8, 8), ((3, 8, 8),), 2)
    >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 2, 8, 8])
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = 64,
        kernel: int | Sequence[int] = 3,
        activation: str = "relu",
        norm: str | None = None,
        zero_last: bool = True,
    ):
        self.hidden, self.activation, self.norm, self.zero_last = _widths(hidden), activation, norm, zero_last
        self.kernels = (kernel,) * (len(self.hidden) + 1) if isinstance(kernel, int) else tuple(kernel)
        _activation(activation)
        if len(self.kernels) != len(self.hidden) + 1 or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ConfigError(
                f"kernel must be an odd int, or {len(self.hidden) + 1} of them, one a convolution, got {kernel!r}"
            )
        if norm not in (None, "batch"):
            raise ConfigError(f"norm must be 'batch' or None, got {norm!r}")

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        """The net on maps of `c_in` channels and two spatial dimensions."""
        return self.build((c_in, 1, 1), (), c_out)

    def build(self, in_shape: Shape, condition_shapes: Sequence[Shape], c_out: int) -> Subnet:
        """The net with the conditions' part of its first layer apart."""
        c_c = self._channels(
            in_shape,
            condition_shapes,
            (1, 2, 3),
            "it takes maps (C, H, W); for vectors use fk.MLP, or fk.Reshape the data",
        )
        spatial = len(in_shape) - 1
        rest: list[nn.Module] = []
        for i, width in enumerate(self.hidden):
            if self.norm:
                rest.append(BATCH_NORMS[spatial](width))
            rest.append(_activation(self.activation))
            kernel, last = self.kernels[i + 1], i + 1 == len(self.hidden)
            layer = CONVOLUTIONS[spatial](width, c_out if last else self.hidden[i + 1], kernel, padding=kernel // 2)
            rest.append(_finish(layer, self.zero_last) if last else layer)
        return Subnet(FirstLayer(in_shape[0], c_c, self.hidden[0], spatial, self.kernels[0]), nn.Sequential(*rest))


class ResidualBlock(nn.Module):
    """`h + W2 a(W1 a(h))`, at constant width."""

    def __init__(self, width: int, spatial: int, kernel: int, activation: str):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(_activation(activation))
            if spatial:
                layers.append(CONVOLUTIONS[spatial](width, width, kernel, padding=kernel // 2))
            else:
                layers.append(nn.Linear(width, width))
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        """The block on h `(B, C, ...)`."""
        return h + self.layers(h)


@register("flowkit.residual_net")
class ResidualNet(_Recipe):
    """A residual net of constant width: on vectors, or with a kernel size on maps.

    Args:
        hidden: the width.
        blocks: how many residual blocks of two layers.
        kernel: None for vectors; an odd kernel size for maps.
        activation: before every layer but the first; see `MLP`.
        zero_last: start the last layer at zero, so that a coupling starts as the identity.

    >>> import torch
    >>> ResidualNet(hidden=32, blocks=2).build((3,), (), 4)(torch.zeros(5, 3)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        hidden: int = 128,
        blocks: int = 2,
        kernel: int | None = None,
        activation: str = "relu",
        zero_last: bool = True,
    ):
        self.hidden, self.blocks, self.kernel, self.activation, self.zero_last = (
            hidden,
            blocks,
            kernel,
            activation,
            zero_last,
        )
        _widths(hidden)
        _activation(activation)
        if blocks < 1:
            raise ConfigError(f"blocks must be at least 1, got {blocks}")
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ConfigError(f"kernel must be an odd int, or None for vectors, got {kernel}")

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        """The net on vectors of `c_in` values, or with a kernel on maps of `c_in` channels."""
        return self.build((c_in,) if self.kernel is None else (c_in, 1, 1), (), c_out)

    def build(self, in_shape: Shape, condition_shapes: Sequence[Shape], c_out: int) -> Subnet:
        """The net with the conditions' part of its first layer apart."""
        allowed = (0,) if self.kernel is None else (1, 2, 3)
        hint = (
            "without a kernel it takes vectors; for maps pass kernel=3"
            if self.kernel is None
            else "with a kernel it takes maps (C, H, W); for vectors pass kernel=None"
        )
        c_c = self._channels(in_shape, condition_shapes, allowed, hint)
        spatial, kernel = len(in_shape) - 1, self.kernel or 1
        last = CONVOLUTIONS[spatial](self.hidden, c_out, 1) if spatial else nn.Linear(self.hidden, c_out)
        rest = [ResidualBlock(self.hidden, spatial, kernel, self.activation) for _ in range(self.blocks)]
        return Subnet(
            FirstLayer(in_shape[0], c_c, self.hidden, spatial, kernel),
            nn.Sequential(*rest, _activation(self.activation), _finish(last, self.zero_last)),
        )


def check_recipe(what: str, recipe: Any) -> None:
    """Refuse what is no recipe; `what` is its name as an argument.

    Raises:
        ConfigError: a class of recipes, a module, or anything that cannot be called.
    """
    if inspect.isclass(recipe) and hasattr(recipe, "build"):
        raise ConfigError(f"{what} must be an instance of a recipe, fk.{recipe.__name__}(...), got the class")
    if isinstance(recipe, nn.Module) or not callable(recipe):
        got = (
            f"the module {type(recipe).__name__}, already built"
            if isinstance(recipe, nn.Module)
            else shown(recipe, 200)
        )
        raise ConfigError(
            f"{what} must be a recipe, a callable (c_in, c_out) -> nn.Module such as fk.MLP(hidden=64), got {got}"
        )


def build_subnet(recipe: Any, in_shape: Shape, condition_shapes: Sequence[Shape], c_out: int) -> nn.Module:
    """A subnet from any recipe, with `prepare(c)` and `forward(x, c, prepared)`; a user's own is checked by a dry run.

    Raises:
        ConfigError: the recipe is not one.
        ShapeError: what it builds does not map `in_shape` and the conditions to `c_out` channels.
    """
    check_recipe("subnet", recipe)
    if hasattr(recipe, "build"):
        return recipe.build(in_shape, tuple(condition_shapes), c_out)
    c_in = in_shape[0] + sum(shape[0] for shape in condition_shapes)
    try:
        net = recipe(c_in, c_out)
    except FlowkitError:
        raise
    except Exception as error:
        raise ConfigError(f"subnet {shown(recipe)} cannot be built for ({c_in}, {c_out}) channels: {error}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"subnet must return an nn.Module, got {type(net).__name__}")
    shapes = _dry_run_of(net, (c_in, *in_shape[1:]))
    wanted = (c_out, *in_shape[1:])
    if shapes != [wanted]:
        raise ShapeError(
            f"subnet must turn {(c_in, *in_shape[1:])} into {wanted}, it gave {', '.join(map(str, shapes))}"
        )
    return Concatenated(net)


def _dry_run_of(net: nn.Module, in_shape: Shape) -> list[Shape]:
    try:
        return list(output_shapes(net, [(in_shape, None)]).values())
    except FlowkitError as error:
        raise ShapeError(f"subnet cannot take {in_shape}: {error}") from error
