"""Couplings: one half of the channels, and the conditions, decide what is done to the other half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import Bijection, Prepared, event_sum, join
from flowkit.bijections.conditioning import check_conditions, default_subnet
from flowkit.bijections.partition import make_partition
from flowkit.errors import ConfigError
from flowkit.registry import Example, register
from flowkit.shapes import Shape
from flowkit.subnets import MLP, ConvNet, ResidualNet, build_subnet
from flowkit.tape import Tape
from flowkit.univariate import (
    Affine,
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
    LinearSpline,
    Univariate,
    build_univariate,
)
from flowkit.univariate.univariate import offer_examples

HALVES = ("first", "second")
NOTHING_PREPARED = (None, None)


def _any_univariate() -> list[Example]:
    mlp, circular = MLP(hidden=6, activation="silu"), CircularRationalQuadraticSpline.recipe(bins=3)
    return [
        Example((3,), given=(2,), subnet=mlp, univariate=Affine.recipe(clamp="softsign"), split=(1,)),
        Example((2, 3), subnet=ConvNet(hidden=4, activation="silu"), two_sided=True, split="checkerboard"),
        Example((2, 2, 3), subnet=ConvNet(hidden=4, activation="silu"), active="first"),
        Example((3,), given=(2,), subnet=mlp, univariate=BoundedRationalQuadraticSpline.recipe(bins=3)),
        Example((2, 3), subnet=ConvNet(hidden=4, activation="silu"), univariate=circular),
        Example((2, 3), subnet=ConvNet(hidden=4, activation="silu"), univariate=circular, two_sided=True),
        Example((5,), given=(2,), subnet=mlp, univariate=LinearSpline.recipe(bins=3), two_sided=True),
    ]


@register("flowkit.coupling", examples=_any_univariate)
class Coupling(Bijection):
    """A coupling with any univariate map f(x; p): affine by default, see `flowkit.univariate` for others.

    The data is split into x1 and x2: by default x1 is the first C // 2 channels (event dimension 0), x2 the rest.

    | | one-sided, the second half active | two-sided |
    | --- | --- | --- |
    | forward | y1 = x1, y2 = f(x2; p(x1, c)) | y1 = f(x1; p1(x2, c)), then y2 = f(x2; p2(y1, c)) |
    | its log-det | sum of log f' | sum of both |
    | inverse | x1 = y1, x2 = f^-1(y2; p(y1, c)) | x2 = f^-1(y2; p2(y1, c)), then x1 = f^-1(y1; p1(x2, c)) |
    | its log-det | minus the sum of log f' at x | minus the sum of both |

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`. The subnet's output
    `(B, k C_active, ...)` is cut on channels into the k parameters of the univariate map.

    Args:
        shape: event shape `(C, ...)`, at least two channels.
        given: shapes of the conditions.
        subnet: a recipe, see `flowkit.subnets`; by default `MLP()` for vectors, `ConvNet()` for maps.
        univariate: a recipe such as `fk.Affine.recipe(clamp="atan")`, or a class of `fk.Univariate`.
        two_sided: transform both halves, the first half first, with a subnet and a univariate map each.
        active: one-sided, the half that is transformed, `"first"` or `"second"`: alternate it through a chain, which
            costs nothing, rather than swapping the halves. Two-sided transforms both whatever it says.
        split: `"halves"`; `"alternating"`, channels 0, 2, ... and 1, 3, ...; a tuple, the channels of the second part;
            or `"checkerboard"`, for maps of any number of channels: the subnet sees the passive squares, and zeros
            elsewhere.

    Raises:
        ShapeError: fewer than two channels; a condition of another spatial size; a subnet that does not fit.
        ConfigError: an unknown half or split; a univariate map or a subnet that is not a recipe.

    >>> coupling = Coupling((5,), univariate=Affine.recipe(clamp="atan"), split=(0, 4))
    >>> y, log_det = coupling(torch.ones(2, 5))
    >>> y.shape, log_det.shape
    (torch.Size([2, 5]), torch.Size([2]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        univariate: Any = Affine,
        two_sided: bool = False,
        active: str = "second",
        split: str | Sequence[int] = "halves",
    ):
        super().__init__(shape, given=given)
        shape = self.in_shapes[0]
        name = type(self).__name__
        partition = make_partition(name, shape, split)
        if active not in HALVES:
            raise ConfigError(f"{name}: active must be 'first' or 'second', got {active!r}")
        check_conditions(name, shape, self.condition_shapes)
        self.partition: Any = partition
        self.univariate_recipe = univariate
        self.steps = (0, 1) if two_sided else (HALVES.index(active),)  # the half that each step transforms, forward
        self.subnets: Any = nn.ModuleList()  # Any: a type checker knows of no `prepare` or `inverse` in a ModuleList
        self.univariates: Any = nn.ModuleList()
        recipe = default_subnet(shape) if subnet is None else subnet
        for half in self.steps:
            transformed = partition.shapes[half]
            made = self.make_univariate(transformed)
            c_out = made.numbers_per_element * transformed[0]
            self.subnets.append(build_subnet(recipe, partition.shapes[1 - half], self.condition_shapes, c_out))
            self.univariates.append(made)
        # An instance makes the promises of its univariate map, which the class cannot know.
        maps: list[Any] = list(self.univariates)
        self.iterative = any(each.iterative for each in maps)
        self.tolerance = max(each.tolerance for each in maps)
        offer_examples(self, maps, shape)

    def make_univariate(self, shape: Shape) -> Univariate:
        """The univariate map of an active half of event shape `shape`; called by the constructor."""
        return build_univariate(type(self).__name__, self.univariate_recipe, shape)

    def prepare(self, *conditions: Tensor) -> tuple | None:
        """Each subnet's part that depends on the conditions alone; None where a subnet has no such part."""
        c = join(conditions)
        if c is None:
            return None
        parts = tuple(subnet.prepare(c) for subnet in self.subnets)
        return None if any(part is None for part in parts) else parts

    def _transform(self, x: Tensor, given: tuple, inverse: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Both halves after all steps, and each step's log-derivatives."""
        prepared = given[0] if given and isinstance(given[0], Prepared) else None
        c = join(given) if prepared is None else None
        partition: Any = self._modules["partition"]  # as an attribute it costs a look-up that is felt on small data
        halves, log_derivatives = partition.part(x), []
        # The containers are iterated and the univariate maps called without their hooks: on small data this is felt.
        stages = list(zip(self.steps, self.subnets, self.univariates, prepared or NOTHING_PREPARED, strict=False))
        for half, subnet, univariate, part in reversed(stages) if inverse else stages:
            predicted = subnet(halves[1 - half], c, part)
            apply = univariate.inverse if inverse else univariate.forward
            active = halves[half] if univariate.domain is None else self._filled(half, univariate, halves[half])
            transformed, log_derivative = apply(active, *univariate.split(predicted))
            halves[half] = partition.keep(half, transformed)
            log_derivatives.append(partition.keep(half, log_derivative))
        return halves, log_derivatives

    def _filled(self, half: int, univariate: Any, values: Tensor) -> Tensor:
        """A half whose gaps, if any, lie in the middle of the univariate map's domain, to which 0 may not belong."""
        return self.partition.keep(half, values, sum(univariate.domain) / 2)

    def forward(self, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """Data to latent: `(y, log_det)`; `given` is the conditions or one `fk.Prepared`."""
        halves, logs = self._transform(x, given, inverse=False)
        return self.partition.join(halves), _total(logs)

    def inverse(self, y: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """Latent to data: `(x, log_det)`, the log-det of the inverse map."""
        halves, logs = self._transform(y, given, inverse=True)
        return self.partition.join(halves), _total(logs)

    def inverse_only(self, y: Tensor, *given: Any) -> Tensor:
        """The inverse without summing its log-det."""
        return self.partition.join(self._transform(y, given, inverse=True)[0])

    def undo(
        self,
        outputs: Sequence[Tensor],
        conditions: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        grad_log_det: Tensor,
        tape: Tape,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Reverse mode with one run of each subnet, which serves the inverse and the gradients; see `fk.Bijection`."""
        partition = self.partition
        halves, grads = partition.part(outputs[0]), partition.part(grad_outputs[0])
        grad_log = grad_log_det.reshape(-1, *[1] * (outputs[0].dim() - 1))
        stages = list(zip(self.steps, self.subnets, self.univariates, strict=True))
        for half, subnet, univariate in reversed(stages):
            predicted, pull_back = tape.run(subnet, halves[1 - half])
            wanted = partition.keep(half, grad_log.expand_as(halves[half])) if partition.gaps else grad_log
            active = halves[half] if univariate.domain is None else self._filled(half, univariate, halves[half])
            before, grads[half], grad_parameters, own = univariate.undo(
                active, univariate.split(predicted), grads[half], wanted
            )
            halves[half] = partition.keep(half, before)
            for name, grad in own.items():
                tape.add(univariate, name, grad)
            pulled = pull_back(univariate.join(grad_parameters))
            grads[1 - half] = grads[1 - half] + partition.keep(1 - half, pulled)
        return [partition.join(halves)], [partition.join(grads)]

    def log_scales(self, x: Tensor, *given: Any) -> Tensor:
        """The log-derivatives applied to x, `(B, channels transformed, ...)`."""
        return torch.cat(self._transform(x, given, inverse=False)[1], 1)

    def extra_repr(self) -> str:
        """Channels of the halves, and which are transformed."""
        active = "both" if len(self.steps) == 2 else HALVES[self.steps[0]]
        return f"{self.partition.extra_repr()}, active={active!r}"


def _total(log_derivatives: list[Tensor]) -> Tensor:
    # Summed before they are added: the halves differ in size where the channel count is odd.
    sums = [event_sum(each) for each in log_derivatives]
    return sums[0] if len(sums) == 1 else sums[0] + sums[1]


def _examples() -> list[Example]:
    mlp, conv = MLP(hidden=6, activation="silu"), ConvNet(hidden=4, kernel=(3, 1), activation="silu")
    return [
        Example((2,), subnet=mlp),
        Example((5,), subnet=mlp, clamp="atan", limit=1.0, active="first"),
        Example((3,), given=(4,), subnet=mlp, clamp="softsign"),
        Example((3,), given=((2,), (1,)), subnet=mlp, two_sided=True),
        Example((4,), subnet=ResidualNet(hidden=5, blocks=1, activation="tanh"), two_sided=True, clamp=None),
        Example((3, 4), given=((1, 4),), subnet=conv, two_sided=True, clamp="atan", limit=0.6),
        Example((3, 2, 3), subnet=conv, active="first"),
        Example((3, 2, 2), given=((2, 2, 2), (1, 2, 2)), subnet=conv, limit=0.5),
        Example((2, 2, 3, 2), given=((1, 2, 3, 2),), subnet=conv, clamp="softsign", limit=1.0),
        Example((5,), given=(2,), subnet=mlp, split="alternating", two_sided=True),
        Example((1, 3, 2), given=((2, 3, 2),), subnet=conv, split="checkerboard", two_sided=True),
    ]


@register("flowkit.affine_coupling", examples=_examples)
class AffineCoupling(Coupling):
    """The affine coupling: y2 = x2 exp(s(x1, c)) + t(x1, c), y1 = x1.

    Two-sided it is the paper's block: v1 = u1 exp(s1(u2, c)) + t1(u2, c), then v2 = u2 exp(s2(v1, c)) + t2(v1, c).

    | | one-sided | two-sided |
    | --- | --- | --- |
    | forward | y1 = x1, y2 = x2 exp(s) + t | as above |
    | its log-det | sum of s | sum of s1 and s2 |
    | inverse | x1 = y1, x2 = (y2 - t) exp(-s) | u2 = (v2 - t2) exp(-s2), then u1 = (v1 - t1) exp(-s1) |
    | its log-det | minus the sum of s | minus the sum of s1 and s2 |

    Shapes: x `(B, C, ...)`, conditions `(B, C', ...)` of the same spatial size, log_det `(B,)`. The subnet gives
    `(B, 2 C_active, ...)`, all r first, then all t; s = clamp(r) is computed in float32 or wider, see `fk.Affine`.
    The recipes of `flowkit.subnets` start with t = 0 and r = 0, so the coupling starts as the identity.

    Args:
        shape: event shape `(C, ...)`, at least two channels.
        given: shapes of the conditions.
        subnet: a recipe, see `flowkit.subnets`; by default `MLP()` for vectors, `ConvNet()` for maps.
        clamp: `"tanh"` (with a learned gamma per channel), `"atan"`, `"softsign"` or None (nothing keeps exp from
            overflowing).
        limit: the bound on the log-scale, at the start where it is learned.
        two_sided: transform both halves, the first half first, with a subnet and a gamma each.
        active: one-sided, the half that is transformed, `"first"` or `"second"`.
        split: `"halves"`, `"alternating"`, `"checkerboard"` or the channels of the second part, see `fk.Coupling`.

    Raises:
        ShapeError: fewer than two channels; a condition of another spatial size; a subnet that does not fit.
        ConfigError: an unknown clamp, half or split, a limit that is not positive, a subnet that is not a recipe.

    Source: Dinh et al., Density estimation using Real NVP, 2017; two-sided with conditions: Ardizzone et al.,
        Conditional Invertible Neural Networks for Diverse Image-to-Image Translation, 2020.

    >>> coupling = AffineCoupling((4,), given=(10,), subnet=MLP(hidden=(32, 32)))
    >>> y, log_det = coupling(torch.ones(5, 4), torch.zeros(5, 10))
    >>> y.shape, log_det.shape
    (torch.Size([5, 4]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        given: int | Sequence = (),
        subnet: Any = None,
        clamp: str | None = "tanh",
        limit: float = 2.0,
        two_sided: bool = False,
        active: str = "second",
        split: str | Sequence[int] = "halves",
    ):
        self.clamp, self.limit = clamp, limit
        affine = Affine.recipe(clamp=clamp, limit=limit)
        super().__init__(shape, given, subnet, affine, two_sided=two_sided, active=active, split=split)
