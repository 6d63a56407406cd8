import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from flowkit_cinn.translation import images
from flowkit_cinn.translation.images import PhotographError, is_colourless, read_photograph, save_image


def gradient(width=40, height=24):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 128 + 0 * x], -1).astype(np.uint8)


def written(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file


def read(image, form="PNG", **options):
    return read_photograph(written(image, form, **options))


def pixels(photograph):
    return np.asarray(photograph.image).astype(int)


def test_plain_rgb_is_unchanged():
    photograph = read(Image.fromarray(gradient()))
    assert photograph.image.mode == "RGB"
    assert photograph.notes == ()
    np.testing.assert_array_equal(pixels(photograph), gradient())
    assert photograph.tensor().shape == (3, 24, 40)


def test_greyscale():
    photograph = read(Image.fromarray(gradient()[..., 0]))
    assert "greyscale" in photograph.notes
    np.testing.assert_array_equal(pixels(photograph), gradient()[..., :1].repeat(3, 2))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(form):
    deep = gradient()[..., 0].astype(np.uint16) * 257
    photograph = read(Image.fromarray(deep), form)
    np.testing.assert_array_equal(pixels(photograph)[..., 1], gradient()[..., 0])
    assert "16 bits a channel reduced to 8" in photograph.notes


def sixteen_bit_rgb(form):
    """PIL cannot write these, so they are put together by hand and by tifffile."""
    deep = gradient().astype(np.uint16) * 257
    if form == "TIFF":
        tifffile = pytest.importorskip("tifffile")
        file = io.BytesIO()
        tifffile.imwrite(file, deep, photometric="rgb")
        return file
    height, width = deep.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_rgb(form):
    assert abs(pixels(read_photograph(sixteen_bit_rgb(form))) - gradient()).max() <= 1


def test_float_tiff_in_unit_range():
    photograph = read(Image.fromarray(gradient()[..., 0].astype(np.float32) / 255), "TIFF")
    np.testing.assert_array_equal(pixels(photograph)[..., 0], gradient()[..., 0])


def test_cmyk_looks_like_its_colours():
    photograph = read(Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK"), "JPEG", quality=95)
    assert "CMYK converted to RGB" in photograph.notes
    assert abs(pixels(photograph)[8, 8] - [200, 40, 90]).max() < 6


def test_lab_tiff():
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (16, 16), (200, 40, 90)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert abs(pixels(read(lab, "TIFF"))[8, 8] - [200, 40, 90]).max() < 6


def test_palette():
    image = Image.fromarray(gradient()).quantize(16)
    np.testing.assert_array_equal(pixels(read(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white():
    rgba = np.concatenate([gradient(), np.zeros((24, 40, 1), np.uint8)], 2)
    rgba[:12, :, 3] = 255
    photograph = read(Image.fromarray(rgba))
    np.testing.assert_array_equal(pixels(photograph)[:12], gradient()[:12])
    assert (pixels(photograph)[12:] == 255).all()
    assert "transparency laid on white" in photograph.notes


def test_transparent_colour_of_a_palette_and_of_grey():
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert (pixels(read(palette, transparency=1)) == 255).all()
    assert (pixels(read(Image.new("L", (16, 16), 7), transparency=7)) == 255).all()
    half = Image.new("LA", (16, 16), (0, 128))
    assert abs(pixels(read(half)) - 127).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = Image.fromarray(gradient(40, 24))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that the camera would have applied
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = read(stored, exif=exif)
    np.testing.assert_array_equal(pixels(photograph), gradient(40, 24))
    assert photograph.full_size == (40, 24)


def swapped_profile():
    """sRGB's profile with its red and green primaries exchanged: what it should do to a picture is known."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data = data.replace("sRGB built-in".encode("utf-16-be"), "Swap built-in".encode("utf-16-be"))
    return bytes(data.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ"))


def test_embedded_profile_is_converted():
    photograph = read(Image.fromarray(gradient()), icc_profile=swapped_profile())
    assert any("Swap built-in" in note for note in photograph.notes)
    assert abs(pixels(photograph) - gradient()[..., [1, 0, 2]]).max() <= 3


def test_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photograph = read(Image.fromarray(gradient()), icc_profile=profile)
    np.testing.assert_array_equal(pixels(photograph), gradient())


def test_profile_with_transparency_and_orientation_together():
    rgba = Image.fromarray(np.concatenate([gradient(), np.full((24, 40, 1), 255, np.uint8)], 2))
    exif = Image.Exif()
    exif[0x0112] = 3
    photograph = read(rgba, icc_profile=swapped_profile(), exif=exif)
    assert abs(pixels(photograph)[::-1, ::-1] - gradient()[..., [1, 0, 2]]).max() <= 3


@pytest.mark.parametrize("profile", [b"no profile at all", "grey"])
def test_unusable_profile_is_ignored_and_said(profile):
    if profile == "grey":  # a profile of another kind of image
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    photograph = read(Image.fromarray(gradient()), icc_profile=profile)
    np.testing.assert_array_equal(pixels(photograph), gradient())
    assert any("profile does not fit" in note for note in photograph.notes)
    assert "icc_profile" not in photograph.image.info


def test_strips_give_what_the_whole_gives(monkeypatch):
    rgba = Image.fromarray(np.concatenate([gradient(), gradient()[..., :1]], 2))
    whole = pixels(read(rgba))
    monkeypatch.setattr(images, "STRIP_PIXELS", 130)
    np.testing.assert_array_equal(pixels(read(rgba)), whole)


@pytest.mark.parametrize("size", [(2000, 9), (9, 2000)])
def test_any_aspect(size):
    assert read(Image.new("RGB", size)).image.size == size


def test_reduced_reading():
    large = Image.fromarray(gradient(1600, 1200))
    for form in ("JPEG", "PNG"):
        photograph = read_photograph(written(large, form), at_least=100)
        assert 100 <= min(photograph.image.size) < 200
        assert photograph.full_size == (1600, 1200)
        near = np.asarray(large.resize(photograph.image.size, Image.Resampling.BOX)).astype(int)
        assert abs(pixels(photograph) - near).mean() < 2


def test_first_of_several_frames():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    photograph = read(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert tuple(pixels(photograph)[0, 0]) == (255, 0, 0)
    assert "the first of 2 frames" in photograph.notes


def test_damaged_exif_is_a_note():
    photograph = read(Image.fromarray(gradient()), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    np.testing.assert_array_equal(pixels(photograph), gradient())


def refusal(source, **options):
    with pytest.raises(PhotographError) as caught:
        read_photograph(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder_and_empty(tmp_path):
    assert refusal(tmp_path / "none.jpg") == f"the photograph '{tmp_path / 'none.jpg'}' does not exist"
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_truncated(tmp_path, form, kept):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = written(Image.fromarray(noise), form).getvalue()
    path = tmp_path / "cut"
    path.write_bytes(whole[: int(kept * len(whole))])
    message = refusal(path)
    assert "truncated or damaged" in message or "not an image" in message


def test_not_an_image(tmp_path):
    (tmp_path / "letter.jpg").write_text("Dear reader")
    assert "letter.jpg' is not an image" in refusal(tmp_path / "letter.jpg")


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (1, 1)])
def test_too_small(size):
    message = refusal(written(Image.new("RGB", size)), name="tiny.png")
    assert message == f"the photograph 'tiny.png' is {size[0]} x {size[1]} pixels: at least 8 on each side are needed"


@pytest.mark.parametrize("limit", [3999, 1500])  # PIL itself refuses above twice the limit
def test_bomb_is_refused_before_it_is_decoded(limit):
    assert "pixels, the limit" in refusal(written(Image.new("RGB", (100, 40))), max_pixels=limit)


def test_pil_settings_are_put_back(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    read(Image.fromarray(gradient()))
    refusal(tmp_path / "none.png")
    refusal(written(Image.new("RGB", (100, 40))), max_pixels=100)
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_pixels_than_pil_allows_are_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(Image.fromarray(gradient())).notes == ()


def test_colourless():
    grey = np.full((64, 64, 3), 90, np.uint8)
    speck = grey.copy()
    speck[:4, :4] = (255, 0, 0)  # 0.4 % of the picture
    patch = grey.copy()
    patch[:16, :16] = (255, 0, 0)
    assert is_colourless(Image.fromarray(grey))
    assert is_colourless(Image.fromarray(speck))
    assert not is_colourless(Image.fromarray(patch))
    assert not is_colourless(Image.fromarray(gradient(900, 700)))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_saving(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    save_image(Image.fromarray(gradient()), path)
    assert abs(pixels(read_photograph(path)) - gradient()).max() <= (0 if suffix == ".png" else 12)
    assert os.listdir(tmp_path) == [path.name]


def test_failed_saving_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"earlier")

    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(PhotographError, match="No space left"):
        save_image(Image.fromarray(gradient()), path)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["out.png"]


def test_saving_refuses(tmp_path):
    with pytest.raises(PhotographError, match="cannot be written"):
        save_image(Image.fromarray(gradient()), tmp_path / "no" / "out.png")
    with pytest.raises(PhotographError, match=r"not as 'out\.xyz'"):
        save_image(Image.fromarray(gradient()), tmp_path / "out.xyz")


def test_tensor_and_back():
    tensor = images.to_tensor(Image.fromarray(gradient()))
    assert tensor.dtype == torch.uint8
    np.testing.assert_array_equal(np.asarray(images.to_image(tensor)), gradient())
    np.testing.assert_array_equal(np.asarray(images.to_image(tensor.double() / 255)), gradient())
