"""From a file to an upright RGB image, or an error that names the file. Never a black picture."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tlx.errors import UserError


class UnreadableImage(UserError):  # noqa: N818 — it is what the user is told, not a mechanism
    """An image that cannot be decoded in full."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot read the image {path}: {reason}")
        self.path = path
        self.reason = reason


def load_rgb(path: Path) -> Image.Image:
    """The image of a file as `decode_rgb` makes it. Raises UnreadableImage."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error
    return decode_rgb(data, path)


def decode_rgb(data: bytes, path: Path) -> Image.Image:
    """Mode RGB: turned as its EXIF says, transparency on white, 16-bit grey scaled to 8-bit.

    `path` only names the image in errors. Raises UnreadableImage when it is truncated, broken,
    too large for Pillow's limit, or of a kind without a known range of values.
    """
    if not data:
        raise UnreadableImage(path, "the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, "not an image, or of an unknown format") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken data
        raise UnreadableImage(path, str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _sixteen_to_eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    """0…65535 to 0…255; Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 × 257
