"""Wavelet down- and upsampling: half the size, four times the channels, orthonormal, so the volume is kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import flowkit as fk

if TYPE_CHECKING:
    import numpy as np

GROUPS = ("subband", "channel")

# The filters of PyWavelets are orthonormal to 2e-11, and are polished to 1e-16 here; what is farther off (dmey: 2e-3)
# is orthogonal in name only, and its transpose is not its inverse.
ORTHOGONALITY = 1e-8
POLISHING_STEPS = 3  # Newton's method: each step squares the error


class _Resampling(fk.Bijection):
    """What the four ops share: the check of the shape, the order of the channels, the factor and its log-det."""

    constant_log_det = True

    def __init__(self, shape: tuple[int, ...], rebalance: float, group: str, down: bool):
        super().__init__(shape)
        (shape,) = self.in_shapes
        name = type(self).__name__
        if len(shape) != 3:
            raise fk.ShapeError(f"{name} needs a map (C, H, W), got {shape}")
        c, h, w = shape
        if down and (h % 2 or w % 2):
            raise fk.ShapeError(f"{name} needs an even height and width, got {shape}")
        if not down and c % 4:
            raise fk.ShapeError(f"{name} needs four subbands, so channels in multiples of 4, got {shape}")
        if not 0 < rebalance < math.inf:
            raise fk.ConfigError(f"{name}: rebalance must be positive and finite, got {rebalance!r}")
        if group not in GROUPS:
            raise fk.ConfigError(f"{name}: group must be 'subband' or 'channel', got {group!r}")
        self.rebalance, self.group = float(rebalance), group
        self.out_shapes = ((4 * c, h // 2, w // 2) if down else (c // 4, 2 * h, 2 * w),)
        self._log_volume = c * h * w * math.log(rebalance)

    def _stack(self, bands: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(bands, 1) if self.group == "subband" else torch.stack(bands, 2).flatten(1, 2)

    def _unstack(self, y: Tensor) -> tuple[Tensor, ...]:
        return y.chunk(4, 1) if self.group == "subband" else y.unflatten(1, (-1, 4)).unbind(2)

    def _analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _synthesise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _log_det(self, x: Tensor, sign: int) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return x.new_full((x.shape[0],), sign * self._log_volume, dtype=wide)

    def extra_repr(self) -> str:
        """Shapes, and what differs from the defaults."""
        parts = [f"{self.in_shapes[0]} -> {self.out_shapes[0]}"]
        parts += [f"rebalance={self.rebalance:g}"] if self.rebalance != 1 else []
        parts += [f"group={self.group!r}"] if self.group != "subband" else []
        return ", ".join(parts)


class _Haar(_Resampling):
    """Both directions of the Haar transform: additions, and one factor at the end."""

    def _analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        top, bottom = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unbind(3)
        (a, b), (c, d) = top.unbind(-1), bottom.unbind(-1)
        factor = 0.5 * self.rebalance
        y = self._stack(tuple(band * factor for band in _butterfly(a, b, c, d)))
        return y, self._log_det(x, 1)

    def _synthesise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        # The 4 x 4 matrix of signs is symmetric: twice applied it is 4 times the identity.
        factor = 0.5 / self.rebalance
        a, b, c, d = (corner * factor for corner in _butterfly(*self._unstack(y)))
        top, bottom = _interleave(a, b, 3), _interleave(c, d, 3)
        return _interleave(top, bottom, 2), self._log_det(y, -1)


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, horizontal, vertical and diagonal difference of the corners a b / c d."""
    top, bottom, across_top, across_bottom = a + b, c + d, a - b, c - d
    return top + bottom, across_top + across_bottom, top - bottom, across_top - across_bottom


