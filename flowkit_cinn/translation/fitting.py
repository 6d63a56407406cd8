"""Photographs of any aspect ratio in a network's fixed size: scaled as a whole and padded, never squashed; and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from flowkit.errors import ConfigError, InputError
from flowkit_cinn.translation.images import to_tensor


@dataclass(frozen=True)
class Placement:
    """Where a photograph lies in a padded image of `height` x `width`: `top`, `left`, `rows`, `columns`, in pixels."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    def crop(self, x: Tensor) -> Tensor:
        """What lies on the photograph, of a map `(..., H, W)` of the padded size or of that divided by a whole number.

        Raises:
            InputError: another size, or one where the photograph's border falls between two pixels.
        """
        scale = self.height // x.shape[-2] if x.shape[-2] else 0
        if scale < 1 or (x.shape[-2] * scale, x.shape[-1] * scale) != (self.height, self.width):
            raise InputError(
                f"a map of {self.height} x {self.width}, or of that divided by a whole number, is needed, "
                f"got {x.shape[-2]} x {x.shape[-1]}"
            )
        if any(side % scale for side in (self.top, self.left, self.rows, self.columns)):
            raise InputError(
                f"at 1/{scale} of the size the photograph's border falls between two pixels: "
                f"fit it with multiple={scale}"
            )
        top, left, rows, columns = (v // scale for v in (self.top, self.left, self.rows, self.columns))
        return x[..., top : top + rows, left : left + columns]


def fit(image: Image.Image, size: tuple[int, int], *, multiple: int = 1) -> tuple[Tensor, Placement]:
    """Scale a photograph into `size` with its aspect kept, and pad the rest by reflection.

    Args:
        image: RGB.
        size: (H, W) of the result.
        multiple: the photograph's border lies on multiples of this, so that `Placement.crop` serves maps of size /
            multiple too; the aspect is kept to half a multiple.

    Returns:
        RGB in 0..1, float32 `(3, H, W)`, and where in it the photograph lies.

    Raises:
        ConfigError: a size that `multiple` does not divide.

    Example:
        >>> padded, placement = fit(Image.new("RGB", (200, 100)), (64, 64), multiple=4)
        >>> padded.shape, placement.crop(padded).shape, placement.crop(torch.zeros(8, 2, 16, 16)).shape
        (torch.Size([3, 64, 64]), torch.Size([3, 32, 64]), torch.Size([8, 2, 8, 16]))
    """
    height, width = size
    if multiple < 1 or height < 1 or width < 1 or height % multiple or width % multiple:
        raise ConfigError(f"the size {height} x {width} must be a multiple of {multiple}")
    scale = min(width / image.width, height / image.height)
    columns, rows = _whole(image.width * scale, multiple, width), _whole(image.height * scale, multiple, height)
    pixels = to_tensor(shrink(image, (rows, columns))).float() / 255
    top, left = ((room // 2 // multiple) * multiple for room in (height - rows, width - columns))
    placement = Placement(height, width, top, left, rows, columns)
    return pad(pixels, placement), placement


def pad_to_multiple(rgb: Tensor, multiple: int) -> tuple[Tensor, Placement]:
    """Pad `(..., H, W)` by reflection to the next multiples of `multiple`.

    >>> padded, placement = pad_to_multiple(torch.rand(3, 30, 41), 16)
    >>> padded.shape, placement.crop(padded).shape
    (torch.Size([3, 32, 48]), torch.Size([3, 30, 41]))

    Raises:
        ConfigError: a multiple below 1.
    """
    if multiple < 1:
        raise ConfigError(f"multiple must be at least 1, got {multiple}")
    rows, columns = rgb.shape[-2:]
    height, width = (-(-side // multiple) * multiple for side in (rows, columns))
    placement = Placement(height, width, (height - rows) // 2, (width - columns) // 2, rows, columns)
    return pad(rgb, placement), placement


def pad(pixels: Tensor, placement: Placement) -> Tensor:
    """Put `(..., rows, columns)` where the placement says, and fill the rest by reflection, as often as it takes."""
    down = _reflected(placement.height, placement.top, placement.rows, pixels.device)
    across = _reflected(placement.width, placement.left, placement.columns, pixels.device)
    return pixels[..., down, :][..., across]


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at (H, W): averaged where it gets smaller, interpolated where it gets larger."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)


def _whole(side: float, multiple: int, most: int) -> int:
    return min(most, max(multiple, round(side / multiple) * multiple))


def _reflected(total: int, start: int, inside: int, device: torch.device) -> Tensor:
    # numpy's "reflect": 2 1 | 0 1 2 3 | 2 1 0 1 ..., which torch's own padding allows only once.
    period = max(1, 2 * (inside - 1))
    position = (torch.arange(total, device=device) - start) % period
    return torch.minimum(position, period - position)
