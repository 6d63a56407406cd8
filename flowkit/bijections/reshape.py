"""Maps that give an event another shape: flatten, reshape, squeeze (in two orders), transpose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.arguments import is_int
from flowkit.bijection import Bijection, zero_log_det
from flowkit.errors import ConfigError, ShapeError
from flowkit.registry import Example, register
from flowkit.shapes import as_shape, numel


def _reshape_examples() -> list[Example]:
    return [
        Example((), to=(1,)),
        Example((1,), to=()),
        Example((6,), to=(3, 2)),
        Example((3, 4), to=(2, 6)),
        Example((3, 2, 2), to=(12,)),
        Example((1, 2, 3, 2), to=(3, 4)),
    ]


@register("flowkit.reshape", examples=_reshape_examples)
class Reshape(Bijection):
    """The same values in another shape, in the same (row-major) order.

    forward: y = x as `to`, log-det 0. inverse: x = y as `shape`, log-det 0. Exact in every dtype.

    Shapes: x `(B, *shape)`, y `(B, *to)`.

    Args:
        shape: event shape.
        to: event shape of the output, of as many elements.

    Raises:
        ShapeError: another number of elements.

    >>> import torch
    >>> Reshape((6,), to=(3, 2))(torch.zeros(5, 6))[0].shape
    torch.Size([5, 3, 2])
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int], to: int | Sequence[int]):
        super().__init__(shape)
        self.out_shapes = (as_shape(to),)
        (before,), (after,) = self.in_shapes, self.out_shapes
        if numel(before) != numel(after):
            raise ShapeError(
                f"{type(self).__name__} needs as many elements after as before, got {before} ({numel(before)}) "
                f"to {after} ({numel(after)})"
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x in its new shape, 0)`."""
        return x.reshape(x.shape[0], *self.out_shapes[0]), zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y in the old shape, 0)`."""
        return y.reshape(y.shape[0], *self.in_shapes[0]), zero_log_det(y)

    def extra_repr(self) -> str:
        """Both shapes."""
        return f"{self.in_shapes[0]} -> {self.out_shapes[0]}"


def _flatten_examples() -> list[Example]:
    return [Example(()), Example((3,)), Example((3, 2)), Example((1, 2, 3)), Example((2, 1, 2, 2))]


@register("flowkit.flatten", examples=_flatten_examples)
class Flatten(Reshape):
    """An event as one vector, in row-major order: channels outermost.

    forward: y = x as `(D,)`, log-det 0. inverse: x = y as `shape`, log-det 0. Exact in every dtype.

    Shapes: x `(B, *shape)`, y `(B, D)`; shape () becomes `(1,)`.

    Args:
        shape: event shape.

    >>> import torch
    >>> Flatten((3, 2, 2))(torch.zeros(5, 3, 2, 2))[0].shape
    torch.Size([5, 12])
    """

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape, to=numel(as_shape(shape)))


def _squeeze_examples() -> list[Example]:
    return [
        Example((1, 4)),
        Example((3, 6), factor=3),
        Example((1, 2, 4)),
        Example((3, 2, 2)),
        Example((1, 3, 3), factor=3),
        Example((1, 2, 2, 4)),
    ]


@register("flowkit.squeeze", examples=_squeeze_examples)
class Squeeze(Bijection):
    """Space to depth: each block of f x f positions becomes f^2 channels.

    forward: y[c f^2 + i f + j, h, w] = x[c, h f + i, w f + j], log-det 0. inverse: the same read backwards, log-det 0.
    Exact in every dtype.

    The channel order is that of `torch.nn.functional.pixel_unshuffle`: the f^2 (f, f^3) positions of a block in
    row-major order, within each channel of x. With one or three spatial dimensions likewise.

    Shapes: x `(B, C, H, W)`, y `(B, C f^2, H/f, W/f)`; or `(B, C, W)`, or `(B, C, D, H, W)`.

    Args:
        shape: event shape with one, two or three spatial dimensions, each a multiple of the factor.
        factor: f, at least 2.

    Raises:
        ShapeError: no spatial dimensions or more than three; a size that is no multiple of the factor.
        ConfigError: a factor that is not an int of at least 2.

    Source: Dinh et al., Density estimation using Real NVP, 2017, section 3.6; the channel order is torch's.

    >>> import torch
    >>> Squeeze((3, 8, 8))(torch.zeros(5, 3, 8, 8))[0].shape
    torch.Size([5, 12, 4, 4])
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int], factor: int = 2):
        super().__init__(shape)
        shape, name = self.in_shapes[0], type(self).__name__
        if not is_int(factor) or factor < 2:
            raise ConfigError(f"{name}: factor must be an int of at least 2, got {factor!r}")
        if len(shape) not in (2, 3, 4):
            raise ShapeError(f"{name} needs a map with one, two or three spatial dimensions, got shape {shape}")
        if any(size % factor for size in shape[1:]):
            raise ShapeError(f"{name} needs spatial sizes that are multiples of {factor}, got shape {shape}")
        self.factor = factor
        spatial = len(shape) - 1
        coarse = tuple(size // factor for size in shape[1:])
        self.out_shapes = ((shape[0] * factor**spatial, *coarse),)
        # Dimensions after the batch: C, then (h, i), (w, j), ...; and wanted: C, i, j, ..., h, w, ...
        self._fine = (shape[0], *(n for size in coarse for n in (size, factor)))
        self._coarse = (shape[0], *[factor] * spatial, *coarse)
        self._order = (0, 1, *range(3, 2 * spatial + 2, 2), *range(2, 2 * spatial + 2, 2))
        self._back = tuple(self._order.index(i) for i in range(len(self._order)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(space to depth, 0)`."""
        batch = x.shape[0]
        y = x.reshape(batch, *self._fine).permute(self._order).reshape(batch, *self.out_shapes[0])
        return y, zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(depth to space, 0)`."""
        batch = y.shape[0]
        x = y.reshape(batch, *self._coarse).permute(self._back).reshape(batch, *self.in_shapes[0])
        return x, zero_log_det(y)

    def extra_repr(self) -> str:
        """Both shapes."""
        return f"{self.in_shapes[0]} -> {self.out_shapes[0]}"


def _checkerboard_examples() -> list[Example]:
    return [Example((1, 4)), Example((3, 2, 2)), Example((1, 2, 4)), Example((1, 2, 2, 4))]


@register("flowkit.checkerboard_squeeze", examples=_checkerboard_examples)
class CheckerboardSqueeze(Squeeze):
    """Space to depth in Real NVP's order: the two colours of a checkerboard become the two halves of the channels.

    forward: y[p C + c, h, w] = x[c, 2 h + i_p, 2 w + j_p], log-det 0, with the positions (i_p, j_p) of a block in the
    order (0, 0), (1, 1), (0, 1), (1, 0). inverse: the same read backwards, log-det 0. Exact in every dtype.

    The first half holds the squares whose coordinates sum to an even number, the second the others, so a coupling of
    halves after it transforms what one with `split="checkerboard"` transforms before it. `fk.Squeeze` keeps the four
    positions of a channel together, in row-major order. With one or three spatial dimensions likewise: the positions
    whose coordinates sum to an even number in row-major order, then the others.

    Shapes: x `(B, C, H, W)`, y `(B, 4 C, H/2, W/2)`; or `(B, C, W)`, or `(B, C, D, H, W)`.

    Args:
        shape: event shape with one, two or three spatial dimensions, each of an even size.

    Raises:
        ShapeError: no spatial dimensions or more than three; an odd size.

    Source: Dinh et al., Density estimation using Real NVP, 2017, section 3.6, figure 3, and the order of its code.

    >>> import torch
    >>> CheckerboardSqueeze((1, 2, 2))(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))[0].flatten().tolist()
    [1.0, 4.0, 2.0, 3.0]
    """

    def __init__(self, shape: int | Sequence[int]):
        super().__init__(shape, factor=2)
        channels, *sizes = self.in_shapes[0]
        positions = list(itertools.product((0, 1), repeat=len(sizes)))
        # Squeeze has c 2^n + (the position's place in row-major order), here it is (its place in this order) C + c.
        wanted = sorted(range(len(positions)), key=lambda place: (sum(positions[place]) % 2, place))
        order = (torch.tensor(wanted)[:, None] + len(positions) * torch.arange(channels)).flatten()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse_order", order.argsort(), persistent=False)

    order: Tensor
    inverse_order: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(space to depth, 0)`."""
        y, log_det = super().forward(x)
        return y.index_select(1, self.order), log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(depth to space, 0)`."""
        return super().inverse(y.index_select(1, self.inverse_order))


def _transpose_examples() -> list[Example]:
    return [
        Example((3,), order=(0,)),
        Example((3, 4), order=(1, 0)),
        Example((1, 2, 3), order=(2, 0, 1)),
        Example((3, 2, 2), order=(0, 2, 1)),
        Example((2, 1, 2, 3), order=[3, 1, 0, 2]),
    ]


@register("flowkit.transpose", examples=_transpose_examples)
class Transpose(Bijection):
    """The event dimensions in another order: dimension i of y is dimension order[i] of x, as in `numpy.transpose`.

    forward: y = x transposed, log-det 0. inverse: x = y transposed back, log-det 0. Exact in every dtype.

    Shapes: x `(B, *shape)`, y `(B, *(shape[i] for i in order))`.

    Args:
        shape: event shape.
        order: a permutation of `range(len(shape))`; the batch is not counted.

    Raises:
        ConfigError: an order that is no permutation of the event dimensions.

    >>> import torch
    >>> Transpose((3, 4, 5), order=(2, 0, 1))(torch.zeros(2, 3, 4, 5))[0].shape
    torch.Size([2, 5, 3, 4])
    """

    constant_log_det = True
    volume_preserving = True
    views = True

    def __init__(self, shape: int | Sequence[int], order: Sequence[int]):
        super().__init__(shape)
        shape, order = self.in_shapes[0], tuple(order)
        if sorted(order) != list(range(len(shape))):
            raise ConfigError(f"Transpose: order must permute the event dimensions 0 to {len(shape) - 1}, got {order}")
        self.out_shapes = (tuple(shape[i] for i in order),)
        self._order = (0, *(i + 1 for i in order))
        self._back = tuple(self._order.index(i) for i in range(len(self._order)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(x transposed, 0)`."""
        return x.permute(self._order), zero_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`(y transposed back, 0)`."""
        return y.permute(self._back), zero_log_det(y)

    def extra_repr(self) -> str:
        """Both shapes."""
        return f"{self.in_shapes[0]} -> {self.out_shapes[0]}"
