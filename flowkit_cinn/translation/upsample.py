"""Joint bilateral upsampling (Kopf et al. 2007): a small map of colours at the resolution of a large photograph."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flowkit.errors import ConfigError, InputError
from flowkit_cinn.translation.color import lab_to_rgb, rgb_to_lab, stack_lab
from flowkit_cinn.translation.images import to_image, to_tensor

SIGMA_SPACE, SIGMA_LIGHTNESS = 6.0, 0.10  # of the paper: pixels of L, and L in 0..1
SIGMA_IN_CELLS = 1.5  # what 6 pixels are at the paper's ratio of 4, from 64 to 256
TRUNCATION = 3.0  # standard deviations of the spatial Gaussian
LEAST_EXPONENT = -60.0  # where no small pixel resembles the large one, distance alone decides, and nothing is 0 / 0
TILE_PIXELS = 1 << 16  # temporaries of one tile stay in a processor's cache


def default_sigma(low: tuple[int, int], high: tuple[int, int]) -> float:
    """The spatial sigma in pixels of the large image: the paper's 6, and 1.5 cells of the small map where that is more.

    From 64 to 256 the two agree. At larger ratios 6 pixels would be less than one cell of the small map: its
    grid would show.

    >>> default_sigma((64, 64), (256, 256)), default_sigma((48, 64), (3000, 4000))
    (6.0, 93.75)
    """
    return max(SIGMA_SPACE, SIGMA_IN_CELLS * max(high[0] / low[0], high[1] / low[1]))


@torch.no_grad()
def joint_bilateral_upsample(
    ab: Tensor,
    lightness: Tensor,
    *,
    sigma_space: float | None = None,
    sigma_lightness: float = SIGMA_LIGHTNESS,
    truncation: float = TRUNCATION,
) -> Tensor:
    """Bring a map to the resolution of an image, with the edges of the image.

    ab'_p = sum_q ab_q f(|p - q|) g(|L_p - L_q|) / sum_q f g, over the cells q of the small map near p: f a Gaussian of
    the distance in pixels of the large image, g of the difference in L. L_q is the mean of L over the cell, as ab_q is
    the mean of the colours there. Each tile needs a fixed amount of memory besides the arguments and the result.
    `recolor` does the same for photographs that are too large to be held as floats.

    Args:
        ab: `(B, C, h, w)`, any map; of two channels usually.
        lightness: `(B, 1, H, W)`, L in 0..1 (Lab's L over 100), float32 or float64. Any ratio of the sizes.
        sigma_space: in pixels of the large image; None for `default_sigma`.
        sigma_lightness: in units of L.
        truncation: f is cut where it is this many sigmas away, along each axis. At 3 a photograph's ab changes by less
            than 0.02 on average, by 2 or 3 at isolated pixels whose L is unlike that of any near cell.

    Returns:
        `(B, C, H, W)` in the dtype of lightness.

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
        ConfigError: a sigma or a truncation that is not positive.

    Source:
        Kopf, Cohen, Lischinski, Uyttendaele, "Joint bilateral upsampling", SIGGRAPH 2007, equation 3.

    Example:
        >>> edge = (torch.arange(32) >= 13).float().expand(1, 1, 32, 32)                  # an edge between two cells
        >>> ab = F.adaptive_avg_pool2d(edge, 8)
        >>> sharp = joint_bilateral_upsample(ab, edge)
        >>> bool((sharp - edge).abs().mean() < 0.1)
        True
    """
    _check(ab, lightness)
    small = _reduced(lightness, ab.shape[-2:])
    sigma = _sigmas(ab.shape[-2:], lightness.shape[-2:], sigma_space, sigma_lightness, truncation)
    height = lightness.shape[-2]
    return upsample_rows(
        ab, small, lightness, 0, height, sigma_space=sigma, sigma_lightness=sigma_lightness, truncation=truncation
    )


@torch.no_grad()
def upsample_rows(
    ab: Tensor,
    small_lightness: Tensor,
    rows: Tensor,
    top: int,
    height: int,
    *,
    sigma_space: float,
    sigma_lightness: float = SIGMA_LIGHTNESS,
    truncation: float = TRUNCATION,
) -> Tensor:
    """`joint_bilateral_upsample` of some rows alone, for images that are too large to be held as floats.

    Args:
        ab: `(B, C, h, w)`.
        small_lightness: `(B, 1, h, w)`, the mean of L over the cells of ab.
        rows: `(B, 1, R, W)`, L of the rows top .. top + R - 1 of an image of `height` rows.
        top: the first of the rows.
        height: of the whole image.
        sigma_space: in pixels of the large image.
        sigma_lightness: in units of L.
        truncation: as in `joint_bilateral_upsample`.

    Returns:
        `(B, C, R, W)`.
    """
    count, width = rows.shape[-2:]
    h, w = ab.shape[-2:]
    down = _Taps(top, count, height, h, sigma_space, truncation, rows)
    across = _Taps(0, width, width, w, sigma_space, truncation, rows)
    out = rows.new_empty(ab.shape[0], ab.shape[1], count, width)
    tile_width = min(width, 1024)
    tile_height = max(1, TILE_PIXELS // tile_width)
    for b in range(rows.shape[0]):
        maps = torch.cat([small_lightness[b], ab[b]]).to(rows.dtype)
        for y in range(0, count, tile_height):
            for x in range(0, width, tile_width):
                tile = slice(y, min(y + tile_height, count)), slice(x, min(x + tile_width, width))
                out[b, :, tile[0], tile[1]] = _tile(
                    maps, rows[b, 0, tile[0], tile[1]], down.part(tile[0]), across.part(tile[1]), sigma_lightness
                )
    return out


class _Taps:
    """Along one axis: for each pixel the cells it looks at, and the logarithm of their spatial weight."""

    def __init__(self, start: int, count: int, size: int, cells: int, sigma: float, truncation: float, like: Tensor):
        sigma_cells = sigma * cells / size
        radius = max(1, min(cells, math.ceil(truncation * sigma_cells)))
        # Positions in float64: 20000 pixels over a small map leave float32 too few digits after the point.
        place = torch.arange(start, start + count, dtype=torch.float64, device=like.device)
        place = (place + 0.5) * cells / size - 0.5
        offsets = torch.arange(1 - radius, radius + 1, device=like.device)
        cell = place.floor().long()[None] + offsets[:, None]
        log_weight = -((place[None] - cell) ** 2) / (2 * sigma_cells**2)
        log_weight = log_weight.masked_fill((cell < 0) | (cell >= cells), -torch.inf)
        # The nearest cell gets weight 1: a factor that the division takes out again, and no sum underflows.
        self.log_weight = (log_weight - log_weight.amax(0)).to(like.dtype)
        self.cell = cell.clamp(0, cells - 1)

    def part(self, pixels: slice) -> tuple[Tensor, Tensor]:
        return self.cell[:, pixels], self.log_weight[:, pixels].exp()


def _tile(
    maps: Tensor, lightness: Tensor, down: tuple[Tensor, Tensor], across: tuple[Tensor, Tensor], sigma: float
) -> Tensor:
    """maps `(1 + C, h, w)` with L first, lightness `(R, W)`: the weighted means `(C, R, W)`."""
    first, last = int(down[0].min()), int(down[0].max()) + 1
    total = torch.zeros_like(lightness)
    sums = lightness.new_zeros(maps.shape[0] - 1, *lightness.shape)
    factor = -0.5 / sigma**2
    for cells_x, weight_x in zip(*across, strict=True):
        columns = maps[:, first:last].index_select(2, cells_x)
        for cells_y, weight_y in zip(*down, strict=True):
            near = columns.index_select(1, cells_y - first)
            weight = (near[0] - lightness).square_().mul_(factor).clamp_(min=LEAST_EXPONENT).exp_()
            weight.mul_(weight_x).mul_(weight_y[:, None])
            total += weight
            sums.addcmul_(near[1:], weight)
    return sums.div_(total)


def recolor(
    image: Image.Image, ab: Tensor, *, sigma_space: float | None = None, strip_pixels: int = 1 << 20
) -> Image.Image:
    """A photograph with new colours: its own L, and ab upsampled to its size.

    The photograph is worked through in strips, so besides it and the result (4 bytes a pixel each) the memory does not
    grow with its size. Measured on one core, from 48 x 64: 4000 x 3000 in 8 s at a peak
    of 1.0 GB for the whole process, 20000 x 15000 in 125 s at 3.2 GB (each 300-megapixel picture alone is 1.2 GB).

    Args:
        image: RGB, any size.
        ab: `(2, h, w)` in Lab units, of the same aspect as the image.
        sigma_space: in pixels of the image; None for `default_sigma`.
        strip_pixels: about how many pixels are held as floats at a time.

    Returns:
        RGB; colours outside the gamut are clipped.

    Raises:
        InputError: ab of another shape.

    Example:
        >>> grey = recolor(Image.new("RGB", (40, 30), (200, 100, 50)), torch.zeros(2, 6, 8))
        >>> low, high = min(grey.getpixel((5, 5))), max(grey.getpixel((5, 5)))
        >>> high - low <= 1
        True
    """
    if ab.dim() != 3 or ab.shape[0] != 2 or 0 in ab.shape:
        raise InputError(f"ab must be (2, h, w), got {tuple(ab.shape)}")
    ab = ab.detach().to("cpu", torch.float32)[None]
    low, high = (ab.shape[-2], ab.shape[-1]), (image.height, image.width)
    sigma = _sigmas(low, high, sigma_space, SIGMA_LIGHTNESS, TRUNCATION)
    rows = max(1, strip_pixels // image.width)
    strips = [(0, top, image.width, min(image.height, top + rows)) for top in range(0, image.height, rows)]
    # The mean L of each cell is near enough to the L of its mean colour; and that one, PIL finds without another pass.
    cells = image.resize((low[1], low[0]), Image.Resampling.BOX)
    small = _lightness(cells) / 100
    result = Image.new("RGB", image.size)
    for box in strips:
        lightness = _lightness(image.crop(box))
        colours = upsample_rows(ab, small, lightness / 100, box[1], image.height, sigma_space=sigma)
        result.paste(to_image(lab_to_rgb(stack_lab(lightness, colours))[0]), box[:2])
    return result


def _lightness(image: Image.Image) -> Tensor:
    return rgb_to_lab(to_tensor(image)[None].float() / 255)[:, :1]


def _reduced(lightness: Tensor, size: torch.Size) -> Tensor:
    if lightness.shape[-2] < size[0] or lightness.shape[-1] < size[1]:
        return F.interpolate(lightness, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return F.adaptive_avg_pool2d(lightness, (size[0], size[1]))


def _sigmas(
    low: tuple[int, ...], high: tuple[int, ...], sigma_space: float | None, sigma_lightness: float, truncation: float
) -> float:
    sigma = default_sigma((low[0], low[1]), (high[0], high[1])) if sigma_space is None else sigma_space
    for name, value in (("sigma_space", sigma), ("sigma_lightness", sigma_lightness), ("truncation", truncation)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive and finite, got {value}")
    return sigma


def _check(ab: Tensor, lightness: Tensor) -> None:
    if ab.dim() != 4 or lightness.dim() != 4 or lightness.shape[1] != 1 or ab.shape[0] != lightness.shape[0]:
        raise InputError(
            f"ab (B, C, h, w) and lightness (B, 1, H, W) are needed, got {tuple(ab.shape)} and {tuple(lightness.shape)}"
        )
    if 0 in ab.shape[1:] or 0 in lightness.shape[2:]:
        raise InputError(f"an empty map cannot be upsampled: {tuple(ab.shape)} to {tuple(lightness.shape)}")
    if lightness.dtype not in (torch.float32, torch.float64) or not ab.is_floating_point():
        raise InputError(f"float32 or float64 is needed, got {ab.dtype} and {lightness.dtype}")
    if ab.device != lightness.device:
        raise InputError(f"ab is on {ab.device}, lightness on {lightness.device}: they must be on one device")
