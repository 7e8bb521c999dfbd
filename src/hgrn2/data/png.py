"""Images as PNG, and sheets of grey ones, with nothing but zlib."""

import struct
import zlib
from pathlib import Path

import numpy as np

from hgrn2.files import write_bytes


def sheet(images: np.ndarray, columns: int = 8, scale: int = 1, border: int = 2) -> np.ndarray:
    """Images uint8 [N,H,W] side by side on a grey ground: uint8 [H',W']."""
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = images.shape
    rows = -(-count // columns)
    out = np.full((rows * (height + border) + border, columns * (width + border) + border), 96, dtype=np.uint8)
    for n, image in enumerate(images):
        top, left = border + n // columns * (height + border), border + n % columns * (width + border)
        out[top : top + height, left : left + width] = image
    return out


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image uint8 [H,W] (grey) or [H,W,3] atomically."""
    write_bytes(path, png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """An image uint8 [H,W] or [H,W,1] (grey), or [H,W,3] (colour), as a PNG file."""
    height, width = image.shape[:2]
    lines = image.reshape(height, -1)
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), lines], axis=1).tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    colour = 2 if lines.shape[1] == 3 * width else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
