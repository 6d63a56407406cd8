"""zuko, both ways: its lazy flows as flowkit's, and flowkit's flows and bijections as its lazy ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal

from flowkit.bijection import Bijection, event_sum
from flowkit.bijections import Identity
from flowkit.distributions import Base
from flowkit.errors import ConditionError, ConfigError, MissingDependencyError, ShapeError
from flowkit.flow import Flow
from flowkit.graph import Graph
from flowkit.interop.transforms import BijectionTransform
from flowkit.interop.zuko_parts import native_base, native_parts
from flowkit.shapes import Shape, as_shape, numel
from flowkit.storage import default_dtype

BISECTION_TOLERANCE = 1e-4  # zuko halves a bracket of 20 until it is below 1e-6; steep maps magnify what is left
ODE_TOLERANCE = 1e-3  # for its default tolerances, 1e-5 relative and 1e-6 absolute, in each step


class ZukoTransform(Bijection):
    """A lazy transform of zuko as a bijection: it runs as it is and shares its weights.

    forward: (y, log-det) = lazy(c).call_and_ladj(x). inverse: (x, log-det) = lazy(c).inv.call_and_ladj(y).

    An ODE's steps are chosen by the data, so it is declared adaptive, and stochastic where it estimates its trace;
    maps that zuko inverts by bisection are declared iterative. zuko's ODEs give the gradients of their parameters in
    train mode only.

    Args:
        lazy: a `zuko.lazy.LazyTransform`.
        shape: event shape of its input.
        given: the shape of its context, none by default.
    """

    def __init__(self, lazy: Any, shape: int | Sequence[int], given: Any = ()):
        super().__init__(shape, given=given)
        zuko = _zuko()
        self.lazy = lazy
        self.reason = ""
        (inputs,) = self.in_shapes
        context = torch.zeros(1, *self.condition_shapes[0], dtype=_like(lazy).dtype) if self.condition_shapes else None
        context = None if context is None else context.to(_like(lazy).device)
        with torch.no_grad():
            self.out_shapes = (tuple(int(n) for n in lazy(context).forward_shape(torch.Size(inputs))),)
        parts = list(lazy.modules())
        self.slow_inverse = any(isinstance(part, zuko.flows.MaskedAutoregressiveTransform) for part in parts)
        odes = [part for part in parts if isinstance(part, zuko.flows.FFJTransform)]
        self.adaptive = bool(odes)
        self.stochastic = any(not part.exact for part in odes)
        self.iterative = bool(odes) or any(_bisects(part) for part in parts)
        self.tolerance = ODE_TOLERANCE if odes else BISECTION_TOLERANCE if self.iterative else 0.0

    def __repr__(self) -> str:
        """One line, with the reason why it runs as it is: what `fk.save` says of it."""
        return f"ZukoTransform({type(self.lazy).__name__}{': ' * bool(self.reason)}{self.reason})"

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        if x.shape[0] == 0:  # some of zuko's reshapes fail without rows
            return x.new_zeros(0, *self.out_shapes[0]), event_sum(x)
        with torch.autocast(x.device.type, enabled=False):  # its matrix products would come in half precision
            return _result(self.lazy(*_float(conditions, x)).call_and_ladj(x), x)

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        if y.shape[0] == 0:
            return y.new_zeros(0, *self.in_shapes[0]), event_sum(y)
        with torch.autocast(y.device.type, enabled=False):
            return _result(self.lazy(*_float(conditions, y)).inv.call_and_ladj(y), y)

    def inverse_only(self, y: Tensor, *conditions: Tensor) -> Tensor:
        """The inverse without its log-det, which costs zuko another pass."""
        if y.shape[0] == 0:
            return y.new_zeros(0, *self.in_shapes[0])
        with torch.autocast(y.device.type, enabled=False):
            return self.lazy(*_float(conditions, y)).inv(y)


def _float(conditions: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(c.to(like.dtype) for c in conditions)  # a feature net under autocast gives half precision


def _result(result: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    y, log_det = result
    log_det = log_det.to(torch.promote_types(x.dtype, torch.float32))
    return y, log_det.flatten(1).sum(1) if log_det.dim() > 1 else log_det  # an elementwise map's is of x's shape


def _bisects(part: Any) -> bool:
    from zuko.transforms import MonotonicTransform

    if not hasattr(part, "univariate") or not hasattr(part, "shapes"):
        return False
    like = _like(part)
    with torch.no_grad():
        made = part.univariate(*(torch.zeros(tuple(s), dtype=like.dtype, device=like.device) for s in part.shapes))
    every = getattr(made, "transforms", [made])
    return any(isinstance(each, MonotonicTransform) for each in every)


class ZukoBase(Base):
    """A lazy distribution of zuko as a base. Temperature scales about the mean, that of a mixture's component.

    Samples of normals (DiagNormal, MultivariateNormal), of BoxUniform and of mixtures of normals are made of noise;
    those of other distributions are zuko's own, about whose mean the temperature scales.

    Args:
        lazy: a `zuko.lazy.LazyDistribution` of vectors, which is shared.
        dim: D.
        given: the shape of its context, none by default.

    Raises:
        ConfigError: another temperature than 1 where it has no mean; `noise` of other distributions.
    """

    def __init__(self, lazy: Any, dim: int, given: Any = ()):
        super().__init__(dim, given)
        self.lazy = lazy
        like = _like(lazy)
        rows = tuple(torch.zeros(1, *shape, dtype=like.dtype, device=like.device) for shape in self.condition_shapes)
        with torch.no_grad():
            made = self._distribution(rows)
        self.kind = _kind(made)
        self.components = len(made.logits.flatten()) if self.kind == "mixture" else 0

    def _distribution(self, conditions: tuple[Tensor, ...]) -> Any:
        made = self.lazy(*conditions)
        return made if made.event_shape else Independent(made, 1)

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """Log-density of z, `(...)`."""
        return self._distribution(conditions).log_prob(z)

    def sample(self, shape: Sequence[int], *conditions: Tensor, temperature: float = 1.0) -> Tensor:
        """`(*shape, D)`."""
        if self.kind:
            return super().sample(shape, *conditions, temperature=temperature)
        expanded = tuple(c.expand(*shape, c.shape[-1]) for c in conditions)
        distribution = self._distribution(expanded)
        drawn = torch.Size(() if conditions else shape)
        z = distribution.rsample(drawn) if distribution.has_rsample else distribution.sample(drawn)
        if temperature == 1:
            return z
        try:
            mean = distribution.mean
        except (NotImplementedError, AttributeError) as error:
            raise ConfigError(
                f"zuko's {distribution} has no mean, so no temperature but 1, got {temperature}"
            ) from error
        return mean + temperature * (z - mean)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """D standard normal numbers, `(*shape, D)`, and K Gumbel ones for a mixture; for a box D numbers in [0, 1)."""
        if not self.kind:
            raise ConfigError(f"samples of zuko's {type(self.lazy).__name__} cannot be made of noise: use sample")
        like = _like(self.lazy)
        options: Any = {"dtype": like.dtype, "device": like.device}
        if self.kind == "box":
            return torch.rand(*shape, self.dim, **options)
        normal = torch.randn(*shape, self.dim, **options)
        if not self.components:
            return normal
        return torch.cat((normal, -torch.empty(*shape, self.components, **options).exponential_().log()), -1)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """The samples of what `noise` drew."""
        made = self._distribution(conditions)
        if self.kind == "box":
            box = made.base_dist
            return (box.low + box.high) / 2 + (box.high - box.low) * (noise - 0.5) * temperature
        normals = made.base if self.kind == "mixture" else made
        full = isinstance(normals, MultivariateNormal)
        mean, spread = (normals.loc, normals.scale_tril) if full else (normals.base_dist.loc, normals.base_dist.scale)
        normal = noise[..., : self.dim]
        if self.kind == "mixture":
            # The largest of weight plus Gumbel noise falls on a component with its probability.
            chosen = (made.logits.log_softmax(-1).detach() + noise[..., self.dim :]).argmax(-1)
            mean, spread = _chosen(mean, chosen, 1), _chosen(spread, chosen, 2 if full else 1)
        # No matrix product: autocast would round it to half precision.
        return mean + ((spread * normal.unsqueeze(-2)).sum(-1) if full else spread * normal) * temperature


def _kind(made: Any) -> str:
    """What samples are made of: `"normal"`, `"box"`, `"mixture"`, or `""` for what is not known."""
    zuko = _zuko()
    if isinstance(made, zuko.distributions.BoxUniform):
        return "box"
    if isinstance(made, zuko.distributions.DiagNormal | MultivariateNormal):
        return "normal"
    return "mixture" if isinstance(made, zuko.distributions.Mixture) and _kind(made.base) == "normal" else ""


def _chosen(values: Tensor, chosen: Tensor, event: int) -> Tensor:
    """Of `(..., K, *event)` each row's own."""
    tail = values.shape[values.dim() - event :]
    full = values.expand(*chosen.shape, *values.shape[values.dim() - event - 1 :])
    index = chosen.reshape(*chosen.shape, 1, *[1] * event).expand(*chosen.shape, 1, *tail)
    return full.gather(-1 - event, index).squeeze(-1 - event)


