"""The image loader: right pixels from every good source, an ImageError from every bad one, no traces."""

import os
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmlens.errors import ImageError
from mmlens.inputs.images import MAX_PIXELS, image_sha256, load_image
from tests.inputs.kits import picture


def encoded(image, form="PNG", **options):
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels(source):
    image = load_image(source)
    assert image.mode == "RGB" and type(image) is Image.Image and image.info == {} and image.format is None
    return np.asarray(image)


# ---- every source --------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = picture(17, 11)
    expected = np.asarray(image)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    tensor = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    sources = [image, path, str(path), path.read_bytes(), expected, tensor]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), expected)
    assert len({image_sha256(source) for source in sources}) == 1


def test_fingerprint_sees_one_bit_and_the_shape():
    flat = np.zeros((2, 6, 3), np.uint8)
    flipped = flat.copy()
    flipped[1, 5, 2] ^= 1
    hashes = {image_sha256(flat), image_sha256(flipped), image_sha256(flat.reshape(6, 2, 3))}
    assert len(hashes) == 3


def test_source_is_not_changed():
    array = np.asarray(picture()).copy()
    before = array.copy()
    load_image(array).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(array, before)
    image = picture()
    load_image(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), before)


def test_grey_arrays_and_one_channel():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.repeat(grey[..., None], 3, axis=2)
    for source in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        np.testing.assert_array_equal(pixels(source), expected)


def test_array_with_alpha_lies_on_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (10, 20, 30, 0)
    result = pixels(rgba)
    assert result[0, 0].tolist() == [10, 20, 30]
    assert result[0, 1].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(pixels(torch.from_numpy(rgba.copy()).permute(2, 0, 1)), result)


# ---- modes of files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_opaque_modes_are_converted(mode):
    image = picture().convert(mode)
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_allowed_format_is_read(form):
    image = picture()
    data = encoded(image, form)
    with Image.open(BytesIO(data)) as reference:
        np.testing.assert_array_equal(pixels(data), np.asarray(reference.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_alpha_is_composited_on_white_and_hides_colours(mode):
    rgba = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    rgba.paste((200, 0, 0, 255), (0, 0, 2, 4))
    result = pixels(rgba.convert(mode))
    assert (result[:, 2:] == 255).all()
    assert (result[:, :2, 1:] < 130).all()


def test_half_transparent_is_half_way_to_white():
    assert pixels(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))[0, 0].tolist() == [127, 127, 127]


def test_palette_with_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 1, 2, 3])
    image.putpixel((1, 0), 1)
    result = pixels(encoded(image, "PNG", transparency=1))
    assert result[0].tolist() == [[9, 8, 7], [255, 255, 255]]


def test_rgb_file_with_one_transparent_colour():
    image = Image.new("RGB", (2, 1), (5, 6, 7))
    image.putpixel((1, 0), (50, 60, 70))
    assert pixels(encoded(image, "PNG", transparency=(50, 60, 70)))[0].tolist() == [[5, 6, 7], [255] * 3]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 200, 32896, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    for source in (
        encoded(Image.fromarray(values)),
        Image.fromarray(values),
        encoded(Image.fromarray(values), "TIFF"),
    ):
        assert pixels(source)[0, :, 0].tolist() == expected
    header = b"P5 4 1 65535\n"
    assert pixels(header + values.astype(">u2").tobytes())[0, :, 0].tolist() == expected


