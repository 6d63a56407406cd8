"""Unconstrained monotonic networks: the integral of a positive network, by Clenshaw and Curtis's quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkit.bijection import may_overwrite
from flowkit.constants import WithConstants
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.monotone import LinearTails, along, check_count, soft_clamp

LIMIT = 3.0  # of the log-derivative
SLOPE_LIMIT = 0.7  # of a hidden unit's log-slope: steeper units would need more nodes
NODES_PER_UNIT = 8
CELLS_PER_UNIT = 4  # of the table that the inverse starts from
STEPS = 10  # of the inverse at most: from the table, 8 were enough whatever was predicted
IN_CACHE = 2**16  # values of the network at a time
MARGIN = 1.5  # of the bound: the table's own error is less


@register("flowkit.unconstrained_monotonic")
class UnconstrainedMonotonic(WithConstants, LinearTails):
    """UMNN's map: the integral of a positive network on [-bound, bound], continued linearly beyond.

    With a network of one hidden layer, n(t) = c + sum_k v_k tanh(a_k (H + 1) t / (2 bound) + b_k), and g = exp(3 tanh(n
    / 3)), all of whose weights are predicted:

    forward: y = s + integral from 0 to x of g; beyond the bound the tangents of the ends. its log-derivative: log g at
    x, or at the nearer end, so between -3 and 3.
    inverse: by Newton's method, safeguarded by bisection, from a table of the integral; gradients are those of the
    implicit function. its log-derivative: minus the above at x.

    The integral is Clenshaw and Curtis's rule of 8 H + 9 nodes on [0, x]. The paper has one network for all elements,
    fed with a predicted embedding; here each element's own small network is predicted, so that zero parameters are the
    identity and nothing is shared. Its units are spread over the interval, with bounded slopes a (within a factor of
    2 of 1), shifts and values v (within 1), for which the rule converges fast: whatever is predicted, in float64 the
    value is right to `tolerance`, and so is the log-derivative against the derivative of the value that is computed.
    Forward computes H (8 H + 9) units an element. The inverse takes about 6 times that, its table included, and a
    compiled one 11 times; where gradients are wanted, twice that of forward comes on top.

    Parameters: raw values v, slopes a and shifts b, each `(B, H, C, ...)`; constant c and shift s, of x's shape;
    computed in float32 or wider.

    Args:
        shape: event shape `(C, ...)` of x, or `()`.
        hidden: H, units of the network, at least 1.
        bound: the network is on [-bound, bound].

    Raises:
        ConfigError: hidden below 1, a bound out of range.

    Source: Wehenkel and Louppe, Unconstrained monotonic neural networks, 2019, sections 3 and 4.

    >>> umnn = UnconstrainedMonotonic((3,), hidden=4)
    >>> x = torch.tensor([[-5.0, 0.5, 1e6]])
    >>> y, log_derivative = umnn(x, *umnn.split(torch.zeros(1, 3 * umnn.numbers_per_element)))
    >>> torch.allclose(y, x), log_derivative.shape
    (True, torch.Size([1, 3]))
    """

    tolerance: ClassVar[float] = 1e-8
    steps: ClassVar[int] = STEPS
    centres: Tensor
    nodes: Tensor
    node_weights: Tensor
    grid: Tensor

    def __init__(self, shape: Shape, hidden: int = 8, bound: float = 5.0):
        check_count("UnconstrainedMonotonic", "hidden", hidden, 1)
        self.parameter_shapes = ((hidden,), (hidden,), (hidden,), (), ())
        super().__init__(shape, bound)
        self.hidden = hidden
        self.cells = CELLS_PER_UNIT * (hidden + 1)
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The units' centres, the rule of quadrature, and the ends and middles of cells of the whole interval."""
        nodes, weights = clenshaw_curtis(NODES_PER_UNIT * (self.hidden + 1))
        centres = torch.arange(self.hidden, dtype=torch.float64) - (self.hidden - 1) / 2  # a distance of 1 apart
        grid = torch.linspace(-1, 1, 2 * self.cells + 1, dtype=torch.float64)
        return {"centres": along(centres, self.shape), "nodes": nodes, "node_weights": weights, "grid": grid}

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """What makes log g / 3 = tanh(n / 3) of logistic functions, which cost a fraction of tanh; and the shift.

        With tanh(t) = 2 sigmoid(2 t) - 1 it is 2 sigmoid(c' + sum_k v'_k sigmoid(a'_k x + b'_k)) - 1.
        """
        values, slopes, shifts, constant, shift = parameters
        values, slopes = soft_clamp(values, 1.0), soft_clamp(slopes, SLOPE_LIMIT).exp()
        biases = -2 * slopes * (self.centres + soft_clamp(shifts, 1.0))
        in_units = slopes * ((self.hidden + 1) / self.bound)
        return values * (4 / LIMIT), in_units, biases, (constant - values.sum(1)) * (2 / LIMIT), shift

    def _integrand(self, scale: Tensor, points: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """g at scale times each of the points, `(B, C, ..., points)`, the last dimension being the fastest."""
        rows = max(1, IN_CACHE * scale.shape[0] // max(1, scale.numel() * len(points)))
        if rows < scale.shape[0] and scale.device.type == "cpu" and may_overwrite():
            blocks = zip(*(each.split(rows) for each in (scale, *parameters)), strict=True)
            return torch.cat([self._integrand(block[0], points, block[1:]) for block in blocks])
        values, slopes, biases, constant, _ = (each.unsqueeze(-1) for each in parameters)
        scaled, net = slopes * scale.unsqueeze(1).unsqueeze(-1), constant
        # One unit after the other: all at once do not fit into a processor's cache.
        for value, slope, bias in zip(values.unbind(1), scaled.unbind(1), biases.unbind(1), strict=True):
            net = torch.addcmul(net, value, torch.addcmul(bias, slope, points).sigmoid())
        return (2 * LIMIT * net.sigmoid() - LIMIT).exp()

    def inner(self, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the class."""
        derivatives = self._integrand(z, self.nodes, parameters)
        value = parameters[-1] + z * (derivatives * self.node_weights).sum(-1)
        return value, derivatives[..., 0]  # the first node is z

    def slope(self, z: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """g at one point."""
        return self._integrand(z, self.nodes[:1], parameters)[..., 0]

    def bracket(self, y: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """From a table of the integral by Simpson's rule, between whose rows x is a cubic polynomial of y."""
        densities = self._integrand(torch.full_like(y, self.bound), self.grid, parameters)
        ends, middles = densities[..., ::2], densities[..., 1::2]
        width = 2 * self.bound / self.cells
        areas = (ends[..., :-1] + 4 * middles + ends[..., 1:]) * (width / 6)
        sums = F.pad(areas.cumsum(-1), (1, 0))
        target = (y - parameters[-1]).unsqueeze(-1) + sums[..., self.cells // 2, None]  # sums that start at -bound
        cell = (sums[..., 1:-1] <= target).sum(-1, keepdim=True)
        left, area = sums.gather(-1, cell), areas.gather(-1, cell)
        at_left, at_right = (area / (width * ends.gather(-1, cell + k)) for k in (0, 1))  # dx / dy, both from 0 to 1
        part = (target - left) / area
        s = part.clamp(0, 1)
        rest = 1 - s
        place = s * s * (3 - 2 * s) + rest * s * (at_left * rest - at_right * s)
        outside = (part - s) * torch.where(part > 1, at_right, at_left)  # on the tangents
        near = width * (cell + place.clamp(0, 1) + outside) - self.bound
        edge, beyond = MARGIN * self.bound, 2 * width * outside
        low, high = beyond.clamp_max(0) - edge, beyond.clamp_min(0) + edge
        return low[..., 0], high[..., 0], near[..., 0]


def clenshaw_curtis(intervals: int) -> tuple[Tensor, Tensor]:
    """Nodes, from 1 down to 0, and weights of the rule on [0, 1] with an even number of intervals, float64.

    >>> nodes, weights = clenshaw_curtis(8)
    >>> round(float((weights * nodes**7).sum()), 12)
    0.125
    """
    angles = torch.arange(intervals + 1, dtype=torch.float64) * (math.pi / intervals)
    weights = torch.ones_like(angles)
    for j in range(1, intervals // 2 + 1):
        half = 0.5 if 2 * j == intervals else 1.0
        weights = weights - half * 2 * torch.cos(2 * j * angles) / (4 * j * j - 1)
    ends = torch.ones_like(angles)
    ends[0] = ends[-1] = 0.5
    return (1 + torch.cos(angles)) / 2, weights * ends / intervals
