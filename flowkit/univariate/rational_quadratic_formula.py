"""The rational-quadratic spline as operations without side effects, which compilers make into few passes over memory.

`formula` is recorded by autograd, for function transforms and second derivatives. `CompiledSpline` is what
`torch.compile` traces: the same formula forward, and gradients in closed form, which take a third of the time of
those derived from the formula. Bins are found by choices between neighbouring knots: a compiler keeps those in
registers, where indices would make it go through memory.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit.univariate.knots import between, within_unit
from flowkit.univariate.rational_quadratic_eager import Place, Setting, pull_back_element


class Partition(NamedTuple):
    """K bins of the interval: the K + 1 knots, from end to end exactly, and what the softmax needs, of x's shape."""

    knots: list[Tensor]
    most: Tensor
    over_sum: Tensor


class Bin(NamedTuple):
    """The bin of each element, of x's shape: its number, corners and size, and the raw derivatives at its ends."""

    number: Tensor
    left: Tensor
    bottom: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    raw_start: Tensor
    raw_end: Tensor


def formula(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, setting: Setting, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The image of x and the log-derivative there; the K + 1 raw derivatives hold those at the ends."""
    at = between(x, setting.low, setting.high)
    bin = _find(at, partition(widths, setting), partition(heights, setting), derivatives, setting, inverse)
    start, end = _derivative(bin.raw_start, setting), _derivative(bin.raw_end, setting)
    over_width = 1 / bin.width
    slope = bin.height * over_width
    bend = start + end - 2 * slope
    if inverse:
        up, down = at - bin.bottom, bin.top - at
        # With r = t / (1 - t): down (slope r^2 + start r) = up (slope + end r), and nothing of its root cancels.
        q, cross = down * start - up * end, 4 * slope * slope * up * down
        larger = (cross + q * q).sqrt() + torch.where(q >= 0, q, -q)  # the derivative of q.abs() at 0 would be 0
        rest = torch.where(q >= 0, larger, cross / larger)
        t = within_unit(2 * slope * up / (2 * slope * up + rest))
    else:
        t = within_unit((at - bin.left) * over_width)
    rest = t * (1 - t)
    over_denominator = 1 / (slope + bend * rest)
    curve = end * t * t + 2 * slope * rest + start * (1 - t) * (1 - t)
    ratio = slope * over_denominator
    log_derivative = (ratio * (ratio * curve)).log()  # in this order it does not underflow
    if inverse:
        image, log_derivative = bin.left + bin.width * t, -log_derivative
    else:
        image = bin.bottom + bin.height * (slope * t * t + start * rest) * over_denominator
    outside = (x < setting.low) | (x > setting.high)  # not NaN, whose log-derivative is NaN, too
    return torch.where(outside, x, image), torch.where(outside, 0.0, log_derivative)


def partition(raw: Tensor, setting: Setting) -> Partition:
    """The bins whose sizes are the softmax of `(B, K, C, ...)`, none below the least."""
    each = raw.unbind(1)
    span = setting.high - setting.low
    most = functools.reduce(torch.maximum, each).detach()
    parts = [(part - most).exp() for part in each]
    over_sum = 1 / functools.reduce(torch.add, parts)
    scale = span * (1 - len(each) * setting.min_bin) * over_sum
    knots = [torch.full_like(most, setting.low)]
    for part in parts[:-1]:
        knots.append(knots[-1] + (part * scale + span * setting.min_bin))
    return Partition([*knots, torch.full_like(most, setting.high)], most, over_sum)


def _find(
    at: Tensor, widths: Partition, heights: Partition, derivatives: Tensor, setting: Setting, by_height: bool
) -> Bin:
    lefts, bottoms, raw = widths.knots, heights.knots, derivatives.unbind(1)
    number, left, right, bottom, top = torch.zeros_like(at), lefts[0], lefts[1], bottoms[0], bottoms[1]
    start, end = raw[0], raw[1]
    for k in range(1, len(lefts) - 1):
        beyond = at >= (bottoms if by_height else lefts)[k]
        number = torch.where(beyond, float(k), number)
        left, right = torch.where(beyond, lefts[k], left), torch.where(beyond, lefts[k + 1], right)
        bottom, top = torch.where(beyond, bottoms[k], bottom), torch.where(beyond, bottoms[k + 1], top)
        start, end = torch.where(beyond, raw[k], start), torch.where(beyond, raw[k + 1], end)
    return Bin(number, left, bottom, top, right - left, top - bottom, start, end)


def _derivative(raw: Tensor, setting: Setting) -> Tensor:
    """softplus(raw + offset) + min_derivative, as exact as by log1p, which would take half of the spline's time.

    Where log(1 + small) loses digits, the difference between 1 + small and its rounding brings them back.
    """
    raw = raw + setting.offset
    size = torch.where(raw < 0, -raw, raw)  # whose gradient at 0 is one of both sides', so softplus has its 0.5
    small = (-size).exp()
    more = 1 + small
    return (raw + size) / 2 + more.log() + (small - (more - 1)) / more + setting.min_derivative


class CompiledSpline(torch.autograd.Function):
    """`(image, log-derivative)` for a compiler, with the gradients of x and of all that is predicted, either way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, setting: Setting, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """What is saved is there anyway, so the backward step finds each bin anew, rather than read it from memory."""
        image, log_derivative = formula(x, widths, heights, derivatives, setting, inverse)
        ctx.save_for_backward(x, image, widths, heights, derivatives)
        ctx.setting, ctx.inverse = setting, inverse
        return image, log_derivative

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Those of the inverse are found at its result."""
        x, image, widths, heights, derivatives = ctx.saved_tensors
        point = as_far(image, x, ctx.setting) if ctx.inverse else x
        given = pull_back(point, widths, heights, derivatives, grads[0], grads[1], ctx.setting, ctx.inverse)
        return *given, None, None


def as_far(image: Tensor, of: Tensor, setting: Setting) -> Tensor:
    """The image of what is within the interval, within it: rounding may take it beyond, where it would be a tail's."""
    within = (of >= setting.low) & (of <= setting.high)
    return torch.where(within, image.clamp(setting.low, setting.high), image)


def pull_back(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    grad_image: Tensor,
    grad_log: Tensor,
    setting: Setting,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the map's argument, of the raw widths, heights and K + 1 derivatives.

    x is the forward map's argument, or the inverse's result, `as_far` as what it is the inverse of.
    """
    at = x.clamp(setting.low, setting.high)
    inside = (x == at).to(x.dtype)
    columns, rows = partition(widths, setting), partition(heights, setting)
    bin = _find(at, columns, rows, derivatives, setting, by_height=False)
    start, end = _derivative(bin.raw_start, setting), _derivative(bin.raw_end, setting)
    t = ((at - bin.left) / bin.width).clamp(0, 1)
    place = Place(t, bin.width, bin.height, start, end, bin.raw_start, bin.raw_end, inside)
    grads = pull_back_element(place, grad_image, grad_log, setting, inverse)
    assert grads.x is not None
    numbers = torch.arange(derivatives.shape[1], device=x.device, dtype=x.dtype)
    numbers = numbers.view(-1, *(1,) * (x.dim() - 1))
    index, grad_start, grad_end = bin.number.unsqueeze(1), grads.start.unsqueeze(1), grads.end.unsqueeze(1)
    grad_derivatives = torch.where(numbers == index, grad_start, torch.where(numbers == index + 1, grad_end, 0.0))
    least = (setting.high - setting.low) * setting.min_bin
    before_left, before_bottom = (edge - setting.low - bin.number * least for edge in (bin.left, bin.bottom))
    return (
        grads.x,
        _pull_partition(widths, columns, index, grads.left, grads.right, before_left, bin.width - least, setting),
        _pull_partition(heights, rows, index, grads.bottom, grads.top, before_bottom, bin.height - least, setting),
        grad_derivatives,
    )


def _pull_partition(
    raw: Tensor,
    bins: Partition,
    index: Tensor,
    grad_low: Tensor,
    grad_high: Tensor,
    before: Tensor,
    own: Tensor,
    setting: Setting,
) -> Tensor:
    """The gradient of the raw sizes `(B, K, C, ...)`, from those of the two knots of each element's bin.

    A bin before the element's moves both its knots, its own bin the upper one; `before` and `own` are the sizes of
    those, less the least, by which the softmax's mean is known without a sum.
    """
    count = raw.shape[1]
    spread = (setting.high - setting.low) * (1 - count * setting.min_bin)
    grad_both = grad_low + grad_high
    mean = grad_both * before + grad_high * own  # of the gradient over the softmax, times the spread
    below, at_bin, beyond = grad_both * spread - mean, grad_high * spread - mean, -mean
    numbers = torch.arange(count, device=raw.device, dtype=raw.dtype).view(-1, *(1,) * (raw.dim() - 2))
    moved = torch.where(
        numbers < index,
        below.unsqueeze(1),
        torch.where(numbers == index, at_bin.unsqueeze(1), beyond.unsqueeze(1)),
    )
    return (raw - bins.most.unsqueeze(1)).exp() * bins.over_sum.unsqueeze(1) * moved
