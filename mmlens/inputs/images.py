"""The one place where image files and arrays become pixels.

Every source ends as an upright 8-bit RGB ``PIL.Image``, or as an ``ImageError`` that names the source and the
remedy. Decoders are third-party C code fed with files of unknown origin, so the steps are:

1. Read the bytes once; refuse URLs, folders, devices and huge files.
2. Open with an allow-list of formats (no EPS: that would start Ghostscript) and read only the header.
3. Refuse more than 64 megapixels and animations, before any pixel is decoded.
4. Decode; truncated or corrupt data is refused, never filled with grey.
5. Turn upright (EXIF), scale 16-bit grey, put transparent pixels on white, convert to RGB.

Colour profiles (ICC) are ignored, as in the Hugging Face processors.
"""

import hashlib
import os
import re
import stat
import struct
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps

from mmlens.errors import ImageError

ImageLike = Image.Image | str | os.PathLike | bytes | np.ndarray | torch.Tensor
"""What counts as an image: PIL, a path, the bytes of a file, a uint8 array ``[height, width, channel]`` or
``[height, width]``, a uint8 tensor ``[channel, height, width]`` or ``[height, width]``."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Image file formats that are decoded; everything else is refused before a decoder sees it."""

MAX_PIXELS = 64_000_000
"""Largest image that is decoded, in pixels."""

MAX_FILE_BYTES = 512 * 2**20
"""Largest image file that is read, in bytes."""

BACKGROUND = (255, 255, 255)
"""Colour (red, green, blue) under transparent pixels: white."""

_ORIENTATION = 0x0112  # the EXIF tag

_URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+://|data:)")


