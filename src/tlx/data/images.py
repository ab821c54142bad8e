"""From a file to an upright RGB image, or an error that names the file. Never a black picture.

Read are AVIF, BMP, GIF, JPEG, JPEG 2000, MPO, PNG, PNM, TIFF, WebP, whatever the file is called,
and TGA by its name. Of several frames or pages the first counts. 16-bit grey is scaled to 8 bits;
of 16-bit colour Pillow keeps the upper 8 (so v >> 8, at most one level darker than rounding).
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from tlx.data.completeness import check_complete
from tlx.errors import UserError

# Not all that Pillow opens: EPS, for one, would run Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's limit too, as RGB 256 MB; above, it only warns, up to twice this

# They are about metadata that no pixel depends on, or about what is refused here anyway.
for category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=category, module=r"PIL\.")

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


# of a picture's width and height, the shorter side of the part that will be used
Used = Callable[[int, int], int]


@dataclass(frozen=True)
class Decoding:
    """What transparent pixels lie on, and whether colours go by the image's own ICC profile.

    `side`: the pixels that the shorter side will be resized to. A JPEG that has at least 4 times
    as many is decoded at a half, a quarter or an eighth, the smallest with 2 times as many.
    """

    alpha: Literal["white", "black"] = "white"
    icc: bool = False
    side: int | None = None


class UnreadableImage(UserError):  # noqa: N818 — it is what the user is told, not a mechanism
    """An image that cannot be decoded in full."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot read the image {path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.reason)  # it crosses processes


def load_rgb(path: Path, decoding: Decoding = Decoding()) -> Image.Image:
    """The image of a file as `decode_rgb` makes it. Raises UnreadableImage."""
    return decode_rgb(read(path), path, decoding)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error


def decode_rgb(data: bytes, path: Path, decoding: Decoding = Decoding()) -> Image.Image:
    """Mode RGB, turned as its EXIF says.

    `path` names the image in errors. Raises UnreadableImage when it is truncated, broken, has more
    than MAX_PIXELS, or is of a kind without a known range of values.
    """
    with opened(data, path) as image:
        return decoded(image, data, decoding)


@contextmanager
def opened(data: bytes, path: Path) -> Iterator[Image.Image]:
    """The image before it is decoded; what goes wrong inside becomes UnreadableImage."""
    if not data:
        raise UnreadableImage(path, "the file is empty")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries switch it on for the whole process
    try:
        with Image.open(io.BytesIO(data), formats=_formats(path.suffix)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, "not an image, or of an unknown format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(
            path, f"more than {MAX_PIXELS:,} pixels (a decompression bomb?); save it smaller"
        ) from error
    except MemoryError:  # the machine's fault, which passes
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on broken data
        raise UnreadableImage(path, str(error) or type(error).__name__) from error


def decoded(image: Image.Image, data: bytes, decoding: Decoding, used: Used = min) -> Image.Image:
    if (scale := reduction(image, decoding, used)) > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    check_complete(image, data)
    return _to_rgb(_upright(image), decoding)


def reduction(image: Image.Image, decoding: Decoding, used: Used) -> int:
    """How many times smaller it is decoded: 1, 2, 4 or 8."""
    if decoding.side is None or image.format not in ("JPEG", "MPO"):
        return 1
    width, height = image.size
    turned = orientation(image) in SIDEWAYS
    scale = used(*(height, width) if turned else (width, height)) // (2 * decoding.side)
    return max((power for power in (2, 4, 8) if power <= scale), default=1)


@cache
def _formats(suffix: str) -> tuple[str, ...]:
    Image.init()
    # TGA has no signature: any bytes may pass for it
    wanted = (*FORMATS, "TGA") if suffix.lower() == ".tga" else FORMATS
    return tuple(name for name in wanted if name in Image.OPEN)  # AVIF: from Pillow 11.3 on


def orientation(image: Image.Image) -> int | None:
    """EXIF's, where it has one that turns or mirrors the image."""
    try:
        found = image.getexif().get(0x0112)
    except Exception:  # broken metadata say nothing about the pixels
        return None
    return found if isinstance(found, int) and found in UPRIGHT else None


def _upright(image: Image.Image) -> Image.Image:
    found = orientation(image)
    if found is None:
        return image
    turned = image.transpose(UPRIGHT[found])
    turned.info = dict(image.info)
    return turned


def _to_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    profile = image.info.get("icc_profile") if decoding.icc else None
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if profile:
        image = _to_srgb(image.convert("RGB") if alpha or image.mode == "P" else image, profile)
    if image.mode != "RGB":  # converting to the same mode makes a copy
        image = image.convert("RGB")
    if alpha is None:
        return image
    image.putalpha(alpha)
    below = Image.new("RGBA", image.size, decoding.alpha)
    return Image.alpha_composite(below, image).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """0…65535 to 0…255, rounded; Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    highest = 4095 if tags.get(258) == (12,) else 65535  # TIFF's BitsPerSample
    if values.min() < 0 or values.max() > highest:
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    scaled = Image.fromarray(((values * 255 + highest // 2) // highest).astype(np.uint8))
    scaled.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return scaled


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours by the profile; one for another kind of colour than the image has is passed over."""
    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = own.profile.xcolor_space.strip()
        if space == "RGB" and image.mode in ("1", "L"):
            image = image.convert("RGB")  # grey pictures often keep the profile they had in colour
        if space != {"L": "GRAY"}.get(image.mode, image.mode):
            return image
        converted = ImageCms.profileToProfile(image, own, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(
            f"its ICC profile is broken ({error}); remove it or set data.icc=false"
        ) from error
    assert converted is not None
    return converted


@cache
def _srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")