def from_zuko(flow: Any, condition: Any = None) -> Flow:
    """A lazy flow of zuko as a flowkit flow with a copy of its weights: input x, condition y, output z.

    Its `flow(c).log_prob(x)` is `flow.log_prob(x, given=c)`. Each lazy transform becomes a node. What flowkit has a
    counterpart of becomes flowkit's own, with the same parameters, and can be saved; the others run as they are, each
    as a `ZukoTransform`.

    Args:
        flow: a `zuko.lazy.Flow`, such as the classes of `zuko.flows`, or any lazy distribution of vectors (`GMM`).
        condition: the number of context features, or their shape; None for no context.

    Raises:
        MissingDependencyError: zuko is not installed.
        ConfigError: not a lazy distribution, or it does not run with such a context.
    """
    zuko = _zuko()
    if not isinstance(flow, zuko.lazy.LazyDistribution):
        raise ConfigError(f"from_zuko takes a lazy flow of zuko, got {type(flow).__name__}")
    with torch.random.fork_rng(devices=[]):  # parts are built with new weights before they get theirs
        return _converted(flow, copy.deepcopy(flow), condition)


def _converted(flow: Any, theirs: Any, condition: Any) -> Flow:
    zuko = _zuko()
    given = () if condition is None else (as_shape(condition),)
    like = _like(theirs)
    row = [torch.zeros(1, *shape, dtype=like.dtype, device=like.device) for shape in given]
    is_flow = isinstance(theirs, zuko.lazy.Flow)
    graph = Graph()
    wires = [graph.condition("y", shape) for shape in given]
    try:
        with torch.no_grad():
            shape = _event_shape((theirs.base if is_flow else theirs)(*row))
            dim = numel(shape)
            parts = list(_flat(theirs.transform)) if is_flow else []
            data = shape
            for part in reversed(parts):
                data = tuple(int(n) for n in part(*row).inverse_shape(torch.Size(data)))
        x = graph.input("x", data)
        for part in parts:
            for made in _convert(part, data, given, like.dtype):
                data = made.out_shapes[0]
                x = graph.add(made, x, given=wires if made.condition_shapes else None)
        if not parts:
            x = graph.add(Identity, x)
        graph.output("z", x)
        with default_dtype(like.dtype):
            base, base_given = _base(theirs.base if is_flow else theirs, dim, wires)
        converted = Flow(graph, base=base, base_given=base_given).to(device=like.device, dtype=like.dtype)
        converted.train(theirs.training)
        with torch.no_grad():
            row_given = {"y": row[0]} if row else None
            converted.log_prob(converted.sample((), given=row_given), given=row_given)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        what = (
            f"a context of shape {given[0]}" if given else "no context: from_zuko(flow, condition=features) gives one"
        )
        raise ConfigError(f"zuko's {type(flow).__name__} does not run with {what} ({error})") from error
    return converted


