"""The rational-quadratic spline in eager mode: few passes over memory, and gradients in closed form.

The numbers are those of `rational_quadratic_formula.py`, which serves compilers, function transforms and second
derivatives. Here the K numbers of an element come first, `(K, B, C, ...)`, so that each bin's are contiguous: what is
done bin by bin then stays in the processor's cache, where a softmax or a sum over a strided dimension takes several
times as long. Masks are numbers, for `torch.where` takes the time of twenty multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Formula = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Setting(NamedTuple):
    """The spline's interval, and the bounds of its bins; `offset` is added to the raw derivatives."""

    low: float
    high: float
    min_bin: float
    min_derivative: float
    offset: float


class Place(NamedTuple):
    """Where each element lies, all of x's shape: the place t in its bin, and the bin with its raw derivatives.

    `inside` is 1 within the interval and 0 in the tails.
    """

    t: Tensor
    width: Tensor
    height: Tensor
    start: Tensor
    end: Tensor
    raw_start: Tensor
    raw_end: Tensor
    inside: Tensor


class Found(NamedTuple):
    """What the backward step needs: the place of each element, and what led there.

    `above`, `(K - 1, B, C, ...)`, is 1 where the element is right of an inner knot; `widths` and `heights`,
    `(K, B, C, ...)`, are the softmaxes.
    """

    place: Place
    above: Tensor
    widths: Tensor
    heights: Tensor


class ElementGradients(NamedTuple):
    """The gradients of x, of the knots of each element's bin, and of the raw derivatives there, all of x's shape."""

    x: Tensor | None
    left: Tensor
    right: Tensor
    bottom: Tensor
    top: Tensor
    start: Tensor
    end: Tensor


class Spline(torch.autograd.Function):
    """`(image, log-derivative)`, with the gradients of x and of all that is predicted, in either direction."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        setting: Setting,
        inverse: bool,
        formula: Formula,
    ) -> tuple[Tensor, Tensor]:
        """`formula` computes the same by recorded operations: second derivatives are taken through it."""
        image, log_derivative, found = transform(x, widths, heights, derivatives, setting, inverse)
        ctx.save_for_backward(x, widths, heights, derivatives, *found.place, *found[1:])
        ctx.setting, ctx.inverse, ctx.formula = setting, inverse, formula
        return image, log_derivative

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In closed form, but by autograd where the gradients are to be differentiated themselves."""
        arguments, saved = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        found = Found(Place(*saved[:-3]), *saved[-3:])
        if not torch.is_grad_enabled():
            given = pull_back(found, grads[0], grads[1], ctx.setting, ctx.inverse, ctx.needs_input_grad[0])
            return *given, None, None, None
        # Views: where one argument depends on another, as autoregressive maps' do, that is not counted here, too.
        arguments = [each.view_as(each) for each in arguments]
        wanted = [each for each in arguments if each.requires_grad]
        taken = iter(torch.autograd.grad(ctx.formula(*arguments), wanted, grads, create_graph=True, allow_unused=True))
        return *[next(taken) if each.requires_grad else None for each in arguments], None, None, None


def transform(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, setting: Setting, inverse: bool
) -> tuple[Tensor, Tensor, Found]:
    """The image of x, the log-derivative, and what `pull_back` needs; the K + 1 raw derivatives hold those at the ends.

    Without gradients enabled: intermediates are overwritten.
    """
    at = x.clamp(setting.low, setting.high)
    inside, outside = torch.eq(x, at, out=torch.empty_like(x)), torch.ne(x, at, out=torch.empty_like(x))
    width_parts, lefts = _partition(widths, setting)
    height_parts, bottoms = _partition(heights, setting)
    above = torch.empty_like(width_parts[1:])
    for mask, knot in zip(above, (bottoms if inverse else lefts)[1:-1], strict=True):
        torch.ge(at, knot, out=mask)
    index = _index(above, x)
    left, right = lefts.gather(0, index).squeeze(0), lefts.gather(0, index + 1).squeeze(0)
    bottom, top = bottoms.gather(0, index).squeeze(0), bottoms.gather(0, index + 1).squeeze(0)
    column = index.transpose(0, 1)
    raw_start, raw_end = derivatives.gather(1, column).squeeze(1), derivatives.gather(1, column + 1).squeeze(1)
    start, end = _derivative(raw_start, setting), _derivative(raw_end, setting)
    down = top - at if inverse else None
    width, height = right.sub_(left), top.sub_(bottom)
    slope = height / width
    bend = torch.add(start, end).sub_(slope, alpha=2)
    if down is not None:
        t = _root(at.sub_(bottom), down, slope, start, end)
    else:
        t = at.sub_(left).div_(width).clamp_(0, 1)
    rest = 1 - t
    product, square = t * rest, t * t
    denominator = torch.addcmul(slope, bend, product)
    curve = (end * square).addcmul_(slope, product, value=2).addcmul_(start, rest.square_())
    log_derivative = (slope / denominator).log_().mul_(2).add_(curve.log_()).mul_(inside)
    if inverse:
        image = torch.addcmul(left, width, t)
        log_derivative.neg_()
    else:
        ratio = square.mul_(slope).addcmul_(start, product).div_(denominator)
        image = torch.addcmul(bottom, height, ratio)
    image.mul_(inside).addcmul_(x, outside)  # in the tails exactly x, which is finite where outside is 0
    place = Place(t, width, height, start, end, raw_start, raw_end, inside)
    return image, log_derivative, Found(place, above, width_parts, height_parts)


