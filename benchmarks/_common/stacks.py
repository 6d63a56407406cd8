"""Equal stacks of affine couplings in every toolkit, with equal weights; each is compared before it is timed."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk

from .agreement import agree, float64
from .chains import redraw
from .peers import quiet

LIMIT = 2.0  # of the log-scales, where they are clamped by tanh
Layers = list[nn.Module]


@dataclass(frozen=True)
class Spec:
    """What a stack is made of.

    Args:
        depth: how many halves are transformed, one after the other, each by a subnet of its own.
        shape: of the data, `(D,)` or `(C, H, W)`, C and D even.
        condition: its shape; None for none.
        hidden: widths of the subnets' hidden layers; the subnets are MLPs, or 3 x 3 convolutions on maps.
        sides: "alternating" halves, the first half first; always the "second"; or alternating in blocks that transform
            "both".
    """

    depth: int
    shape: tuple[int, ...]
    condition: tuple[int, ...] | None
    hidden: tuple[int, ...]
    sides: str = "alternating"

    @property
    def halves(self) -> list[int]:
        """The half that each coupling transforms."""
        return [1] * self.depth if self.sides == "second" else [i % 2 for i in range(self.depth)]

    def net(self, c_in: int, c_out: int) -> Net:
        """A subnet as a peer takes it."""
        widths = (c_in, *self.hidden, c_out)
        layers = [nn.Conv2d(a, b, 3, padding=1) if len(self.shape) > 1 else nn.Linear(a, b) for a, b in pairs(widths)]
        return Net(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])

    def data(self, batch: int) -> tuple[Tensor, Tensor | None]:
        """Standard normal x and condition."""
        return torch.randn(batch, *self.shape), None if self.condition is None else torch.randn(batch, *self.condition)


def pairs(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each width and the one after it."""
    return itertools.pairwise(widths)


class Net(nn.Sequential):
    """A subnet; the condition comes as nflows passes it, or is held, or was concatenated by the coupling."""

    held: Tensor | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = self.held if context is None else context
        return super().forward(x if context is None else torch.cat((x, context), 1))


# ---------------------------------------------------------------------- flowkit's


def build(spec: Spec, **options: Any) -> fk.Flow:
    """flowkit's stack, its weights drawn such that the log-scales have standard deviation 0.1."""
    graph = fk.Graph()
    c = None if spec.condition is None else graph.condition("c", spec.condition)
    x = graph.input("x", spec.shape)
    config = {"subnet": fk.ConvNet(hidden=spec.hidden) if len(spec.shape) > 1 else fk.MLP(hidden=spec.hidden)}
    for half in spec.halves[:: 2 if spec.sides == "both" else 1]:
        sides = {"two_sided": True} if spec.sides == "both" else {"active": ("first", "second")[half]}
        x = graph.add(fk.AffineCoupling, x, given=c, limit=LIMIT, **config, **sides)
    graph.output("z", x)
    flow = fk.Flow(graph, **options)
    x, c = spec.data(64)
    return redraw(flow, x, c)


def subnets(flow: nn.Module) -> list[nn.Module]:
    """The subnets of a flow's couplings, in order."""
    return [net for m in flow.modules() if isinstance(m, fk.Coupling) for net in m.subnets]


def layers_of(module: nn.Module) -> Layers:
    """Its linear layers and convolutions, in order."""
    return [m for m in module.modules() if isinstance(getattr(m, "weight", None), Tensor)]


