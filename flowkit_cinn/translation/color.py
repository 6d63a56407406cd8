"""Colour spaces: sRGB and CIE Lab (by kornia), the paper's normalisation of Lab, and how much the gamut clips."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.errors import InputError, MissingDependencyError

LIGHTNESS_MEAN, LIGHTNESS_STD = 47.5, 25.6
AB_MEAN, AB_STD = (2.4, 7.4), (11.2, 16.8)

# Less than half a step of 8 bits outside 0..1 is rounded to the same pixel, so it is not counted as clipped.
GAMUT_TOLERANCE = 0.5 / 255


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in 0..1 to CIE Lab (D65, 2 degrees): L in 0..100, a and b in about -128..127.

    This is kornia's conversion. scikit-image's `rgb2lab` has the same white point (0.95047, 1, 1.08883), the same
    matrix and the same constants, and differs by float32's rounding alone (measured: 1e-4 at most,
    2e-13 in float64). The matrix has six digits, so white comes out with |a|, |b| below 0.01, not exactly 0.

    Args:
        rgb: `(..., 3, H, W)`, floating point.

    Raises:
        InputError: not three channels, or not floating point.

    Example:
        >>> white = rgb_to_lab(torch.ones(3, 1, 1, dtype=torch.float64)).flatten()
        >>> [round(v, 1) + 0.0 for v in white.tolist()]
        [100.0, 0.0, 0.0]
    """
    return _kornia().rgb_to_lab(_colour(rgb, "rgb"))


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE Lab to sRGB, clipped to 0..1: the inverse of `rgb_to_lab` inside the gamut, to 1e-5.

    Args:
        lab: `(..., 3, H, W)`, floating point.

    Raises:
        InputError: not three channels, or not floating point.

    Example:
        >>> rgb = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> bool(((lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs() < 1e-4).all())
        True
    """
    return _kornia().lab_to_rgb(_colour(lab, "lab"), clip=True)


def lab_to_rgb_counted(lab: Tensor) -> tuple[Tensor, Tensor]:
    """`lab_to_rgb`, and the fraction of the pixels that no sRGB value shows, and that were therefore clipped.

    A pixel counts when one of its channels lies more than half a step of 8 bits outside 0..1.

    Args:
        lab: `(..., 3, H, W)`, floating point.

    Returns:
        `(rgb, fraction)`: `(..., 3, H, W)` in 0..1, and `(...)` in 0..1.

    Raises:
        InputError: not three channels, or not floating point.

    Example:
        >>> lab = torch.tensor([[50.0, 50.0], [0.0, 120.0], [0.0, -120.0]]).unsqueeze(1)  # grey, an impossible blue
        >>> lab_to_rgb_counted(lab)[1].item()
        0.5
    """
    raw = _kornia().lab_to_rgb(_colour(lab, "lab"), clip=False)
    outside = ((raw < -GAMUT_TOLERANCE) | (raw > 1 + GAMUT_TOLERANCE)).any(dim=-3)
    return raw.clamp(0, 1), outside.to(lab.dtype).mean(dim=(-2, -1))


def normalize_lightness(lightness: Tensor) -> Tensor:
    """(L - 47.5) / 25.6, as the paper does; L `(..., 1, H, W)` in 0..100."""
    return (lightness - LIGHTNESS_MEAN) / LIGHTNESS_STD


def denormalize_lightness(lightness: Tensor) -> Tensor:
    """The inverse of `normalize_lightness`: L in 0..100."""
    return lightness * LIGHTNESS_STD + LIGHTNESS_MEAN


def normalize_ab(ab: Tensor) -> Tensor:
    """(a - 2.4) / 11.2 and (b - 7.4) / 16.8, as the paper does; ab `(..., 2, H, W)` in Lab units."""
    mean, std = _ab_constants(ab)
    return (ab - mean) / std


def denormalize_ab(ab: Tensor) -> Tensor:
    """The inverse of `normalize_ab`: ab in Lab units.

    >>> ab = torch.tensor([10.0, -20.0]).reshape(2, 1, 1)
    >>> [round(v, 4) for v in denormalize_ab(normalize_ab(ab)).flatten().tolist()]
    [10.0, -20.0]
    """
    mean, std = _ab_constants(ab)
    return ab * std + mean


def split_rgb(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees of an image: normalised L `(..., 1, H, W)` and normalised ab `(..., 2, H, W)`.

    Args:
        rgb: `(..., 3, H, W)` in 0..1.
    """
    lab = rgb_to_lab(rgb)
    return normalize_lightness(lab[..., :1, :, :]), normalize_ab(lab[..., 1:, :, :])


def join_rgb(photo: Tensor, ab: Tensor) -> Tensor:
    """The inverse of `split_rgb`, clipped to 0..1; leading dimensions broadcast.

    Args:
        photo: normalised L, `(..., 1, H, W)`.
        ab: normalised ab, `(..., 2, H, W)`, of the same H and W.

    Raises:
        InputError: sizes that differ.

    Example:
        >>> rgb = torch.full((3, 2, 2), 0.25)
        >>> bool(torch.allclose(join_rgb(*split_rgb(rgb)), rgb, atol=1e-4))
        True
    """
    return lab_to_rgb(stack_lab(denormalize_lightness(photo), denormalize_ab(ab)))


def stack_lab(lightness: Tensor, ab: Tensor) -> Tensor:
    """L `(..., 1, H, W)` and ab `(..., 2, H, W)` as Lab `(..., 3, H, W)`; leading dimensions broadcast.

    Raises:
        InputError: channels other than 1 and 2, or heights and widths that differ.
    """
    if lightness.shape[-3:-2] != (1,) or ab.shape[-3:-2] != (2,) or lightness.shape[-2:] != ab.shape[-2:]:
        raise InputError(
            f"L (..., 1, H, W) and ab (..., 2, H, W) of one size are needed, "
            f"got {tuple(lightness.shape)} and {tuple(ab.shape)}"
        )
    leading = torch.broadcast_shapes(lightness.shape[:-3], ab.shape[:-3])
    return torch.cat([lightness.expand(*leading, *lightness.shape[-3:]), ab.expand(*leading, *ab.shape[-3:])], dim=-3)


def _ab_constants(ab: Tensor) -> tuple[Tensor, Tensor]:
    if ab.dim() < 3 or ab.shape[-3] != 2:
        raise InputError(f"ab must be (..., 2, H, W), got {tuple(ab.shape)}")
    return ab.new_tensor(AB_MEAN).reshape(2, 1, 1), ab.new_tensor(AB_STD).reshape(2, 1, 1)


def _colour(image: Tensor, name: str) -> Tensor:
    if image.dim() < 3 or image.shape[-3] != 3 or not image.is_floating_point():
        raise InputError(f"{name} must be floating point (..., 3, H, W), got {image.dtype} {tuple(image.shape)}")
    return image


def _kornia():  # type: ignore[no-untyped-def]  # a module has no useful type
    try:
        import kornia.color
    except ImportError as error:
        raise MissingDependencyError(
            'colour spaces need kornia: python -m pip install "flowkit[cinn]" brings it'
        ) from error
    return kornia.color
