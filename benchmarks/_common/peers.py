"""The other toolkits' counterparts, where they are installed, as bijections that the same code measures."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flowkit as fk

from .chains import DEVIATION, DIM, HIDDEN, draw_layers, scale_layer


class FreiaOp(fk.Bijection):
    """A FrEIA module: `(x,), log_det = module((x,), rev=...)`, where the log-det may be a number."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]):
        super().__init__(shape)
        self.module = module

    def _call(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        (y,), log_det = self.module((x,), rev=rev)
        return y, torch.as_tensor(log_det, dtype=x.dtype).expand(x.shape[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(x, False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(y, True)


class NflowsOp(fk.Bijection):
    """An nflows transform: `y, log_det = transform(x)`, and `transform.inverse`."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]):
        super().__init__(shape)
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.inverse(y)


class Sequence(fk.Bijection):
    """Bijections one after the other."""

    def __init__(self, parts: list[fk.Bijection]):
        super().__init__(parts[0].in_shapes[0])
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for part in self.parts:
            x, log_det = part(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[0])
        for part in reversed(self.parts):
            y, log_det = part.inverse(y)
            total = total + log_det
        return y, total


class Net(nn.Sequential):
    """An MLP that both peers take as a subnet: theirs are called with a context that is None."""

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def mlp(c_in: int, c_out: int, hidden: tuple[int, ...] = HIDDEN) -> Net:
    """A plain MLP."""
    widths = (c_in, *hidden)
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    return Net(*layers, nn.Linear(widths[-1], c_out))


def installed() -> dict[str, str]:
    """The peers that can be imported: name and module."""
    known = {"FrEIA": "FrEIA", "nflows": "nflows"}
    return {name: module for name, module in known.items() if importlib.util.find_spec(module)}


@torch.no_grad()
def peer_chain(peer: str, depth: int, deviation: float = DEVIATION, rows: int = 512) -> fk.Bijection:
    """The peer's affine couplings, depth, widths and log-scales as in `chains.chain` and `chains.redraw`.

    Between FrEIA's, which always transform the second half, the order of the values is reversed.
    """
    x, parts = torch.randn(rows, DIM), []
    for i in range(depth):
        coupling, net, log_scale = COUPLINGS[peer](i)
        last = draw_layers([m for m in net if isinstance(m, nn.Linear)])
        half = [x[:, : DIM // 2], x[:, DIM // 2 :]][0 if peer == "FrEIA" else i % 2]
        for _ in range(3):
            scale_layer(last, deviation / log_scale(net(half)).std())
        x, _ = coupling(x)
        parts.append(coupling)
        if peer == "FrEIA":
            parts.append(_reverse())
            x = x.flip(1)
    return Sequence(parts)


def _freia_coupling(i: int) -> tuple[fk.Bijection, Net, Callable[[Tensor], Tensor]]:
    from FrEIA.modules import AffineCouplingOneSided

    op = AffineCouplingOneSided([(DIM,)], subnet_constructor=mlp)
    return FreiaOp(op, (DIM,)), op.subnet, lambda a: op.clamp * op.f_clamp(a[:, : DIM // 2])


def _nflows_coupling(i: int) -> tuple[fk.Bijection, Net, Callable[[Tensor], Tensor]]:
    from nflows.transforms import AffineCouplingTransform

    first = torch.arange(DIM) < DIM // 2
    op = AffineCouplingTransform(first.logical_not() if i % 2 == 0 else first, mlp)  # 1 marks what is transformed
    return NflowsOp(op, (DIM,)), op.transform_net, lambda a: op._scale_and_shift(a)[0].log()


COUPLINGS = {"FrEIA": _freia_coupling, "nflows": _nflows_coupling}


def _reverse() -> fk.Bijection:
    return fk.Permute((DIM,), order=list(reversed(range(DIM))))


# ---------------------------------------------------------------------- single ops


@dataclass(frozen=True)
class Counterpart:
    """One implementation of an op; `build` may raise, which is then what is reported."""

    op: str
    implementation: str
    shape: tuple[int, ...]
    build: Callable[[], fk.Bijection]


def counterparts() -> Iterator[Counterpart]:
    """Each op that a peer has, ours first: the same shapes, each with its own random weights."""
    vector, image, have = (6,), (4, 8, 8), installed()
    mask = torch.arange(6) >= 3
    small = _Small()
    table: list[tuple[str, tuple[int, ...], Callable, Callable | None, Callable | None]] = [
        (
            "affine coupling",
            vector,
            lambda: fk.AffineCoupling(vector, subnet=fk.MLP(hidden=(16,))),
            lambda m: m.AffineCouplingOneSided([vector], subnet_constructor=small),
            lambda t: t.AffineCouplingTransform(mask, small),
        ),
        (
            "two-sided coupling",
            vector,
            lambda: fk.AffineCoupling(vector, subnet=fk.MLP(hidden=(16,)), two_sided=True),
            lambda m: m.GLOWCouplingBlock([vector], subnet_constructor=small),
            None,
        ),
        ("act norm", vector, lambda: fk.ActNorm(vector), lambda m: m.ActNorm([vector]), lambda t: t.ActNorm(6)),
        (
            "elementwise scaling",
            vector,
            lambda: fk.ElementwiseAffine(vector),
            lambda m: m.LearnedElementwiseScaling([vector]),
            None,
        ),
        (
            "permutation",
            vector,
            lambda: fk.Permute(vector),
            lambda m: m.PermuteRandom([vector], seed=0),
            lambda t: t.RandomPermutation(6),
        ),
        (
            "fixed rotation",
            vector,
            lambda: fk.FixedRotation(vector),
            lambda m: m.FixedLinearTransform([vector], M=_rotation(6)),
            None,
        ),
        ("LU linear", vector, lambda: fk.LULinear(vector), None, lambda t: t.LULinear(6)),
        (
            "squeeze",
            image,
            lambda: fk.Squeeze(image),
            lambda m: m.IRevNetDownsampling([image]),
            lambda t: t.SqueezeTransform(),
        ),
        ("flatten", image, lambda: fk.Flatten(image), lambda m: m.Flatten([image]), None),
        ("Haar wavelet", image, _haar(image), lambda m: m.HaarDownsampling([image]), None),
    ]
    for op, shape, ours, freia, nflows in table:
        yield Counterpart(op, "flowkit", shape, ours)
        if freia and "FrEIA" in have:
            yield Counterpart(op, "FrEIA", shape, _wrap(FreiaOp, "FrEIA.modules", freia, shape))
        if nflows and "nflows" in have:
            yield Counterpart(op, "nflows", shape, _wrap(NflowsOp, "nflows.transforms", nflows, shape))


@torch.no_grad()
def random_weights(counterpart: Counterpart) -> fk.Bijection:
    """A counterpart in eval mode, its trainable weights moved away from the start."""
    bijection = counterpart.build().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in bijection.parameters():
        if parameter.requires_grad:  # some keep their constants as parameters
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.add_(0.5 / math.sqrt(fan_in) * torch.randn(parameter.shape, generator=generator).to(parameter))
    for name, buffer in bijection.named_buffers():
        if name.endswith("initialized"):  # data-dependent initialisation would undo the random weights
            buffer.fill_(True)
    return bijection


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Peers print, and call what torch has deprecated: neither belongs into a table."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _Small:
    def __call__(self, c_in: int, c_out: int) -> Net:
        return mlp(c_in, c_out, (16,))


def _wrap(
    wrapper: Callable[..., fk.Bijection], module: str, make: Callable[[Any], nn.Module], shape: tuple[int, ...]
) -> Callable[[], fk.Bijection]:
    def build() -> fk.Bijection:
        return wrapper(make(importlib.import_module(module)), shape)

    return build


def _rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]


def _haar(shape: tuple[int, ...]) -> Callable[[], fk.Bijection]:
    return lambda: fk.lookup("cinn.haar_downsample")(shape)
