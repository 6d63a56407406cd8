"""Photographs as people have them: read upright, in sRGB, on white, at bounded memory; and written atomically."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from flowkit.errors import FlowkitError

MIN_SIDE = 8
MAX_PIXELS = 400_000_000  # 20000 x 20000
STRIP_PIXELS = 4_000_000  # a big photograph is converted in strips of about this many pixels
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"})
WRITTEN_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
COLOURLESS_SPREAD, COLOURLESS_SHARE = 8, 0.01

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_decoding = threading.RLock()


class PhotographError(FlowkitError, ValueError):
    """A file that cannot be read as a photograph, or written as one; the message names the file and the reason."""


@dataclass(frozen=True)
class Photograph:
    """A photograph that was read: `image` (PIL, RGB, upright, sRGB) and `notes`, what was done to bring it there.

    `full_size` is its own (width, height), upright: larger than `image.size` where a reduced size was asked for.
    """

    name: str
    image: Image.Image
    full_size: tuple[int, int]
    notes: tuple[str, ...] = ()

    def tensor(self) -> Tensor:
        """The pixels, uint8 `(3, H, W)`."""
        return to_tensor(self.image)


def read_photograph(
    source: str | Path | BinaryIO, *, name: str | None = None, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Photograph:
    """Read a photograph as a photographer expects to see it.

    Greyscale, CMYK, CIE Lab, palette and 16-bit images become RGB of 8 bits; transparency is laid on white; EXIF's
    orientation is applied; an embedded profile is converted to sRGB. Of several frames the first is read. `notes` say
    which of these happened. Memory: at most 8 bytes a pixel (4 for plain RGB), and one strip.

    Args:
        source: a path, or an open binary file.
        name: what messages call it; by default the path.
        at_least: the shorter side that is needed, in pixels; a larger photograph is reduced by a whole factor to no
            less than that, which for JPEG saves most of the decoding. None: its own size.
        max_pixels: larger photographs are refused before they are decoded.

    Raises:
        PhotographError: missing, a folder, empty, truncated, not an image, a side under 8 pixels, or too many pixels.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (40, 20), 128).save(file, "PNG")
        >>> photograph = read_photograph(file, name="grey.png")
        >>> photograph.image.mode, photograph.full_size, photograph.notes
        ('RGB', (40, 20), ('greyscale',))
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source), name or str(source), at_least, max_pixels)
    return _decode(source, name or getattr(source, "name", None) or "the photograph", at_least, max_pixels)


def _read_file(path: Path, name: str, at_least: int | None, max_pixels: int) -> Photograph:
    if path.is_dir():
        raise PhotographError(f"'{name}' is a folder, not a photograph")
    try:
        with path.open("rb") as file:
            return _decode(file, name, at_least, max_pixels)
    except FileNotFoundError as error:
        raise PhotographError(f"the photograph '{name}' does not exist") from error
    except OSError as error:
        raise PhotographError(f"the photograph '{name}' cannot be read: {error.strerror or error}") from error