class Ours(nn.Module):
    """A flow, called as the peers here are."""

    def __init__(self, flow: fk.Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`, z in x's shape."""
        z, log_det = self.flow(x, given=c)
        return z.reshape(x.shape), log_det

    def nll(self, x: Tensor, c: Tensor | None) -> Tensor:
        """The mean negative log-likelihood."""
        return -self.flow.log_prob(x, given=c).mean()

    def inverse(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(x, log_det)`."""
        return self.flow.inverse(z.flatten(1), given=c)

    def sample(self, z: Tensor, c: Tensor | None) -> Tensor:
        """x alone, as sampling computes it."""
        return self.flow.network.inverse_only(z, *(() if c is None else (c,)))


# ---------------------------------------------------------------------- the peers


class Peer(nn.Module):
    """A stack of a peer's couplings, built from a `Spec`; each half's layers are in `nets`."""

    name: ClassVar[str]
    module: ClassVar[str]
    sides: ClassVar[tuple[str, ...]] = ("alternating", "second")
    maps: ClassVar[bool] = True
    inverted: ClassVar[bool] = False  # whether it computes z = (x - t) exp(-s)
    last: ClassVar[str] = "r, t"  # how the last layer's channels are ordered
    nets: list[Layers]

    @staticmethod
    def log_scale(r: Tensor) -> Tensor:
        """s of what the subnet gives."""
        return LIMIT * torch.tanh(r)

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`."""
        raise NotImplementedError

    def nll(self, x: Tensor, c: Tensor | None) -> Tensor:
        """The mean negative log-likelihood."""
        z, log_det = self(x, c)
        return (0.5 * z.square().flatten(1).sum(1) - log_det).mean()

    def sample(self, z: Tensor, c: Tensor | None) -> Tensor:
        """x, as the toolkit's own sampling computes it."""
        raise NotImplementedError

    @torch.no_grad()
    def take(self, source: list[Layers]) -> Peer:
        """Copy flowkit's weights, the last layers' channels in this toolkit's order."""
        for mine, theirs in zip(self.nets, source, strict=True):
            for layer, other in zip(mine, theirs, strict=True):
                for name in ("weight", "bias"):
                    values = getattr(other, name)
                    if layer is mine[-1]:
                        r, t = values.chunk(2)
                        order = {"r, t": (r, t), "t, r": (t, r)}.get(self.last)
                        values = torch.cat(order) if order else torch.stack((t, r), 1).flatten(0, 1)
                    getattr(layer, name).copy_(values)
        return self


class Freia(Peer):
    """FrEIA's: two-sided blocks where the halves alternate, so that nothing needs to be swapped."""

    name, module, sides = "FrEIA", "FrEIA", ("alternating", "second", "both")

    def __init__(self, spec: Spec):
        super().__init__()
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import AffineCouplingOneSided, GLOWCouplingBlock

        one = spec.sides == "second"
        self.inn, self.nets = SequenceINN(*spec.shape), []
        config: dict[str, Any] = {"subnet_constructor": spec.net, "clamp": LIMIT, "clamp_activation": "TANH"}
        if spec.condition is not None:
            config |= {"cond": 0, "cond_shape": spec.condition}
        for _ in range(spec.depth if one else spec.depth // 2):
            self.inn.append(AffineCouplingOneSided if one else GLOWCouplingBlock, **config)
            block = self.inn[len(self.inn) - 1]
            self.nets += [layers_of(n) for n in ([block.subnet] if one else [block.subnet2, block.subnet1])]

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`."""
        return self.inn(x, c=None if c is None else [c])

    def sample(self, z: Tensor, c: Tensor | None) -> Tensor:
        """x alone."""
        return self.inn(z, c=None if c is None else [c], rev=True, jac=False)[0]


class Nflows(Peer):
    """nflows': the scale is sigmoid(r + 2) + 0.001."""

    name, module, last = "nflows", "nflows", "t, r"

    def __init__(self, spec: Spec):
        super().__init__()
        from nflows.transforms import AffineCouplingTransform, CompositeTransform

        first = torch.arange(spec.shape[0]) < spec.shape[0] // 2
        c_c = 0 if spec.condition is None else spec.condition[0]

        def net(c_in: int, c_out: int) -> Net:
            return spec.net(c_in + c_c, c_out)

        blocks = [AffineCouplingTransform(first.logical_not() if half else first, net) for half in spec.halves]
        self.transform, self.nets = CompositeTransform(blocks), [layers_of(b.transform_net) for b in blocks]

    @staticmethod
    def log_scale(r: Tensor) -> Tensor:
        """s of what the subnet gives."""
        return (torch.sigmoid(r + 2) + 1e-3).log()

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`."""
        return self.transform(x, context=c)

    def sample(self, z: Tensor, c: Tensor | None) -> Tensor:
        """x; its log-det is computed too."""
        return self.transform.inverse(z, context=c)[0]


class Normflows(Peer):
    """normflows': no clamp, and no conditions, so here the subnets hold those; density is its inverse direction."""

    name, module, inverted, last = "normflows", "normflows", True, "t and r in turns"

    def __init__(self, spec: Spec):
        super().__init__()
        import normflows as nf

        c_c = 0 if spec.condition is None else spec.condition[0]
        self.held = [spec.net(spec.shape[0] // 2 + c_c, spec.shape[0]) for _ in range(spec.depth)]
        blocks = [
            nf.flows.AffineCouplingBlock(net, split_mode="channel" if half else "channel_inv")
            for net, half in zip(self.held, spec.halves, strict=True)
        ]
        self.flow = nf.NormalizingFlow(nn.Identity(), blocks[::-1])
        self.nets = [layers_of(net) for net in self.held]

    @staticmethod
    def log_scale(r: Tensor) -> Tensor:
        """s of what the subnet gives."""
        return r

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`."""
        self._hold(c)
        return self.flow.inverse_and_log_det(x)

    def sample(self, z: Tensor, c: Tensor | None) -> Tensor:
        """x alone."""
        self._hold(c)
        return self.flow.forward(z)

    def _hold(self, c: Tensor | None) -> None:
        for net in self.held:
            net.held = c


class Zuko(Peer):
    """zuko's: a softsign clamp at log(1000); vectors only."""

    name, module, maps, last = "zuko", "zuko", False, "t and r in turns"

    def __init__(self, spec: Spec):
        super().__init__()
        from zuko.flows import GeneralCouplingTransform
        from zuko.lazy import LazyComposedTransform

        (dim,), c_c = spec.shape, 0 if spec.condition is None else spec.condition[0]
        first = torch.arange(dim) < dim // 2
        blocks = [
            GeneralCouplingTransform(dim, c_c, mask=first if half else ~first, hidden_features=spec.hidden)
            for half in spec.halves  # its mask marks what stays
        ]
        self.transform, self.nets = LazyComposedTransform(*blocks), [layers_of(b.hyper) for b in blocks]

    @staticmethod
    def log_scale(r: Tensor) -> Tensor:
        """s of what the subnet gives."""
        return r / (1 + (r / torch.log(r.new_tensor(1e-3))).abs())

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`."""
        return self.transform(c).call_and_ladj(x)

    def sample(self, z: Tensor, c: Tensor | None) -> Tensor:
        """x alone."""
        return self.transform(c).inv(z)


PEERS: tuple[type[Peer], ...] = (Freia, Nflows, Normflows, Zuko)


def stacks(spec: Spec, flow: fk.Flow, batch: int = 16, only: Sequence[str] = ()) -> dict[str, Peer]:
    """Every installed peer's stack that a spec allows (or `only` these), with equal weights, compared and found equal.

    Raises:
        MismatchError: a toolkit's z or log-det is another.
    """
    found = {}
    source = [layers_of(net) for net in subnets(flow)]
    check(spec, "flowkit", Ours(flow), source, Peer.log_scale, False, batch)
    for cls in PEERS:
        fits = spec.sides in cls.sides and (cls.maps or len(spec.shape) == 1)
        if fits and (not only or cls.name in only) and importlib.util.find_spec(cls.module):
            with quiet():
                peer = cls(spec).take(source)
                check(spec, cls.name, peer, source, cls.log_scale, cls.inverted, batch)
            found[cls.name] = peer
    return found


def check(
    spec: Spec,
    name: str,
    module: nn.Module,
    source: list[Layers],
    log_scale: Callable[[Tensor], Tensor],
    inverted: bool,
    batch: int,
) -> None:
    """Compare z, log-det and the way back with the plain formula on flowkit's weights, in float64.

    Raises:
        MismatchError: they differ.
    """
    wide: Any = copy.deepcopy(module).double()
    x, c = spec.data(batch)
    x, c = x.double(), None if c is None else c.double()
    with torch.no_grad(), float64():
        z, log_det = wide(x, c)
        wanted, wanted_log_det = plain_formula(spec, source, x, c, log_scale, inverted)
        agree(name, "z", z, wanted)
        agree(name, "log-det", log_det, wanted_log_det)
        agree(name, "inverse", wide.sample(z, c), x, 1e-6)  # rounding grows where the scales are small


def plain_formula(
    spec: Spec,
    source: list[Layers],
    x: Tensor,
    c: Tensor | None,
    log_scale: Callable[[Tensor], Tensor],
    inverted: bool = False,
) -> tuple[Tensor, Tensor]:
    """`(z, log_det)` of the stack, written out: nothing of any toolkit."""
    halves, total = list(x.chunk(2, 1)), x.new_zeros(len(x))
    for layers, half in zip(source, spec.halves, strict=True):
        h = halves[1 - half] if c is None else torch.cat((halves[1 - half], c), 1)
        for number, layer in enumerate(layers):
            weight, bias = layer.weight.to(h.dtype), layer.bias.to(h.dtype)
            h = h.relu() if number else h
            h = F.linear(h, weight, bias) if h.dim() == 2 else F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)
        r, t = h.chunk(2, 1)
        s = log_scale(r)
        halves[half] = (halves[half] - t) * (-s).exp() if inverted else halves[half] * s.exp() + t
        total = total + (-s if inverted else s).flatten(1).sum(1)
    return torch.cat(halves, 1), total
