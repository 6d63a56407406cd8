"""Unconstrained monotonic networks: the integral of a positive network, by Clenshaw and Curtis's quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flowkit.constants import WithConstants
from flowkit.registry import register
from flowkit.shapes import Shape
from flowkit.univariate.monotone import LinearTails, along, check_count, soft_clamp

LIMIT = 3.0  # of the log-derivative
SLOPE_LIMIT = 0.7  # of a hidden unit's log-slope: steeper units would need more nodes
NODES_PER_UNIT = 8


@register("flowkit.unconstrained_monotonic")
class UnconstrainedMonotonic(WithConstants, LinearTails):
    """UMNN's map: the integral of a positive network on [-bound, bound], continued linearly beyond.

    With a network of one hidden layer, n(t) = c + sum_k v_k tanh(a_k (H + 1) t / (2 bound) + b_k), and g = exp(3 tanh(n
    / 3)), all of whose weights are predicted:

    forward: y = s + integral from 0 to x of g; beyond the bound the tangents of the ends. its log-derivative: log g at
    x, or at the nearer end, so between -3 and 3.
    inverse: by bisection and Newton's method on [-bound, bound], or between the end and twice as far as its tangent
    says; gradients are those of the implicit function. its log-derivative: minus the above at x.

    The integral is Clenshaw and Curtis's rule of 8 H + 9 nodes on [0, x]. The paper has one network for all elements,
    fed with a predicted embedding; here each element's own small network is predicted, so that zero parameters are the
    identity and nothing is shared. Its units are spread over the interval, with bounded slopes a (within a factor of
    2 of 1), shifts and values v (within 1), for which the rule converges fast: whatever is predicted, in float64 the
    value is right to `tolerance`, and so is the log-derivative against the derivative of the value that is computed.
    Forward takes H (8 H + 9) tanh an element, the inverse 25 times that.

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
    centres: Tensor
    nodes: Tensor
    node_weights: Tensor

    def __init__(self, shape: Shape, hidden: int = 8, bound: float = 5.0):
        check_count("UnconstrainedMonotonic", "hidden", hidden, 1)
        self.parameter_shapes = ((hidden,), (hidden,), (hidden,), (), ())
        super().__init__(shape, bound)
        self.hidden = hidden
        self.hold_constants()

    def constants(self) -> dict[str, Tensor]:
        """The units' centres, and the rule of quadrature."""
        nodes, weights = clenshaw_curtis(NODES_PER_UNIT * (self.hidden + 1))
        centres = torch.arange(self.hidden, dtype=torch.float64) - (self.hidden - 1) / 2  # a distance of 1 apart
        found = {"centres": centres, "nodes": nodes, "node_weights": weights}
        return {name: along(values, self.shape) for name, values in found.items()}

    def constrain(self, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Values, slopes in x's units and biases `(B, H, 1, C, ...)`, and the two constants."""
        values, slopes, shifts, constant, shift = parameters
        slopes = soft_clamp(slopes, SLOPE_LIMIT).exp()
        biases = -slopes * (self.centres + soft_clamp(shifts, 1.0))
        in_units = slopes * ((self.hidden + 1) / (2 * self.bound))
        hidden = [each.unsqueeze(2) for each in (soft_clamp(values, 1.0), in_units, biases)]
        return *hidden, constant, shift

    def inner(self, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the class."""
        values, slopes, biases, constant, shift = parameters
        at = (z.unsqueeze(1) * self.nodes).unsqueeze(1)  # (B, 1, nodes, C, ...)
        net = constant.unsqueeze(1) + (values * torch.tanh(slopes * at + biases)).sum(1)
        derivatives = (LIMIT * torch.tanh(net / LIMIT)).exp()
        return shift + z * (self.node_weights * derivatives).sum(1), derivatives[:, 0]  # the first node is z


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