def _decode(file: BinaryIO, name: str, at_least: int | None, max_pixels: int) -> Photograph:
    file.seek(0, os.SEEK_END)
    if file.tell() == 0:
        raise PhotographError(f"the photograph '{name}' is empty (0 bytes)")
    file.seek(0)
    with _quiet_decoder(max_pixels) as heard:
        image = _open(file, name, max_pixels)
        notes: list[str] = []
        orientation = _orientation(image, notes)
        full_size = image.size if orientation < 5 else (image.size[1], image.size[0])
        if at_least is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
            # The decoder itself shrinks by 2, 4 or 8, and keeps both sides no smaller than asked.
            scale = at_least / min(image.size)
            image.draft(None, (round(image.size[0] * scale), round(image.size[1] * scale)))
        try:
            image.load()
            upright = _to_srgb(image, notes)
        except MemoryError:
            raise
        except Exception as error:  # a decoder raises nearly anything on a damaged file
            raise PhotographError(f"the photograph '{name}' is truncated or damaged: {error}") from error
    if at_least is not None and (factor := min(upright.size) // at_least) > 1:
        upright = upright.reduce(factor)
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
        notes.append("turned upright by its EXIF orientation")
    notes += [f"its reader warned: {message}" for message in heard]
    return Photograph(name, upright, full_size, tuple(notes))


def _open(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise PhotographError(f"the photograph '{name}' has more than {max_pixels:,} pixels, the limit") from error
    except Image.UnidentifiedImageError as error:
        raise PhotographError(f"'{name}' is not an image, or one in a format that cannot be read") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises nearly anything on a damaged file
        raise PhotographError(f"the photograph '{name}' is truncated or damaged: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise PhotographError(
            f"the photograph '{name}' is {width} x {height}: more than {max_pixels:,} pixels, the limit"
        )
    if min(width, height) < MIN_SIDE:
        raise PhotographError(
            f"the photograph '{name}' is {width} x {height} pixels: at least {MIN_SIDE} on each side are needed"
        )
    return image


@contextmanager
def _quiet_decoder(max_pixels: int) -> Iterator[list[str]]:
    """Within it PIL allows max_pixels, and warnings go to the list; both settings are global, so they are put back."""
    with _decoding, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        heard: list[str] = []
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield heard
        finally:
            Image.MAX_IMAGE_PIXELS = before
            heard += dict.fromkeys(
                str(w.message) for w in caught if not issubclass(w.category, Image.DecompressionBombWarning)
            )


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # EXIF is a stranger's binary format; the picture is good without it
        notes.append(f"its EXIF data are damaged and were ignored ({error})")
        return 1
    return value if value in _UPRIGHT else 1


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """RGB in sRGB, strip by strip unless the image is that already."""
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    grey = wide or image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    transform = _transform(image, grey, notes)
    notes += ["greyscale"] * grey + ["16 bits a channel reduced to 8"] * wide + ["transparency laid on white"] * alpha
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB")
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {image.n_frames} frames")  # type: ignore[attr-defined]
    if image.mode == "RGB" and not alpha and transform is None:
        return _plain(image)
    top_value = _wide_range(image) if wide else 0.0
    width, height = image.size
    converted = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        converted.paste(_strip_to_srgb(strip, alpha, top_value, transform), (0, top))
    return converted


def _plain(image: Image.Image) -> Image.Image:
    # The pixels without their profile, and without the file, which is about to be closed; they are not copied.
    plain = image.copy() if image.readonly else image._new(image.im)
    plain.info = {}
    return plain


def _strip_to_srgb(strip: Image.Image, alpha: bool, top_value: float, transform: Any) -> Image.Image:
    if top_value:
        values = np.asarray(strip, dtype=np.float32) * (255 / top_value)
        strip = Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    opacity = strip.convert("RGBA").getchannel("A") if alpha else None
    if transform is not None:
        colour = strip.convert(transform.input_mode)
        colour = ImageCms.applyTransform(colour, transform) or colour  # None only when it works in place
    else:
        colour = strip.convert("RGBA").convert("RGB") if alpha else strip.convert("RGB")
    if opacity is None:
        return colour
    white = Image.new("RGB", colour.size, (255, 255, 255))
    white.paste(colour, mask=opacity)
    return white


def _wide_range(image: Image.Image) -> float:
    """The value that means white: 65535 for 16 bits; for 32-bit integers and floats the range that the values fill."""
    if image.mode.startswith("I;16"):
        return 65535.0
    lowest_highest: Any = image.getextrema()
    top = lowest_highest[1]
    if image.mode == "F" and top <= 1:
        return 1.0
    return 255.0 if top <= 255 else max(65535.0, float(top))


def _transform(image: Image.Image, grey: bool, notes: list[str]) -> Any:
    """littleCMS's way from the embedded profile to sRGB; None where there is nothing to convert."""
    embedded = image.info.get("icc_profile")
    if image.mode == "LAB":
        notes.append("CIE Lab converted to RGB")
        return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    if not embedded:
        return None
    mode = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        description = ImageCms.getProfileDescription(profile).strip()
        if mode == "RGB" and "sRGB" in description:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"its colour profile does not fit and was ignored ({error})")
        return None
    notes.append(f"converted from the profile '{description}' to sRGB")
    return transform


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 `(3, H, W)`."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_image(rgb: Tensor) -> Image.Image:
    """RGB `(3, H, W)`, or grey `(1, H, W)`, uint8 or 0..1 floating point (clipped, rounded), as a PIL image in RGB.

    >>> to_image(torch.tensor([1.0, 0.5, 0.0]).reshape(3, 1, 1)).getpixel((0, 0))
    (255, 128, 0)
    """
    if rgb.dtype != torch.uint8:
        rgb = (rgb.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rgb.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())


def is_colourless(image: Image.Image) -> bool:
    """Whether at most 1 % of the pixels of an RGB image have channels more than 8 of 255 apart: no colour to learn.

    >>> is_colourless(Image.new("RGB", (16, 16), (90, 93, 88))), is_colourless(Image.new("RGB", (16, 16), (90, 60, 30)))
    (True, False)
    """
    pixels = np.asarray(image if max(image.size) <= 256 else image.reduce(max(image.size) // 128)).astype(np.int16)
    return bool((np.ptp(pixels, axis=2) > COLOURLESS_SPREAD).mean() <= COLOURLESS_SHARE)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a PNG or a JPEG (quality 95, full colour resolution), whole or not at all: an earlier file survives.

    Raises:
        PhotographError: a suffix other than .png, .jpg and .jpeg, or a file that cannot be written.
    """
    path = Path(path)
    written = WRITTEN_FORMATS.get(path.suffix.lower())
    if written is None:
        raise PhotographError(f"pictures are written as .png or .jpg, not as '{path.name}'")
    options = {"quality": 95, "subsampling": 0} if written == "JPEG" else {}
    temporary, encoded = None, io.BytesIO()
    try:
        image.save(encoded, written, **options)  # not straight to the file: Pillow overlooks a disk that fills up
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encoded.getbuffer())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except OSError as error:
        raise PhotographError(f"the picture '{path}' cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
