"""The contract of a univariate map, and the recipes that couplings and autoregressive maps take."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowkit.errors import ConfigError
from flowkit.registry import register
from flowkit.shapes import Shape


class Univariate(nn.Module):
    """An elementwise monotone map y = f(x; p) whose parameters p are predicted, element by element, by a subnet.

    Built as `SomeUnivariate(shape, **config)` for x of event shape `(C, ...)`, or `()`. Where all predicted numbers
    are 0, as they are at the start, it should be the identity.

    Attributes:
        parameters_per_element: for a map whose parameters are one number each: how many tensors of x's shape `forward`
            takes after x.
        parameter_shapes: one entry for each parameter: `()` for one number, which comes with x's shape `(B, C, ...)`;
            `(K,)` for K numbers, which come as `(B, K, C, ...)`.
        numbers_per_element: how many numbers are predicted for an element.
        domain: the interval that x and y lie in where it is not the line; the kit draws data within it.
        iterative, tolerance: whether the inverse is found by iteration, and how exactly; see `fk.Bijection`.
        later_settings: by name, settings that came after files of the class were written, and what a file that lacks
            them means, so that it keeps its density when the default is another.
    """

    parameters_per_element: ClassVar[int]
    iterative: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.0
    later_settings: ClassVar[dict[str, Any]] = {}

    parameter_shapes: tuple[tuple[int, ...], ...] = ()
    domain: tuple[float, float] | None = None

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        if not self.parameter_shapes and hasattr(type(self), "parameters_per_element"):
            self.parameter_shapes = ((),) * self.parameters_per_element

    @classmethod
    def recipe(cls, **config: Any) -> UnivariateRecipe:
        """A recipe of this map with these settings, for the `univariate=` of couplings and autoregressive maps."""
        return UnivariateRecipe(cls, **config)

    @property
    def numbers_per_element(self) -> int:
        """How many numbers are predicted for an element."""
        return sum(math.prod(shape) for shape in self.parameter_shapes)

    def forward(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(f(x), log f'(x))`, both of x's shape `(B, C, ...)`, the second float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`(f^-1(y), log (f^-1)'(y))`."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def split(self, predicted: Tensor) -> Sequence[Tensor]:
        """The parameters, as views of the predicted `(B, numbers * C, ...)`: all C values of one number, then the next.

        For x of shape `()` the predicted tensor is `(B, numbers)`.
        """
        if not any(self.parameter_shapes):
            parts: Sequence[Tensor] = predicted.chunk(len(self.parameter_shapes), 1)  # views, not copies
            return parts if self.shape else [part.squeeze(1) for part in parts]
        channels = self.shape[0] if self.shape else 1
        parts = predicted.split_with_sizes([math.prod(each) * channels for each in self.parameter_shapes], 1)
        apart = [
            part.unflatten(1, (*each, channels)) if each else part
            for part, each in zip(parts, self.parameter_shapes, strict=True)
        ]
        return apart if self.shape else [part.squeeze(-1) for part in apart]

    def join(self, parameters: Sequence[Tensor]) -> Tensor:
        """The parameters, or their gradients, as one tensor `(B, numbers * C, ...)`: the inverse of `split`."""
        if not self.shape:
            parameters = [part.unsqueeze(-1) for part in parameters]
        flat = [
            part.flatten(1, 2) if each else part for part, each in zip(parameters, self.parameter_shapes, strict=True)
        ]
        return torch.cat(flat, 1)

    def undo(
        self, y: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """Reverse mode's step, without gradients enabled: x, and the gradients of x, the parameters and its own.

        By default by autograd; override with a closed form, which is cheaper.

        Args:
            y: the output of `forward`.
            parameters: those that it was given.
            grad_y: the gradient of y.
            grad_log: the gradient of the log-derivative, which broadcasts against y.
        """
        x = self.inverse(y, *parameters)[0].detach()
        names = [name for name, p in self.named_parameters() if p.requires_grad]
        if torch.compiler.is_compiling():  # autograd.grad cannot be traced
            primals = (x, *parameters, *self._own(names))
            vjp: Any = torch.func.vjp  # its type admits a third part
            (out, log_derivative), pull_back = vjp(self._functional(names), *primals)
            grads = pull_back((grad_y, grad_log.expand_as(log_derivative)))
        else:
            leaves = [each.detach().requires_grad_() for each in (x, *parameters)]
            with torch.enable_grad():
                out, log_derivative = self.forward(*leaves)
            pulled = [(out, grad_y), (log_derivative, grad_log.expand_as(log_derivative))]
            outputs, upstream = zip(*[pair for pair in pulled if pair[0].requires_grad], strict=True)
            grads = torch.autograd.grad(outputs, [*leaves, *self._own(names)], upstream, materialize_grads=True)
        count = 1 + len(parameters)
        return x, grads[0], grads[1:count], dict(zip(names, grads[count:], strict=True))

    def _own(self, names: Sequence[str]) -> list[Tensor]:
        return [self.get_parameter(name) for name in names]

    def _functional(self, names: Sequence[str]) -> Any:
        def run(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
            count = len(values) - len(names)
            own = dict(zip(names, values[count:], strict=True))
            return torch.func.functional_call(self, own, (x, *values[:count]))

        return run


def later_settings(thing: Any, *, at_present: bool) -> dict[str, Any]:
    """The settings that a univariate map's class was given later than its first files: as they are now, or were.

    Recipes hold them even where they are left out, and so do files; in files that lack them they are what they were.

    >>> from flowkit.univariate import Affine, Sigmoidal
    >>> later_settings(Sigmoidal, at_present=True), later_settings(Sigmoidal, at_present=False)
    ({'min_derivative': 0.001}, {'min_derivative': 0.0})
    >>> later_settings(Affine, at_present=True)
    {}
    """
    if not (inspect.isclass(thing) and issubclass(thing, Univariate)) or not thing.later_settings:
        return {}
    known = inspect.signature(thing).parameters  # a plugin's subclass may lack them
    later = {name: before for name, before in thing.later_settings.items() if name in known}
    return {name: known[name].default for name in later} if at_present else later


@register("flowkit.univariate_recipe")
class UnivariateRecipe:
    """A univariate map and its settings, without a shape: what couplings and autoregressive maps build theirs from.

    Args:
        univariate: a class of `fk.Univariate`; registered, so that files can hold it.
        config: its settings by name.

    Raises:
        ConfigError: no such class, or a setting that it does not have.

    >>> from flowkit.univariate import Affine
    >>> Affine.recipe(clamp="atan")
    Affine.recipe(clamp='atan')
    """

    def __init__(self, univariate: type[Univariate], **config: Any):
        if not (inspect.isclass(univariate) and issubclass(univariate, Univariate)):
            raise ConfigError(f"a univariate recipe needs a class of fk.Univariate, got {univariate!r}")
        known = list(inspect.signature(univariate).parameters)[1:]
        if unknown := [name for name in config if name not in known]:
            raise ConfigError(
                f"{univariate.__name__} has no setting '{unknown[0]}'; it has {', '.join(known) or 'none'}"
            )
        self.univariate = univariate
        self.config = {**later_settings(univariate, at_present=True), **config}

    def __call__(self, shape: Shape) -> Univariate:
        """The map for elements of this event shape."""
        return self.univariate(shape, **self.config)

    def __repr__(self) -> str:
        return f"{self.univariate.__name__}.recipe({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, UnivariateRecipe)
            and self.univariate is other.univariate
            and repr(self.config) == repr(other.config)
        )

    def __hash__(self) -> int:
        return hash(repr(self))


def offer_examples(bijection: nn.Module, maps: Iterable[Univariate], shape: Shape) -> None:
    """Give a bijection `example_inputs` of event shape `shape`, if one of its univariate maps has a domain."""
    domains = [each.domain for each in maps if each.domain is not None]
    if domains:
        low, high = max(low for low, _ in domains), min(high for _, high in domains)
        bijection.example_inputs = functools.partial(_draw_within, low, high, shape)  # type: ignore[assignment]


def _draw_within(low: float, high: float, shape: Shape, rows: int) -> Tensor:
    """Uniform draws, not so near the ends that rounding or a step of finite differences crosses them."""
    return low + (high - low) * (0.01 + 0.98 * torch.rand(rows, *shape))


def build_univariate(owner: str, recipe: Any, shape: Shape) -> Univariate:
    """The univariate map that a recipe, or a bare class, makes for this event shape.

    Raises:
        ConfigError: neither a recipe nor a class of univariate maps.
    """
    if inspect.isclass(recipe) and issubclass(recipe, Univariate):
        return recipe(shape)
    if not isinstance(recipe, UnivariateRecipe):
        raise ConfigError(
            f"{owner}: univariate must be a class of fk.Univariate or its recipe, such as fk.Affine.recipe(), "
            f"got {recipe!r}"
        )
    return recipe(shape)
