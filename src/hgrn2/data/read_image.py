"""One image from bytes or a file: decoded by Pillow, with the wished channels, cut to a square of a wished size."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgrn2.errors import UserError
from hgrn2.files import refuse_special

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
MODES = {1: ("1", "L", "LA"), 3: ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")}
PIXEL_LIMIT = 1 << 26
"""Pixels of one image at most: more is taken for an attack on memory."""
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, struct.error)
"""What Pillow's decoders raise on damaged files."""
BYTE_LIMIT = 1 << 26
"""Bytes of one image's file at most."""


class BadImage(Exception):
    """An image that cannot be read; the message says why, without a name."""


class DecodedImage(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray
    """uint8 [H,W,C]."""
    channels: int
    """Channels that the file had: 1 or 3."""


def pillow() -> Any:
    """The module PIL.Image; a `UserError` where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("image files are read with Pillow, which is missing: pip install 'hgrn2[vision]'") from None
    return Image


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's remarks on odd files (broken EXIF, large images): what matters is refused here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def read_image(data: bytes | Path, size: int, channels: int) -> DecodedImage:
    """Decode an image, turned upright; alpha is dropped.

    Args:
        data: the bytes of the file, or its path.
        size: its shorter side is resized to this (bicubic) and the middle square cut out; 0: as it is.
        channels: 1 or 3; others are converted.

    Raises:
        BadImage: damaged, truncated, of another format, of 16 bits or floats, or too large.
    """
    image_of = pillow()
    try:
        if isinstance(data, Path):
            refuse_special(data)
    except UserError as error:
        raise BadImage(str(error)) from None
    try:
        with image_of.open(data if isinstance(data, Path) else io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > PIXEL_LIMIT:
                raise BadImage(f"{width} × {height} pixels are more than {PIXEL_LIMIT:,}")
            had = next((c for c, modes in MODES.items() if opened.mode in modes), 0)
            if not had:
                raise BadImage(f"pixels of mode {opened.mode} are not read, only 8-bit grey or colour")
            from PIL import ImageOps

            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except (*DAMAGED, image_of.DecompressionBombError) as error:
        raise BadImage(_reason(error)) from None
    pixels = np.asarray(_square(image, size) if size else image)
    return DecodedImage(pixels[:, :, None] if channels == 1 else pixels, had)


def _reason(error: Exception) -> str:
    text = str(error)
    return "not an image of a known format" if text.startswith("cannot identify") else text or type(error).__name__


def _square(image: Any, size: int) -> Any:
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1:
        image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), pillow().BICUBIC)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))