def _flat(lazy: Any) -> Any:
    zuko = _zuko()
    if isinstance(lazy, zuko.lazy.LazyComposedTransform):
        for part in lazy.transforms:
            yield from _flat(part)
    else:
        yield lazy


def _convert(part: Any, shape: Shape, given: tuple[Shape, ...], dtype: torch.dtype) -> list[Bijection]:
    """The bijections of a lazy transform: flowkit's own where it has them."""
    unconditional = isinstance(part, _zuko().lazy.UnconditionalTransform)
    try:
        with default_dtype(dtype):
            return native_parts(part, shape, given)
    except ConfigError as error:
        made = ZukoTransform(part, shape, given=() if unconditional else given)
        made.reason = str(error)
        return [made]


def _event_shape(distribution: Any) -> Shape:
    shape = tuple(int(n) for n in distribution.event_shape)
    if shape:
        return shape
    return tuple(int(n) for n in distribution.batch_shape[-1:])  # zuko takes such a base as one of vectors


def _base(lazy: Any, dim: int, wires: list[Any]) -> tuple[Any, Any]:
    native = native_base(lazy, dim)
    if native is not None:
        return native, None
    if isinstance(lazy, _zuko().lazy.UnconditionalDistribution):
        return ZukoBase(lazy, dim), None
    return ZukoBase(lazy, dim, tuple(wire.shape for wire in wires)), wires or None


