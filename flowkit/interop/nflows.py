"""nflows: its flows as flowkit's, transform by transform, with their embedding nets and distributions."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection
from flowkit.bijections import Identity
from flowkit.distributions import Base, DiagonalNormal, StandardNormal
from flowkit.errors import ConfigError, MissingDependencyError
from flowkit.flow import Flow
from flowkit.graph import Graph
from flowkit.interop.converted import FriendsMadeMixture, FriendsNet, FriendsSubnet
from flowkit.interop.layers import describe_layers
from flowkit.interop.nets import native_net
from flowkit.interop.nflows_parts import native_parts
from flowkit.registry import name_of
from flowkit.shapes import Shape, as_shape, numel
from flowkit.storage import default_dtype

REFUSED = {  # of nflows 0.14, on today's torch
    "NaiveLinear": "its inverse calls torch.solve, which torch no longer has; use LULinear",
    "GatedLinearUnit": "its log-det has one number for each element instead of each row",
}
REFUSED_BASES = {
    "ConditionalIndependentBernoulli": "it is discrete, so no density of it can be changed by a flow",
    "BoxUniform": "it takes no context, so nflows' own Flow cannot call it; use fk.Uniform as the base",
}
SLOW_INVERSE = "AutoregressiveTransform"


class NflowsTransform(Bijection):
    """A transform of nflows as a bijection: it runs as it is and shares its weights.

    forward: (y, log-det) = transform(x, context). inverse: (x, log-det) = transform.inverse(y, context).

    Batch normalisations always use their running statistics, since those of the batch make no bijection of a row; the
    caches of linear maps are switched off, since they keep tensors from call to call.

    Args:
        transform: a built `nflows.transforms.Transform`.
        shape: event shape of its input.
        given: the shape of its context, none by default.
        out_shape: event shape of its output where that differs.

    Raises:
        ConfigError: a transform that is wrong in nflows 0.14.
    """

    def __init__(self, transform: Any, shape: int | Sequence[int], given: Any = (), out_shape: Any = None):
        refuse(transform)
        super().__init__(shape, given=given)
        if out_shape is not None:
            self.out_shapes = (as_shape(out_shape),)
        self.transform = transform
        self.reason = ""
        self.slow_inverse = any(SLOW_INVERSE in c.__name__ for m in transform.modules() for c in type(m).__mro__)
        for part in transform.modules():
            if hasattr(part, "using_cache"):
                part.using_cache = False
                part.cache.invalidate()
        self.train(transform.training)

    def __repr__(self) -> str:
        """One line, with the reason why it runs as it is: what `fk.save` says of it."""
        return f"NflowsTransform({type(self.transform).__name__}{': ' * bool(self.reason)}{self.reason})"

    def train(self, mode: bool = True) -> NflowsTransform:
        """As any module's, but batch normalisations stay in eval mode."""
        super().train(mode)
        for part in self.transform.modules():
            if type(part).__name__ == "BatchNorm":
                part.eval()
        return self

    def forward(self, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        with torch.autocast(x.device.type, enabled=False):  # its matrix products would come in half precision
            return _result(self.transform(x, context=_float(conditions, x)), x)

    def inverse(self, y: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        with torch.autocast(y.device.type, enabled=False):
            return _result(self.transform.inverse(y, context=_float(conditions, y)), y)


def _float(conditions: tuple[Tensor, ...], like: Tensor) -> Tensor | None:
    return conditions[0].to(like.dtype) if conditions else None  # a feature net under autocast gives half precision


def _result(result: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    # Constants of theirs bring the log-det in the default dtype.
    return result[0], result[1].to(torch.promote_types(like.dtype, torch.float32))


class NflowsBase(Base):
    """nflows' ConditionalDiagonalNormal as a base, where its net has no written form; else it is a `fk.DiagonalNormal`.

    Temperature scales about the mean.

    Args:
        distribution: the distribution, which is shared.
        dim: D.
        given: the shape of its context.
    """

    def __init__(self, distribution: Any, dim: int, given: Any):
        super().__init__(dim, given)
        self.distribution = distribution

    def _moments(self, conditions: tuple[Tensor, ...], lead: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        (context,) = conditions
        rows = context.to(dtype).expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
        return [each.reshape(*lead, self.dim) for each in self.distribution._compute_params(rows)]

    def log_prob(self, z: Tensor, *conditions: Tensor) -> Tensor:
        """Log-density of z, `(...)`."""
        lead = torch.broadcast_shapes(z.shape[:-1], conditions[0].shape[:-1])
        mean, log_scale = self._moments(conditions, lead, z.dtype)
        whitened = (z - mean) * (-log_scale).exp()
        return (-0.5 * whitened.square() - log_scale).sum(-1) - self.dim * 0.5 * math.log(2 * math.pi)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `(*shape, D)`."""
        like = next((p for p in self.parameters()), torch.empty(0))
        return torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device)

    def from_noise(self, noise: Tensor, *conditions: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """The mean, and the scale times standard normal numbers times the temperature."""
        mean, log_scale = self._moments(conditions, noise.shape[:-1], noise.dtype)
        return mean + log_scale.exp() * noise * temperature


def refuse(transform: Any) -> None:
    """Refuse a transform of nflows 0.14 that is wrong, by name, wherever in it that stands."""
    for part in transform.modules():
        for cls in type(part).__mro__:
            if not cls.__module__.startswith("nflows."):
                continue
            reason = REFUSED.get(cls.__name__)
            if cls.__name__ == "ActNorm" and not part.initialized:
                reason = "it has seen no data, and its first call in training changes its weights"
            if reason:
                raise ConfigError(f"nflows' {cls.__name__} cannot be converted: {reason}")


def from_nflows(flow: Any, condition: Any = None, shape: Any = None) -> Flow:
    """A flow of nflows as a flowkit flow with a copy of its weights: input x, condition y, output z.

    Its `log_prob(inputs, context)` is `flow.log_prob(inputs, given=context)`. A composite becomes a chain of nodes.
    What flowkit has a counterpart of becomes flowkit's own, with the same parameters, and can be saved where the nets
    have layers of torch's, nflows' or registered classes; the other transforms run as they are, each as an
    `NflowsTransform`. nflows puts samples after the rows of the context, flowkit before them.

    Args:
        flow: an `nflows.flows.Flow`.
        condition: the shape of the context that the embedding net (or the flow, without one) takes: nflows does not
            keep it. None for no context.
        shape: the event shape of the data, where the inverse at zeros does not show it.

    Raises:
        MissingDependencyError: nflows is not installed.
        ConfigError: not such a flow, or it has a part that is wrong in nflows 0.14, or it needs `condition`.
    """
    try:
        from nflows.flows import Flow as NflowsFlow
    except ImportError as error:
        raise MissingDependencyError("this needs nflows: python -m pip install nflows") from error
    if not isinstance(flow, NflowsFlow):
        raise ConfigError(f"from_nflows takes an nflows.flows.Flow, got {type(flow).__name__}")
    refuse(flow._transform)
    with torch.random.fork_rng(devices=[]):  # parts are built with new weights before they get theirs
        return _converted(copy.deepcopy(flow), condition, shape)


def _converted(theirs: Any, condition: Any, shape: Any) -> Flow:
    graph = Graph()
    context = None
    if condition is not None:
        context = graph.condition("y", as_shape(condition))
        if type(theirs._embedding_net) is not nn.Identity:
            context = graph.features(_embedding(theirs._embedding_net), context, name="embedding")
    latent = _event_shape(theirs._distribution)
    like = next((p for p in theirs.parameters() if p.is_floating_point()), torch.zeros(()))
    parts = list(_flat(theirs._transform))
    shapes = _shapes(parts, latent, None if context is None else context.shape, theirs)
    if shape is not None:
        shapes[0] = as_shape(shape)
    used = False
    x = graph.input("x", shapes[0])
    for part, before, after in zip(parts, shapes, shapes[1:], strict=False):
        for made in _convert(part, before, after, None if context is None else context.shape, like.dtype):
            given = bool(made.condition_shapes)
            x = graph.add(made, x, given=context if given else None)
            used = used or given
    if not parts:
        x = graph.add(Identity, x)
    graph.output("z", x)
    with default_dtype(like.dtype):
        base, base_given = _base(theirs._distribution, context)
    if context is not None and not used and base_given is None:
        raise ConfigError("from_nflows: condition is given, but no part of this flow takes a context")
    return Flow(graph, base=base, base_given=base_given).to(device=like.device, dtype=like.dtype).train(theirs.training)


def _embedding(net: nn.Module) -> nn.Module:
    """An embedding net that can be saved, where its layers are known or its class is registered; else as it is."""
    if name_of(net) is not None:
        return net
    try:
        return FriendsNet(native_net(net))
    except ConfigError:
        return net


def _flat(transform: Any) -> Any:
    from nflows.transforms import CompositeTransform

    if isinstance(transform, CompositeTransform):
        for part in transform._transforms:
            yield from _flat(part)
    else:
        yield transform


def _shapes(parts: list[Any], latent: Shape, context: Shape | None, flow: Any) -> list[Shape]:
    """The event shape before every part and after the last, found by the inverse of one row of zeros."""
    like = next((p for p in flow.parameters() if p.is_floating_point()), torch.zeros(()))
    z = torch.zeros(1, *latent, dtype=like.dtype, device=like.device)
    given = None if context is None else torch.zeros(1, *context, dtype=like.dtype, device=like.device)
    modes = [(module, module.training) for part in parts for module in part.modules()]
    shapes = [latent]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.triangular_solve is deprecated, and says so once
        for part in reversed(parts):
            try:
                z = part.eval().inverse(z, context=given)[0]
            except Exception as error:
                hint = "" if context is not None else "; a flow with a context needs condition=, the context's shape"
                raise ConfigError(
                    f"nflows' {type(part).__name__} cannot be inverted: {type(error).__name__} {error}{hint}"
                ) from error
            shapes.append(tuple(z.shape[1:]))
    for module, training in modes:
        module.training = training
    return shapes[::-1]


def _convert(part: Any, before: Shape, after: Shape, context: Shape | None, dtype: torch.dtype) -> list[Bijection]:
    """The bijections of a transform: flowkit's own where it has them."""
    try:
        with default_dtype(dtype):
            return [made.train(part.training) for made in native_parts(part, before, context)]
    except ConfigError as error:
        takes = context is not None and not isinstance(part, _without_context())
        made = NflowsTransform(part, before, given=(context,) if takes else (), out_shape=after)
        made.reason = str(error)
        return [made]


def _without_context() -> tuple:
    """The transforms of nflows that pay no heed to a context."""
    import nflows.transforms as nt
    from nflows.transforms.linear import Linear

    return (Linear, nt.BatchNorm, nt.ActNorm, nt.HouseholderSequence, nt.SqueezeTransform, nt.PointwiseAffineTransform)


def _event_shape(distribution: Any) -> Shape:
    for cls in type(distribution).__mro__:
        if cls.__name__ in REFUSED_BASES:
            raise ConfigError(f"nflows' {cls.__name__} cannot be converted: {REFUSED_BASES[cls.__name__]}")
    if hasattr(distribution, "_shape"):
        return tuple(int(n) for n in distribution._shape)
    if hasattr(distribution, "_made"):
        return (int(distribution._made.features),)
    raise ConfigError(f"the base {type(distribution).__name__} cannot be converted: it is none of nflows' densities")


def _base(distribution: Any, context: Any) -> tuple[Any, Any]:
    name = type(distribution).__name__
    shape = _event_shape(distribution)
    dim = numel(shape)
    if name == "StandardNormal":
        return StandardNormal(dim), None
    if name == "DiagonalNormal":
        if len(shape) != 1:
            raise ConfigError(f"nflows' DiagonalNormal cannot be converted: it is wrong for shapes such as {shape}")
        base = DiagonalNormal(dim)
        with torch.no_grad():
            base.loc.copy_(distribution.mean_[0])
            base.log_scale.copy_(distribution.log_std_[0])
        return base, None
    if context is None:
        raise ConfigError(f"nflows' {name} needs a context: from_nflows(flow, condition=its shape)")
    given = (context.shape,)
    if name == "MADEMoG":
        made = distribution._made
        try:
            net = native_net(made)
        except ConfigError:
            net = made
        return FriendsMadeMixture(dim, given, net, made.num_mixture_components, made.epsilon), context
    encoder = distribution._context_encoder
    try:
        net = native_net(encoder if isinstance(encoder, nn.Module) else nn.Identity())
    except ConfigError:
        return NflowsBase(distribution, dim, given), context
    if not isinstance(encoder, nn.Module) and context.shape != (2 * dim,):  # somebody's function
        return NflowsBase(distribution, dim, given), context
    means_first = {"order": (0, 1), "by_element": False}
    normal = DiagonalNormal(dim, given, FriendsSubnet(describe_layers(net), means_first))
    normal.net.net = net
    return normal, context