def test_sixteen_bit_grey_with_a_transparent_value():
    values = np.array([[65535, 1000, 0]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    assert pixels(data)[0, :, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_files_are_refused(mode):
    with pytest.raises(ImageError, match=rf"mode {mode} .*give it as uint8"):
        load_image(Image.new(mode, (3, 3), 100))


# ---- orientation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, form):
    upright = np.zeros((30, 60, 3), np.uint8)
    upright[:15, :30] = (255, 0, 0)
    upright[:15, 30:] = (0, 255, 0)
    upright[15:, :30] = (0, 0, 255)
    turned = {  # how the camera stored the upright picture
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(turned)), form, exif=exif, **options)
    result = pixels(data)
    assert result.shape == upright.shape
    assert np.abs(result.astype(int) - upright).max() < 60
    np.testing.assert_array_equal(pixels(load_image(data)), result)
    with Image.open(BytesIO(data)) as opened:
        np.testing.assert_array_equal(pixels(opened), result)


# ---- refused sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://example.org/cat.jpg", "http://x/y.png", "file:///tmp/x.png", "data:image/png;base64,AA"]
)
def test_urls_are_refused_with_a_remedy(url):
    with pytest.raises(ImageError, match=r"is a URL.*download it"):
        load_image(url)


def test_missing_file_folder_device_and_bad_names(tmp_path):
    for source, words in [
        (tmp_path / "none.png", "none.png.*cannot be read"),
        (str(tmp_path), "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("a\0b.png", "cannot be read"),
        ("", "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=words):
            load_image(source)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        b"<html><body>404</body></html>",
        b"just text",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
    ],
)
def test_other_formats_are_refused(data):
    with pytest.raises(ImageError, match=r"cannot be decoded.*JPEG, PNG"):
        load_image(data)


@pytest.mark.parametrize("form", ["PCX", "TGA", "ICO", "PDF", "EPS"])
def test_formats_pillow_could_read_are_refused_unless_listed(form):
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(encoded(picture(), form))


def test_empty_bytes():
    with pytest.raises(ImageError, match="empty"):
        load_image(b"")


def test_opened_file_of_another_format_is_refused():
    image = Image.open(BytesIO(encoded(picture(), "PCX")))
    with pytest.raises(ImageError, match=r"PCX file.*convert\('RGB'\)"):
        load_image(image)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_animations_are_refused(form):
    data = encoded(picture(), form, save_all=True, append_images=[picture(seed=1)])
    with pytest.raises(ImageError, match=r"several frames.*choose one"):
        load_image(data)


def test_first_frame_of_a_phone_photograph_is_read():
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture(seed=1)])
    assert pixels(data).shape == (30, 40, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_files_are_refused_even_where_the_process_tolerates_them(form, keep, tolerant, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(picture(64, 64), form)
    cut = data[: int(len(data) * keep)]
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(cut)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_truncated_file_opened_by_the_user():
    image = Image.open(BytesIO(encoded(picture(64, 64))[:2000]))
    with pytest.raises(ImageError, match=r"cannot be decoded.*check the file"):
        load_image(image)


def png_of(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 4096)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "side", [(8001, 8000), (9000, 9000), (12000, 12000), (30000, 30000), (2**31 - 1, 2**31 - 1)]
)
def test_bombs_are_refused_before_they_are_decoded(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded a bomb"))
    with pytest.raises(ImageError, match=r"megapixels|DecompressionBomb"):
        load_image(png_of(*side))


def test_bombs_are_refused_where_warnings_are_off_and_pillow_is_unlimited(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="144 megapixels, more than 64"):
            load_image(png_of(12000, 12000))


def test_cap_also_holds_for_arrays():
    big = np.broadcast_to(np.uint8(0), (MAX_PIXELS // 1000 + 1, 1000))
    with pytest.raises(ImageError, match="megapixels"):
        load_image(big)


def test_no_process_state_changes():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    load_image(encoded(picture()))
    for data in (png_of(12000, 12000), b"no image", encoded(picture())[:60]):
        with pytest.raises(ImageError):
            load_image(data)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


# ---- refused arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
        (np.zeros((3, 8, 8), np.uint8), "moveaxis"),
        (np.zeros((1, 8, 8, 3), np.uint8), "image by image"),
        (np.zeros(8, np.uint8), "is no image"),
        (np.zeros((4, 4, 2), np.uint8), "is no image"),
        (np.zeros((4, 4, 3), np.float32), r"must be uint8.*\(255 \* x\)"),
        (np.full((4, 4, 3), np.nan, np.float32), "contains NaN"),
        (np.zeros((4, 4, 3), np.uint16), "must be uint8.*scale it"),
        (np.zeros((4, 4, 3), bool), "must be uint8"),
    ],
)
def test_arrays_that_are_no_pixels(array, words):
    with pytest.raises(ImageError, match=words):
        load_image(array)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "permute"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), "no pixels"),
        (torch.zeros(3, 8, 8), r"must be uint8.*\(255 \* x\)"),
        (torch.full((3, 8, 8), float("nan")), "contains NaN"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "must be uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "image by image"),
    ],
)
def test_tensors_that_are_no_pixels(tensor, words):
    with pytest.raises(ImageError, match=words):
        load_image(tensor)


@pytest.mark.parametrize("source", [None, 3, [1, 2], {"path": "x"}])
def test_other_types(source):
    with pytest.raises(ImageError, match="cannot read an image from"):
        load_image(source)


# ---- fuzz ----------------------------------------------------------------------------------------------

SEEDS = {
    form: encoded(picture(24, 20), form) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
}


@settings(max_examples=400)
@given(
    form=st.sampled_from(sorted(SEEDS)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0.2, 1.0),
    tail=st.binary(max_size=16),
)
def test_mutants_give_pixels_or_an_image_error(form, edits, cut, tail):
    data = bytearray(SEEDS[form])
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    try:
        image = load_image(bytes(data[: int(len(data) * cut)]) + tail)
    except ImageError:
        return
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