def _interleave(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    return torch.stack((even, odd), dim + 1).flatten(dim, dim + 1)


@fk.register(
    "cinn.haar_downsample",
    examples=lambda: [
        fk.Example((1, 2, 2)),
        fk.Example((3, 4, 6), rebalance=0.5, group="channel"),
    ],
)
class HaarDownsample(_Haar):
    """Haar wavelet downsampling, (C, H, W) to (4C, H/2, W/2): the paper's invertible pooling.

    Of each 2 x 2 block with the corners a b / c d, with rebalance r:

    | subband | value |
    | --- | --- |
    | average | r (a + b + c + d) / 2 |
    | horizontal difference | r (a - b + c - d) / 2 |
    | vertical difference | r (a + b - c - d) / 2 |
    | diagonal difference | r (a - b - c + d) / 2 |

    forward: y = r W x, with W orthonormal; log-det C H W log r. inverse: x = W^T y / r; log-det -C H W log r.
    At r = 1 the volume is kept.

    Reshapes, additions and one multiplication in the data's own dtype: autocast and TF32 change nothing. Values grow
    by at most 2 r.

    The same values as FrEIA's `HaarDownsampling(rebalance=r)`: `group="channel"` in its default order, and
    `group="subband"` with `order_by_wavelet=True`. FrEIA and PyWavelets name the differences by the edges that they
    show, not by their direction: what is horizontal here is their v or cV, what is vertical their h or cH.

    Args:
        shape: (C, H, W), H and W even.
        rebalance: r, the factor on everything; the authors' small network has 0.5, which keeps smooth images'
            averages in the range of the pixels.
        group: `"subband"` puts the averages of all channels first, then all horizontal, all vertical and all diagonal
            differences; `"channel"` the four of the first channel, then of the second.

    Raises:
        fk.ShapeError: not a map, or an odd height or width.
        fk.ConfigError: a rebalance that is not positive, or an unknown group.

    Source: A. Haar, Zur Theorie der orthogonalen Funktionensysteme, 1910; the paper, section 3.1.

    Example:
        >>> haar = HaarDownsample((1, 2, 2))
        >>> y, log_det = haar(torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]]))
        >>> y.flatten().tolist(), log_det.tolist()
        ([5.0, 1.0, 2.0, 0.0], [0.0])
        >>> haar.inverse(y)[0].flatten().tolist()
        [4.0, 3.0, 2.0, 1.0]
    """

    def __init__(self, shape: tuple[int, ...], rebalance: float = 1.0, group: str = "subband"):
        super().__init__(shape, rebalance, group, down=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `(B, C, H, W)` to `(B, 4C, H/2, W/2)`."""
        return self._analyse(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Back to x."""
        return self._synthesise(y)


@fk.register(
    "cinn.haar_upsample",
    examples=lambda: [
        fk.Example((4, 1, 1)),
        fk.Example((12, 2, 3), rebalance=0.5, group="channel"),
    ],
)
class HaarUpsample(_Haar):
    """The inverse of `HaarDownsample` as an op of its own, (4C, H, W) to (C, 2H, 2W).

    forward: y = W^T x / r; log-det -4C H W log r. inverse: x = r W y; log-det 4C H W log r.

    Args:
        shape: (4C, H, W), the subbands in the order that `group` says.
        rebalance: r of the `HaarDownsample` that is undone, so this divides by it (FrEIA does the same).
        group: `"subband"` or `"channel"`; see `HaarDownsample`.

    Raises:
        fk.ShapeError: not a map, or channels that are not a multiple of 4.
        fk.ConfigError: a rebalance that is not positive, or an unknown group.

    Example:
        >>> HaarUpsample((4, 1, 1))(torch.tensor([5.0, 1.0, 2.0, 0.0]).reshape(1, 4, 1, 1))[0].flatten().tolist()
        [4.0, 3.0, 2.0, 1.0]
    """

    def __init__(self, shape: tuple[int, ...], rebalance: float = 1.0, group: str = "subband"):
        super().__init__(shape, rebalance, group, down=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `(B, 4C, H, W)` to `(B, C, 2H, 2W)`."""
        return self._synthesise(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Back to x."""
        return self._analyse(y)


class _Wavelet(_Resampling):
    """Both directions of a periodic orthogonal wavelet transform, as shifted and weighted sums."""

    def __init__(self, shape: tuple[int, ...], wavelet: str, rebalance: float, group: str, down: bool):
        super().__init__(shape, rebalance, group, down)
        self.wavelet = wavelet
        # Python's floats keep all 53 bits under .half() and .to(), and need no device; each op rounds them itself.
        self._taps = _taps(wavelet, type(self).__name__)

    def _analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._halve(x, 3)
        average, vertical = self._halve(low, 2)
        horizontal, diagonal = self._halve(high, 2)
        y = self._stack((average, horizontal, vertical, diagonal))
        return (y if self.rebalance == 1 else y * self.rebalance), self._log_det(x, 1)

    def _synthesise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        average, horizontal, vertical, diagonal = self._unstack(y)
        low, high = self._double(average, vertical, 2), self._double(horizontal, diagonal, 2)
        x = self._double(low, high, 3)
        return (x if self.rebalance == 1 else x / self.rebalance), self._log_det(y, -1)

    def _halve(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """low[k] = sum_j l_j x[2k + L/2 - j] and likewise high, indices modulo the size."""
        phases = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
        low = high = torch.zeros_like(phases[0])
        for parity, shift, lo, hi in self._taps:
            moved = phases[parity].roll(-shift, dim)
            low, high = torch.add(low, moved, alpha=lo), torch.add(high, moved, alpha=hi)
        return low, high

    def _double(self, low: Tensor, high: Tensor, dim: int) -> Tensor:
        """The transpose of `_halve`, which is its inverse."""
        phases = [torch.zeros_like(low), torch.zeros_like(low)]
        for parity, shift, lo, hi in self._taps:
            phases[parity] = phases[parity] + torch.add(low * lo, high, alpha=hi).roll(shift, dim)
        return _interleave(phases[0], phases[1], dim)

    def extra_repr(self) -> str:
        """The wavelet, then as the others."""
        return f"{self.wavelet!r}, {super().extra_repr()}"


@fk.register(
    "cinn.wavelet_downsample",
    examples=lambda: [
        fk.Example((2, 4, 6)),
        fk.Example((1, 2, 4), wavelet="sym4", rebalance=0.5, group="channel"),  # the filter is longer than the image
    ],
)
class WaveletDownsample(_Wavelet):
    """Downsampling with an orthogonal wavelet, (C, H, W) to (4C, H/2, W/2), periodic at the borders.

    With the low-pass l and the high-pass h of L taps, along each axis low[k] = sum_j l_j x[2k + L/2 - j mod N] and
    high[k] likewise with h; then, as in `HaarDownsample`, averages (low, low), horizontal (high along the width),
    vertical (high along the height) and diagonal differences, times rebalance r.

    forward: y = r W x, with W orthonormal; log-det C H W log r. inverse: x = W^T y / r; log-det -C H W log r.

    The coefficients are those of `pywt.dwt2(x, wavelet, mode="periodization")`, (cA, (cH, cV, cD)), without any shift,
    in the order cA, cV, cH, cD: PyWavelets names the differences by the edges that they show. Filters longer than the
    image wrap around as often as needed, and W is orthonormal all the same.

    The sums are elementwise, in the data's own dtype: autocast and TF32 change nothing. PyWavelets' coefficients, which
    are orthonormal to 2e-11, are polished to 1e-16 (and move by at most 1e-11), so that the inverse is one.

    Args:
        shape: (C, H, W), H and W even.
        wavelet: the name of an orthogonal wavelet of PyWavelets (`pywt.wavelist(kind="discrete")`): "haar", "db2", ...,
            "sym2", ..., "coif1", ...
        rebalance: r, the factor on everything.
        group: `"subband"` or `"channel"`; see `HaarDownsample`.

    Raises:
        fk.ShapeError: not a map, or an odd height or width.
        fk.ConfigError: no such wavelet, or one that is not orthogonal ("dmey" is only nearly so); a rebalance that is
            not positive, or an unknown group.
        fk.MissingDependencyError: PyWavelets is not installed.

    Source: S. Mallat, A Wavelet Tour of Signal Processing, 3rd edition, section 7.5 (periodic bases) and 7.7 (images).

    Example:
        >>> wavelet = WaveletDownsample((1, 8, 8), wavelet="db2")
        >>> x = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> y, log_det = wavelet(x)
        >>> y.shape, bool(torch.allclose(y.square().sum(), x.square().sum()))
        (torch.Size([1, 4, 4, 4]), True)
    """

    def __init__(self, shape: tuple[int, ...], wavelet: str = "db2", rebalance: float = 1.0, group: str = "subband"):
        super().__init__(shape, wavelet, rebalance, group, down=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `(B, C, H, W)` to `(B, 4C, H/2, W/2)`."""
        return self._analyse(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Back to x."""
        return self._synthesise(y)


@fk.register(
    "cinn.wavelet_upsample",
    examples=lambda: [
        fk.Example((8, 2, 3)),
        fk.Example((4, 1, 2), wavelet="sym4", rebalance=0.5, group="channel"),
    ],
)
class WaveletUpsample(_Wavelet):
    """The inverse of `WaveletDownsample` as an op of its own, (4C, H, W) to (C, 2H, 2W).

    forward: y = W^T x / r; log-det -4C H W log r. inverse: x = r W y; log-det 4C H W log r.

    Args:
        shape: (4C, H, W), the subbands in the order that `group` says.
        wavelet: an orthogonal wavelet of PyWavelets; see `WaveletDownsample`.
        rebalance: r of the `WaveletDownsample` that is undone, so this divides by it.
        group: `"subband"` or `"channel"`; see `HaarDownsample`.

    Raises:
        fk.ShapeError: not a map, or channels that are not a multiple of 4.
        fk.ConfigError: no such wavelet, or one that is not orthogonal; a bad rebalance or group.
        fk.MissingDependencyError: PyWavelets is not installed.
    """

    def __init__(self, shape: tuple[int, ...], wavelet: str = "db2", rebalance: float = 1.0, group: str = "subband"):
        super().__init__(shape, wavelet, rebalance, group, down=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `(B, 4C, H, W)` to `(B, C, 2H, 2W)`."""
        return self._synthesise(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Back to x."""
        return self._analyse(y)


def _taps(wavelet: str, name: str) -> tuple[tuple[int, int, float, float], ...]:
    """For each tap j: which phase it reads (0 even, 1 odd), how many pairs on, and the low- and high-pass weight."""
    low, high = _filters(wavelet, name)
    return tuple(
        ((len(low) // 2 - j) % 2, (len(low) // 2 - j) // 2, float(low[j]), float(high[j])) for j in range(len(low))
    )


def _filters(wavelet: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Low- and high-pass filter of an orthogonal wavelet, orthonormal to float64's rounding."""
    try:
        import pywt
    except ImportError as error:
        raise fk.MissingDependencyError(f"{name} needs PyWavelets: python -m pip install PyWavelets") from error
    if not isinstance(wavelet, str) or wavelet not in pywt.wavelist(kind="discrete"):
        raise fk.ConfigError(f"{name} needs the name of a discrete wavelet of PyWavelets, like 'db2', got {wavelet!r}")
    bank = pywt.Wavelet(wavelet)
    if not bank.orthogonal:
        raise fk.ConfigError(f"{name} needs an orthogonal wavelet, such as 'db2' or 'sym4', and {wavelet!r} is not")
    low = _as_array(bank.dec_lo)
    missed_by = abs(_correlations(low)).max()
    if missed_by > ORTHOGONALITY:
        raise fk.ConfigError(
            f"{name} needs an orthogonal wavelet, and the filter of {wavelet!r} is off by {missed_by:.1g}"
        )
    for _ in range(POLISHING_STEPS):
        low = low - _newton_step(low)
    signs = _as_array([-1.0, 1.0] * (len(low) // 2))
    return low, signs * low[::-1]


def _as_array(values: list[float]) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=np.float64)


def _correlations(low: np.ndarray) -> np.ndarray:
    """By how much the filter's correlations with itself, shifted by 0, 2, 4, ..., miss 1, 0, 0, ..."""
    size = len(low)
    return _as_array([low[2 * m :] @ low[: size - 2 * m] - (m == 0) for m in range(size // 2)])


def _newton_step(low: np.ndarray) -> np.ndarray:
    """The smallest change that makes the correlations vanish, to first order."""
    import numpy as np

    size = len(low)
    slope = np.zeros((size // 2, size))
    for m in range(size // 2):
        slope[m, 2 * m :] += low[: size - 2 * m]
        slope[m, : size - 2 * m] += low[2 * m :]
    return np.linalg.lstsq(slope, _correlations(low), rcond=None)[0]
