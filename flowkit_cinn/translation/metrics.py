"""Figures for diverse colorization: best of n, variance, the grayscale's error, bits per dimension, bootstrap errors.

The two that compare pictures are means of squares, in one of two units that the caller names:

- `"ab"`: Lab units squared, over the two channels a and b (each about -128..127);
- `"rgb"`: sRGB in 0..1, squared, over three channels, after clipping to the gamut.

The paper's Table 1 does not name its units, so its figures can stand beside these, but not be compared with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowkit.errors import ConfigError, InputError
from flowkit_cinn.translation.color import lab_to_rgb, stack_lab

UNITS = ("ab", "rgb")
BOOTSTRAP_RESAMPLES = 1000


def in_units(ab: Tensor, lightness: Tensor, units: str) -> Tensor:
    """Colours in the units that the errors are measured in.

    Args:
        ab: `(..., B, 2, H, W)` in Lab units.
        lightness: `(B, 1, H, W)`, L in 0..100; used by "rgb" alone.
        units: "ab" returns ab as it is, "rgb" returns `(..., B, 3, H, W)` in 0..1.

    Raises:
        ConfigError: other units.
    """
    if units == "ab":
        return ab
    if units == "rgb":
        return lab_to_rgb(stack_lab(lightness, ab))
    raise ConfigError(f"units must be 'ab' or 'rgb', got {units!r}")


def best_of_n_mse(samples: Tensor, target: Tensor) -> Tensor:
    """The smallest mean squared error among n samples, per image; the mean is over channels and pixels.

    Args:
        samples: `(n, B, C, H, W)`.
        target: `(B, C, H, W)`.

    Returns:
        `(B,)`.

    Raises:
        InputError: shapes that do not fit, or no samples.

    Example:
        >>> target = torch.zeros(2, 2, 4, 4)
        >>> samples = torch.stack([target + 3, target - 1])
        >>> best_of_n_mse(samples, target)
        tensor([1., 1.])
    """
    _check(samples, target)
    return (samples - target).square().flatten(2).mean(2).amin(0)


def sample_variance(samples: Tensor) -> Tensor:
    """The variance of n samples in each pixel and channel, divided by n (not n - 1), then averaged, per image.

    Args:
        samples: `(n, B, C, H, W)`.

    Returns:
        `(B,)`; zero for one sample.

    Raises:
        InputError: not five dimensions, or no samples.

    Example:
        >>> sample_variance(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1))
        tensor([1.])
    """
    _check(samples, samples[0] if samples.dim() == 5 and len(samples) else samples)
    return samples.var(0, correction=0).flatten(1).mean(1)


def grayscale_mse(ab: Tensor, lightness: Tensor, units: str = "ab") -> Tensor:
    """The error of leaving the photograph gray (a = b = 0), per image `(B,)`: what any colorization must beat.

    Args:
        ab: the true colours, `(B, 2, H, W)` in Lab units.
        lightness: `(B, 1, H, W)`, L in 0..100.
        units: "ab" or "rgb".
    """
    target, gray = in_units(ab, lightness, units), in_units(torch.zeros_like(ab), lightness, units)
    return (gray - target).square().flatten(1).mean(1)


def bits_per_dimension(log_prob: Tensor, dimensions: int) -> Tensor:
    """-log2 q(x) / D, from log q(x) in nats: of x as the flow sees it (here normalised ab with its noise).

    >>> bits_per_dimension(torch.tensor(-math.log(2.0) * 12), 4).item()
    3.0

    Raises:
        ConfigError: dimensions below 1.
    """
    if dimensions < 1:
        raise ConfigError(f"dimensions must be at least 1, got {dimensions}")
    return -log_prob / (dimensions * math.log(2.0))


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and the bootstrap error of that mean (nan for a single image)."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.error:.2g}"


def bootstrap(
    values: Tensor, *, resamples: int = BOOTSTRAP_RESAMPLES, generator: torch.Generator | None = None
) -> Estimate:
    """The mean of `(B,)` figures, and its error: the standard deviation of the means of resampled sets.

    Args:
        values: one figure per image, `(B,)`.
        resamples: how many sets are drawn, at least 2.
        generator: on the CPU; None for a fresh one with seed 0, so that the same figures have the same error.

    Raises:
        InputError: not one-dimensional, or empty.
        ConfigError: fewer than 2 resamples.

    Example:
        >>> estimate = bootstrap(torch.tensor([1.0, 3.0] * 50))
        >>> estimate.mean, round(estimate.error, 1)
        (2.0, 0.1)
    """
    if values.dim() != 1 or not len(values):
        raise InputError(f"one figure per image (B,) is needed, B at least 1, got {tuple(values.shape)}")
    if resamples < 2:
        raise ConfigError(f"resamples must be at least 2, got {resamples}")
    values = values.detach().double().cpu()
    if len(values) == 1:
        return Estimate(values.item(), math.nan)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    means = torch.stack(
        [values[torch.randint(len(values), values.shape, generator=generator)].mean() for _ in range(resamples)]
    )
    return Estimate(values.mean().item(), means.std().item())


def diversity(
    samples: Tensor,
    ab: Tensor,
    lightness: Tensor,
    *,
    units: str = "ab",
    generator: torch.Generator | None = None,
) -> dict[str, Estimate]:
    """Best of n, variance, and the grayscale's error over a batch, each with its bootstrap error.

    Args:
        samples: `(n, B, 2, H, W)`, in Lab units.
        ab: the true colours, `(B, 2, H, W)`, in Lab units.
        lightness: `(B, 1, H, W)`, L in 0..100.
        units: "ab" or "rgb".
        generator: for the bootstrap.

    Returns:
        `{"best_of_n_mse", "variance", "grayscale_mse"}`.

    Example:
        >>> ab, lightness = torch.full((4, 2, 8, 8), 10.0), torch.full((4, 1, 8, 8), 50.0)
        >>> samples = ab + torch.tensor([-1.0, 1.0, 3.0]).reshape(3, 1, 1, 1, 1)
        >>> {name: round(figure.mean, 2) for name, figure in diversity(samples, ab, lightness).items()}
        {'best_of_n_mse': 1.0, 'variance': 2.67, 'grayscale_mse': 100.0}
    """
    drawn, target = in_units(samples, lightness, units), in_units(ab, lightness, units)
    figures = {
        "best_of_n_mse": best_of_n_mse(drawn, target),
        "variance": sample_variance(drawn),
        "grayscale_mse": grayscale_mse(ab, lightness, units),
    }
    return {name: bootstrap(values, generator=generator) for name, values in figures.items()}


def _check(samples: Tensor, target: Tensor) -> None:
    if samples.dim() != 5 or not len(samples) or samples.shape[1:] != target.shape:
        raise InputError(
            f"samples (n, B, C, H, W) and a target (B, C, H, W) are needed, got {tuple(samples.shape)} "
            f"and {tuple(target.shape)}"
        )
