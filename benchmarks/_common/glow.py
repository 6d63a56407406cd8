"""Glow, three levels or any, in flowkit, normflows and FrEIA: the same layers, equal weights, compared."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from flowkit.memory import LiveBytes, peak_bytes

from .agreement import agree, float64
from .chains import redraw
from .peers import quiet
from .stacks import LIMIT, Layers, Normflows, Peer, layers_of

KERNELS = (3, 1, 3)
ROUNDED = 1e-4  # relative: peers' weights are decomposed or inverted anew, and rounded to float32


@dataclass(frozen=True)
class GlowSpec:
    """Glow's size: `steps` of ActNorm, 1 x 1 convolution and coupling on each of the `levels`."""

    steps: int
    hidden: int = 256
    size: int = 256
    levels: int = 3
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return (self.channels, self.size, self.size)

    def net(self, c_in: int, c_out: int) -> nn.Sequential:
        """A subnet as FrEIA takes it."""
        widths = (c_in, self.hidden, self.hidden, c_out)
        layers = [nn.Conv2d(widths[i], widths[i + 1], k, padding=k // 2) for i, k in enumerate(KERNELS)]
        return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])


def glow(spec: GlowSpec, **options: Any) -> fk.Flow:
    """flowkit's Glow."""
    graph = fk.Graph()
    x = graph.input("x", spec.shape)
    recipe = fk.ConvNet(hidden=(spec.hidden, spec.hidden), kernel=KERNELS)
    for level in range(spec.levels):
        x = graph.add(fk.Squeeze, x)
        for _ in range(spec.steps):
            x = graph.add(fk.LULinear, graph.add(fk.ActNorm, x))
            x = graph.add(fk.AffineCoupling, x, subnet=recipe, limit=LIMIT)
        if level < spec.levels - 1:
            x, rest = graph.add(fk.Split, x)
            graph.output(f"level_{level}", rest)
    graph.output("top", x)
    return fk.Flow(graph, **options)


def steps_of(flow: fk.Flow) -> list[list[Any]]:
    """ActNorm, LULinear and coupling of every step, in order."""
    parts = [p for p in flow.network.nodes.children() if isinstance(p, fk.ActNorm | fk.LULinear | fk.AffineCoupling)]
    return [parts[i : i + 3] for i in range(0, len(parts), 3)]