def load_image(source: Any) -> Image.Image:
    """Reads one image from any accepted source.

    Args:
        source: an ``ImageLike``: PIL image, path, bytes of an image file, uint8 array ``[height, width]`` or
            ``[height, width, 1 | 3 | 4]``, uint8 tensor ``[height, width]`` or
            ``[1 | 3 | 4, height, width]``.

    Returns:
        A new upright RGB image without metadata. Transparent pixels lie on white; 16-bit grey is scaled to
        8 bits. The source is not changed.

    Raises:
        ImageError: unreadable, truncated, hostile, animated, empty, larger than 64 megapixels, a URL, or an
            array whose layout or dtype is ambiguous. The message names the source and the remedy.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, f"PIL image {source.mode} {source.width}×{source.height}")
    if isinstance(source, (str, os.PathLike)):
        return _from_bytes(_read_file(source), f"image {str(source)[:200]!r}")
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _from_bytes(data, f"image of {len(data)} bytes")
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ImageError(
        f"cannot read an image from {type(source).__name__}: give a PIL image, a path, the bytes of an "
        "image file, a uint8 array [height, width, channel] or a uint8 tensor [channel, height, width]."
    )


def image_sha256(source: Any) -> str:
    """Fingerprint of the pixels a model will see, for provenance.

    Args:
        source: an ``ImageLike``; it is loaded with ``load_image``.

    Returns:
        SHA-256 (hex) of size and RGB pixels: the same for a file, its bytes and its array, and different
        after a bit flip that the file format does not notice (most do not).

    Raises:
        ImageError: as ``load_image``.
    """
    image = load_image(source)
    digest = hashlib.sha256(struct.pack("<II", image.width, image.height))
    digest.update(image.tobytes())
    return digest.hexdigest()


# ---- sources ----------------------------------------------------------------------------------------------


def _read_file(path: str | os.PathLike) -> bytes:
    shown = f"image {str(path)[:200]!r}"
    if isinstance(path, str) and _URL.match(path):
        raise ImageError(
            f"{shown} is a URL, and mmlens opens no network connection: download it, then give the path."
        )
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{shown} is not a regular file: give the path of an image file.")
        if info.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{shown} has {info.st_size} bytes, more than {MAX_FILE_BYTES}: shrink the image first."
            )
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{shown} cannot be read ({error}): check the path and its permissions.") from error


def _from_bytes(data: bytes, shown: str) -> Image.Image:
    if not data:
        raise ImageError(f"{shown} is empty: give a complete image file.")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, shown)
            _check_still(image, shown)
            _decode(image)
            return _to_rgb(image, shown)
    except ImageError:
        raise
    except Exception as error:  # a decoder may raise anything on hostile data
        raise ImageError(
            f"{shown} cannot be decoded ({type(error).__name__}: {error}). Expected a complete "
            f"{', '.join(FORMATS)} file of at most {MAX_PIXELS // 10**6} megapixels: check the download, or "
            "convert the file."
        ) from error


def _from_pil(image: Image.Image, shown: str) -> Image.Image:
    if image.format is not None and image.format not in (*FORMATS, "MPO"):
        raise ImageError(
            f"{shown} comes from a {image.format} file, which mmlens does not decode: give "
            "image.convert('RGB')."
        )
    _check_size(image.width, image.height, shown)
    try:
        _decode(image)
        return _to_rgb(image, shown)
    except ImageError:
        raise
    except Exception as error:  # an opened file decodes only now, with everything a decoder may raise
        raise ImageError(
            f"{shown} cannot be decoded ({type(error).__name__}: {error}): check the file it was opened from."
        ) from error


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    shown = f"tensor {tensor.dtype} {list(tensor.shape)}"
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ImageError(
            f"{shown} is no image: expected [channel, height, width] with 1, 3 or 4 channels, or [height, "
            "width]. A tensor [height, width, channel] needs .permute(2, 0, 1); a batch must be given "
            "image by image."
        )
    _check_dtype(
        shown, tensor.dtype == torch.uint8, tensor.is_floating_point(), bool(torch.isnan(tensor).any())
    )
    array = tensor.detach().cpu().numpy()
    return _from_pixels(array if array.ndim == 2 else np.moveaxis(array, 0, -1), shown)


def _from_array(array: np.ndarray) -> Image.Image:
    shown = f"array {array.dtype} {list(array.shape)}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{shown} is no image: expected [height, width, channel] with 1, 3 or 4 channels, or [height, "
            "width]. An array [channel, height, width] needs np.moveaxis(array, 0, -1); a batch must be "
            "given image by image."
        )
    floating = np.issubdtype(array.dtype, np.floating)
    _check_dtype(shown, array.dtype == np.uint8, floating, bool(floating and np.isnan(array).any()))
    return _from_pixels(array, shown)


def _from_pixels(array: UInt8[np.ndarray, "height width *channel"], shown: str) -> Image.Image:
    _check_size(array.shape[1], array.shape[0], shown)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), shown)


# ---- checks -----------------------------------------------------------------------------------------------


def _check_dtype(shown: str, is_uint8: bool, is_float: bool, has_nan: bool) -> None:
    if has_nan:
        raise ImageError(f"{shown} contains NaN: find where they come from; pixels must be uint8, 0 to 255.")
    if not is_uint8:
        remedy = "scale it to 0 to 255 and convert it to uint8"
        if is_float:
            remedy = "give (255 * x).round() as uint8 if it lies in [0, 1]; undo a processor's normalisation"
        raise ImageError(
            f"{shown} must be uint8, 0 to 255, because the range of other types is a guess: {remedy}."
        )


def _check_size(width: int, height: int, shown: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{shown} has no pixels ({width}×{height}): give an image of at least 1×1.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{shown} has {width}×{height} = {width * height / 1e6:.0f} megapixels, more than "
            f"{MAX_PIXELS // 10**6}; it is not decoded. Shrink it first: vision towers see less than one "
            "megapixel."
        )


def _check_still(image: Image.Image, shown: str) -> None:
    # JPEG is exempt: phones append depth maps and previews (MPO); the first frame is the photograph
    if image.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(image, "is_animated", False):
        raise ImageError(
            f"{shown} holds several frames: choose one, image.seek(k), and give image.convert('RGB')."
        )


# ---- pixels -----------------------------------------------------------------------------------------------


def _decode(image: Image.Image) -> None:
    """Decodes in full; a truncated file raises even where the caller's process tolerates them."""
    tolerated = ImageFile.LOAD_TRUNCATED_IMAGES
    if not tolerated:
        image.load()
        return
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerated


def _to_rgb(image: Image.Image, shown: str) -> Image.Image:
    file_format = image.format
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image, file_format, shown)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        rgb = Image.new("RGB", seen.size, BACKGROUND)
        rgb.paste(seen, mask=seen)
    else:
        rgb = image.convert("RGB")  # a new image in any case
    rgb.info = {}  # metadata that a later step might apply a second time
    return rgb


def _eight_bit(image: Image.Image, file_format: str | None, shown: str) -> Image.Image:
    # convert("RGB") would clip every value above 255 to white
    if not image.mode.startswith("I;16") and not (image.mode == "I" and file_format in ("PNG", "PPM")):
        raise ImageError(
            f"{shown} has mode {image.mode} (32 bits per pixel), whose range is a guess: scale it to 0 to "
            "255 and give it as uint8."
        )
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{shown} has values outside 0 to 65535: scale it to 0 to 255 and give it as uint8.")
    scaled = values.astype(np.uint32)
    scaled *= 255
    scaled += 32767
    scaled //= 65535
    grey = Image.fromarray(scaled.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: this one grey value is see-through
        opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(opaque)))
    return grey