def _root(up: Tensor, down: Tensor, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """t of the place that lies `up` above its bin's lower corner and `down` below the upper one; overwrites both.

    With r = t / (1 - t) it is down (slope r^2 + start r) = up (slope + end r). Of that equation's root nothing cancels,
    however steep the ends are, where the one in t loses all digits.
    """
    q = (down * start).addcmul_(up, end, value=-1)
    twice = up.mul_(slope).mul_(2)
    cross = down.mul_(slope).mul_(2).mul_(twice)
    larger = torch.addcmul(cross, q, q).sqrt_().add_(q.abs())
    rest = torch.lerp(cross.div_(larger), larger, torch.ge(q, 0, out=torch.empty_like(q)))
    return twice.div_(rest.add_(twice)).clamp_(0, 1)


def _partition(raw: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """The softmax `(K, B, C, ...)`, and the knots `(K + 1, B, C, ...)` from end to end exactly."""
    parts = raw.transpose(0, 1).contiguous().softmax(0)
    bins, span = len(parts), setting.high - setting.low
    knots = parts.new_empty((bins + 1, *parts.shape[1:]))
    knots[0], knots[-1] = setting.low, setting.high
    for k in range(1, bins):
        torch.add(knots[k - 1], parts[k - 1], alpha=span * (1 - bins * setting.min_bin), out=knots[k])
        knots[k].add_(span * setting.min_bin)
    return parts, knots


def _index(above: Tensor, x: Tensor) -> Tensor:
    """How many inner knots lie left of each element, `(1, B, C, ...)`."""
    count = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for mask in above:
        count.add_(mask)
    return count.long().unsqueeze(0)


def _derivative(raw: Tensor, setting: Setting) -> Tensor:
    """softplus(raw + offset) + min_derivative, as exact as by log1p, which is not vectorised."""
    raw = raw + setting.offset
    small = raw.abs().neg_().exp_()
    more = 1 + small
    correction = (small - (more - 1)).div_(more)  # of what rounding took from 1 + small
    return raw.clamp_min_(0).add_(more.log_()).add_(correction).add_(setting.min_derivative)


def pull_back(
    found: Found, grad_image: Tensor, grad_log: Tensor, setting: Setting, inverse: bool, wants_x: bool = True
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The gradients of x, of the raw widths, heights and K + 1 derivatives."""
    grads = pull_back_element(found.place, grad_image, grad_log, setting, inverse, wants_x)
    spread = (setting.high - setting.low) * (1 - len(found.widths) * setting.min_bin)
    grad_widths = _pull_partition(found.widths, found.above, grads.left.mul_(spread), grads.right.mul_(spread))
    grad_heights = _pull_partition(found.heights, found.above, grads.bottom.mul_(spread), grads.top.mul_(spread))
    t = found.place.t
    index = _index(found.above, t).transpose(0, 1)
    grad_derivatives = t.new_zeros((t.shape[0], len(found.widths) + 1, *t.shape[1:]))
    grad_derivatives.scatter_(1, index, grads.start.unsqueeze(1))
    grad_derivatives.scatter_(1, index + 1, grads.end.unsqueeze(1))
    return grads.x, grad_widths, grad_heights, grad_derivatives


def pull_back_element(
    place: Place, grad_image: Tensor, grad_log: Tensor, setting: Setting, inverse: bool, wants_x: bool = True
) -> ElementGradients:
    """The gradients within each element's bin: the one place where the spline is differentiated.

    Those of the inverse are those of the forward map at its result, with dx/dp = -(df/dp) / (df/dx).
    """
    t, width, height, start, end = place[:5]
    grad_inner, grad_log = grad_image * place.inside, grad_log * place.inside
    slope = height / width
    rest = 1 - t
    product, square, rest_square = t * rest, t * t, rest * rest
    tilt = rest - t  # the derivative of t (1 - t)
    bend = torch.add(start, end).sub_(slope, alpha=2)
    denominator = torch.addcmul(slope, bend, product)
    curve = (end * square).addcmul_(slope, product, value=2).addcmul_(start, rest_square)
    derivative = (slope / denominator).square_().mul_(curve)
    over_curve, over_denominator = curve.reciprocal_(), denominator.reciprocal()
    curved = (end * t).addcmul_(slope, tilt).addcmul_(start, rest, value=-1)
    log_by_t = curved.mul_(over_curve).addcmul_(bend.mul_(tilt), over_denominator, value=-1).mul_(2)
    grad_x: Tensor | None = None
    if inverse:
        grad_y = torch.addcdiv(grad_inner, grad_log * log_by_t, width, value=-1).div_(derivative)
        grad_x = torch.addcmul(grad_y, grad_image, 1 - place.inside) if wants_x else None
        grad_inner, grad_log = grad_y.neg(), grad_log.neg_()
    grad_t = derivative.mul_(width).mul_(grad_inner).addcmul_(log_by_t, grad_log)
    per_width = grad_t.div_(width)
    if not inverse and wants_x:
        grad_x = torch.addcmul(per_width, grad_image, 1 - place.inside)
    ratio = (slope * square).addcmul_(start, product).mul_(over_denominator)
    by_image = (grad_inner * height).mul_(over_denominator)  # what all derivatives of the image share
    both = (grad_log * product).mul_(over_denominator).mul_(-2)  # the denominator's part, for either end
    grad_start = torch.addcmul(both, by_image * product, 1 - ratio).addcmul_(grad_log * rest_square, over_curve)
    grad_end = torch.addcmul(both, by_image * product, ratio, value=-1).addcmul_(grad_log * square, over_curve)
    # In the slope: 2 / s + 2 t (1 - t) / curve - 2 (1 - 2 t (1 - t)) / denominator, and the image's.
    opposite = square + rest_square  # 1 - 2 t (1 - t)
    log_by_slope = slope.reciprocal().addcmul_(product, over_curve).addcmul_(opposite, over_denominator, value=-1)
    grad_slope = square.addcmul_(ratio, opposite, value=-1).mul_(by_image).addcmul_(grad_log, log_by_slope, value=2)
    grad_slope.div_(width)
    grad_height = torch.addcmul(grad_slope, grad_inner, ratio)
    grad_width = torch.addcmul(per_width * t, grad_slope, slope).neg_()
    grad_left = per_width.add(grad_width).neg_()
    grad_bottom = torch.sub(grad_inner, grad_height)
    grad_start.mul_((place.raw_start + setting.offset).sigmoid_())
    grad_end.mul_((place.raw_end + setting.offset).sigmoid_())
    return ElementGradients(grad_x, grad_left, grad_width, grad_bottom, grad_height, grad_start, grad_end)


def _pull_partition(parts: Tensor, above: Tensor, grad_low: Tensor, grad_high: Tensor) -> Tensor:
    """The gradient of the raw sizes `(B, K, C, ...)`, from those of the two knots of each element's bin.

    Bin k moves the lower knot where it lies before the element's bin, the upper one where it does not lie behind it.
    """
    last = len(parts) - 1
    moved, mean = [], torch.zeros_like(grad_low)
    for k, part in enumerate(parts):
        grad = grad_high * above[k - 1] if k else grad_high.clone()
        if k < last:
            grad.addcmul_(grad_low, above[k])
        mean.addcmul_(grad, part)
        moved.append(grad)
    raw = parts.new_empty((parts.shape[1], len(parts), *parts.shape[2:]))
    for k, grad in enumerate(moved):
        torch.mul(grad.sub_(mean), parts[k], out=raw[:, k])
    return raw