class NormflowsGlow(nn.Module):
    """normflows' Glow: no clamp, density in its inverse direction."""

    name, log_scale, inverted = "normflows", staticmethod(Normflows.log_scale), True

    def __init__(self, spec: GlowSpec):
        super().__init__()
        import normflows as nf

        channels, levels = spec.channels, []
        for _ in range(spec.levels):
            channels *= 4
            blocks = [nf.flows.GlowBlock(channels, spec.hidden, scale_map="exp") for _ in range(spec.steps)]
            levels.insert(0, [*reversed(blocks), nf.flows.Squeeze()])
            channels //= 2
        merges = [nf.flows.Merge() for _ in range(spec.levels - 1)]
        self.flow = nf.MultiscaleFlow([nn.Identity() for _ in levels], levels, merges, class_cond=False)
        # The first batch would set its ActNorms; and the meta device holds no value that says whether it has.
        for norm in self._all(nf.flows.ActNorm):
            del norm._buffers["data_dep_init_done"]
            norm.data_dep_init_done = True

    def _all(self, cls: type) -> list[Any]:
        """Its modules of a class, in the order in which data passes them."""
        in_order = [b for level in reversed(self.flow.flows) for b in reversed(level)]
        return [m for block in in_order for m in block.modules() if isinstance(m, cls)]

    @torch.no_grad()
    def take(self, flow: fk.Flow) -> NormflowsGlow:
        """Copy flowkit's weights."""
        import normflows as nf

        parts = (self._all(nf.flows.ActNorm), self._all(nf.flows.Invertible1x1Conv), self._all(nf.nets.ConvNet2d))
        for norm, mixing, net, (our_norm, linear, coupling) in zip(*parts, steps_of(flow), strict=True):
            norm.t.copy_(our_norm.location)
            norm.s.copy_(-our_norm.log_scale)
            permutation, lower, upper = torch.linalg.lu(linear.weight())
            mixing.P.copy_(permutation)
            mixing.L.copy_(lower)
            mixing.U.copy_(upper.triu(1))
            mixing.sign_S.copy_(upper.diagonal().sign())
            mixing.log_S.copy_(upper.diagonal().abs().log())
            _copy(layers_of(net), layers_of(coupling.subnets[0]), turns=True)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`, z flat, the finest level first."""
        parts, log_det = self.flow.inverse_and_log_det(x)
        return torch.cat([p.flatten(1) for p in reversed(parts)], 1), log_det


class FreiaGlow(nn.Module):
    """FrEIA's: the same layers, but for its 1 x 1 convolutions, which are fixed."""

    name, log_scale, inverted = "FrEIA", staticmethod(Peer.log_scale), False

    def __init__(self, spec: GlowSpec):
        super().__init__()
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import ActNorm, AffineCouplingOneSided, Fixed1x1Conv, IRevNetDownsampling

        (channels, size), self.levels = (spec.channels, spec.size), nn.ModuleList()
        for _ in range(spec.levels):
            level = SequenceINN(channels, size, size)
            level.append(IRevNetDownsampling)
            channels, size = 4 * channels, size // 2
            for _ in range(spec.steps):
                level.append(ActNorm)
                level[len(level) - 1].init_on_next_batch = False
                level.append(Fixed1x1Conv, M=torch.eye(channels))
                level.append(AffineCouplingOneSided, subnet_constructor=spec.net, clamp=LIMIT, clamp_activation="TANH")
            self.levels.append(level)
            channels //= 2

    @torch.no_grad()
    def take(self, flow: fk.Flow) -> FreiaGlow:
        """Copy flowkit's weights."""
        modules = [m for level in self.levels for m in list(level)[1:]]
        for number, (our_norm, linear, coupling) in enumerate(steps_of(flow)):
            norm, mixing, block = modules[3 * number : 3 * number + 3]
            norm.scale.copy_(our_norm.log_scale)
            norm.bias.copy_(-our_norm.location * our_norm.log_scale.exp())
            weight = linear.weight()
            mixing.M.copy_(weight[..., None, None])
            mixing.M_inv.copy_(weight.inverse()[..., None, None])
            mixing.logDetM.copy_(torch.slogdet(weight)[1])
            _copy(layers_of(block.subnet), layers_of(coupling.subnets[0]), turns=False)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`, z flat, the finest level first."""
        parts, total = [], x.new_zeros(len(x))
        for number, level in enumerate(self.levels):
            x, log_det = level(x)
            total = total + log_det
            if number < len(self.levels) - 1:
                x, rest = x.chunk(2, 1)
                parts.append(rest.flatten(1))
        return torch.cat([*parts, x.flatten(1)], 1), total


PEERS = (NormflowsGlow, FreiaGlow)


def peers(spec: GlowSpec) -> dict[str, Callable[[GlowSpec], Any]]:
    """The installed peers' Glows by name."""
    return {cls.name: cls for cls in PEERS if importlib.util.find_spec(cls.name)}


def nll(model: nn.Module, x: Tensor) -> Tensor:
    """The mean negative log-likelihood, without its constant."""
    z, log_det = model(x)
    return (0.5 * z.square().sum(1) - log_det).mean()


@torch.no_grad()
def redraw_glow(flow: fk.Flow, x: Tensor) -> fk.Flow:
    """ActNorm set by the data, the couplings' weights drawn anew."""
    return redraw(flow.initialize(x), x)


def check_glow(flow: fk.Flow, models: dict[str, Any], x: Tensor) -> None:
    """Compare z and log-det of every Glow with the plain formula on flowkit's weights, in float64.

    Raises:
        MismatchError: they differ.
    """
    x = x.double()
    wide = copy.deepcopy(flow).double()
    with torch.no_grad(), float64():
        for name, model in {"flowkit": flow, **models}.items():
            clamp, inverted = getattr(model, "log_scale", Peer.log_scale), getattr(model, "inverted", False)
            wanted, wanted_log_det = _plain_glow(wide, x, clamp, inverted)
            z, log_det = copy.deepcopy(model).double()(x)
            agree(name, "z", z, wanted, ROUNDED)
            agree(name, "log-det", log_det, wanted_log_det, ROUNDED)