def _like(module: Any) -> Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    return next((t for t in tensors if t.is_floating_point()), torch.zeros(()))


def _zuko() -> Any:
    try:
        import zuko
        import zuko.flows
        import zuko.lazy
    except ImportError as error:
        raise MissingDependencyError("this needs zuko: python -m pip install zuko") from error
    return zuko


def as_zuko(part: Flow | Bijection) -> Any:
    """A flow as a lazy distribution of zuko, or a bijection as a lazy transform, which its `Flow` composes.

    The context c is the flow's condition, or a dictionary where it has several; a bijection's conditions are vectors,
    and c is cut into them.

    Args:
        part: a flow, or a bijection of one input and one output.

    Raises:
        MissingDependencyError: zuko is not installed.
        ConfigError: neither of the two.
        ShapeError: a bijection of several inputs or outputs, or whose conditions are not vectors.
    """
    zuko = _zuko()
    if isinstance(part, Flow):
        return _lazy_distribution(zuko.lazy.LazyDistribution, part)
    if not isinstance(part, Bijection):
        raise ConfigError(f"as_zuko takes a Flow or a bijection, got {type(part).__name__}")
    if len(part.in_shapes) != 1 or len(part.out_shapes) != 1:
        raise ShapeError(f"as_zuko: one input and one output are needed, {type(part).__name__} has more")
    if any(len(shape) != 1 for shape in part.condition_shapes):
        raise ShapeError(f"as_zuko: a context of zuko is a vector, the conditions are of {part.condition_shapes}")
    return _lazy_transform(zuko.lazy.LazyTransform, part)


def _lazy_distribution(base: Any, part: Flow) -> Any:
    class FlowkitFlow(base):
        """A flow of flowkit, called as zuko calls its flows."""

        def __init__(self, flow: Flow):
            super().__init__()
            self.flow = flow

        def forward(self, c: Any = None) -> Any:
            return self.flow.given(c)

    return FlowkitFlow(part)


def _lazy_transform(base: Any, part: Bijection) -> Any:
    widths = [shape[0] for shape in part.condition_shapes]

    class FlowkitTransform(base):
        """A bijection of flowkit, called as zuko calls its lazy transforms."""

        def __init__(self, bijection: Bijection):
            super().__init__()
            self.bijection = bijection

        def forward(self, c: Tensor | None = None) -> BijectionTransform:
            if (c is None and widths) or (c is not None and widths and c.shape[-1] != sum(widths)):
                got = "none" if c is None else f"{c.shape[-1]} features"
                raise ConditionError(f"{type(part).__name__} needs a context of {sum(widths)} features, got {got}")
            return BijectionTransform(self.bijection, *(c.split(widths, -1) if c is not None and widths else ()))

    return FlowkitTransform(part)