def _plain_glow(
    flow: fk.Flow, x: Tensor, log_scale: Callable[[Tensor], Tensor], inverted: bool
) -> tuple[Tensor, Tensor]:
    """Glow written out: nothing of any toolkit but flowkit's weights."""
    steps, parts, total = steps_of(flow), [], x.new_zeros(len(x))
    levels = len(flow.network.graph.outputs)
    for level in range(levels):
        x = F.pixel_unshuffle(x, 2)
        for norm, linear, coupling in steps[level * len(steps) // levels : (level + 1) * len(steps) // levels]:
            pixels, weight = x[0, 0].numel(), linear.weight()
            x = F.conv2d((x - norm.location) * norm.log_scale.exp(), weight[..., None, None])
            total = total + pixels * (norm.log_scale.sum() + torch.slogdet(weight)[1])
            x1, x2 = x.chunk(2, 1)
            h = x1
            for number, layer in enumerate(layers_of(coupling.subnets[0])):
                h = h.relu() if number else h
                h = F.conv2d(h, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
            r, t = h.chunk(2, 1)
            s = log_scale(r)
            x = torch.cat((x1, (x2 - t) * (-s).exp() if inverted else x2 * s.exp() + t), 1)
            total = total + (-s if inverted else s).sum((1, 2, 3))
        if level < levels - 1:
            x, rest = x.chunk(2, 1)
            parts.append(rest.flatten(1))
    return torch.cat([*parts, x.flatten(1)], 1), total


def _copy(mine: Layers, theirs: Layers, turns: bool) -> None:
    for layer, other in zip(mine, theirs, strict=True):
        for name in ("weight", "bias"):
            values = getattr(other, name)
            if turns and layer is mine[-1]:
                r, t = values.chunk(2)
                values = torch.stack((t, r), 1).flatten(0, 1)
            getattr(layer, name).copy_(values)


# ---------------------------------------------------------------------- bytes, without using them


def held_bytes(model: nn.Module, x: Tensor) -> int:
    """Parameters, buffers and data."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), x))


def step_bytes(model: nn.Module, x: Tensor) -> int:
    """The peak of a forward and backward pass: what is alive at once, parameters, their gradients and data included."""
    nll(model, x).backward()  # mode auto plans at the first pass of a batch size, and would count what it plans
    model.zero_grad()
    with LiveBytes() as counter:
        nll(model, x).backward()
    return counter.peak + held_bytes(model, x)


@functools.cache
def predicted_bytes(spec: GlowSpec, batch: int, name: str) -> int:
    """The same, found on the meta device: `name` is a peer, or a mode of flowkit."""
    x = torch.empty(batch, *spec.shape, device="meta")
    if name in ("plain", "reverse"):
        network = glow(spec).network
        cut = 0 if name == "plain" else len(network.graph.nodes)
        return peak_bytes(network, {network.graph.inputs[0].index: x}, cut) + held_bytes(network, x)
    with quiet():
        model = peers(spec)[name](spec).to("meta")
        return step_bytes(model, x)


def most(bytes_of: Callable[[int], int], budget: int, cap: int, first: Sequence[int] = (4,), power: int = 1) -> int:
    """The largest n of 1 to `cap` whose bytes are within the budget, which grow with n; 0 where none is.

    Bisection, but between two known ends the guess is where bytes linear in n^power would meet the budget.

    >>> most(lambda n: 3 + 2 * n, 50, 100), most(lambda n: 3 + 2 * n, 50, 7), most(lambda n: 3 + 2 * n, 1, 100)
    (23, 7, 0)
    """
    known: dict[int, int] = {}
    waiting = sorted({n for n in first if n <= cap})
    while True:
        low = max((n for n, b in known.items() if b <= budget), default=0)
        high = min((n for n, b in known.items() if b > budget), default=cap + 1)
        waiting = [n for n in waiting if low < n < high]
        if high - low <= 1:
            return low
        if waiting:
            probe = waiting.pop(0)
        elif low == 0:
            probe = (low + high) // 2
        elif high > cap:
            probe = cap
        else:
            share = (budget - known[low]) / max(known[high] - known[low], 1)
            probe = int((low**power + share * (high**power - low**power)) ** (1 / power))
            # Exact where bytes are a power law: the guess fits, and the next does not.
            probe = min(max(probe, low + 1), high - 1)
        known[probe] = bytes_of(probe)
