import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from simplejpeg import decode_jpeg

from tlx.data import pixels
from tlx.data.images import Decoding, UnreadableImage, decode_rgb
from tlx.data.pixels import decode_pixels

FULL = Decoding()
NAME = Path("a.jpg")


def photograph(width: int, height: int) -> Image.Image:
    """Waves of a few pixels and longer, in all colours."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + y / 31), np.cos(x / 57 - y / 7), np.sin((x + y) / 120)]
    return Image.fromarray((120 + 100 * np.stack(waves, -1)).astype(np.uint8))


def encoded(image: Image.Image, suffix: str = "jpeg", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **settings)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("size", [(60, 40), (61, 43), (1, 1)])
@pytest.mark.parametrize(
    ("mode", "settings", "quick"),
    [
        *[("RGB", {"subsampling": kind}, True) for kind in ("4:4:4", "4:2:2", "4:2:0")],
        ("RGB", {"progressive": True}, True), ("RGB", {"keep_rgb": True}, True),
        ("RGB", {"restart_marker_rows": 1}, True), ("RGB", {"exif": exif(6)}, False),
        ("L", {}, False), ("CMYK", {}, False),
    ],
)  # fmt: skip
def test_pixels_are_those_of_decode_rgb(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    settings: dict[str, Any],
    quick: bool,
    size: tuple[int, int],
) -> None:
    """`quick`: by simplejpeg, which is for what needs nothing more."""
    asked = []
    monkeypatch.setattr(pixels, "decode_jpeg", lambda d: asked.append(d) or decode_jpeg(d))
    data = encoded(photograph(*size).convert(mode), **settings)
    expected = np.asarray(decode_rgb(data, NAME))
    found = decode_pixels(data, NAME, FULL)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert asked == [data] * quick


def test_broken_files_are_named_as_ever() -> None:
    data = encoded(photograph(300, 200))
    for broken in (data[:2000], data[:2000] + b"\xff\xd9", b"", b"abc"):
        with pytest.raises(UnreadableImage, match="a.jpg"):
            decode_pixels(broken, NAME, FULL)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((399, 500), (399, 500)),  # less than 4 × 100
        ((400, 600), (200, 300)),
        ((801, 1203), (201, 301)),
        ((1599, 1600), (400, 400)),
        ((1600, 1700), (200, 213)),
        ((3300, 3300), (413, 413)),  # an eighth is the least
    ],
)
def test_large_jpegs_are_decoded_at_a_reduced_size(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    data = encoded(Image.new("RGB", size, (200, 10, 60)), quality=95)
    found = decode_pixels(data, NAME, Decoding(side=100))
    assert (found.shape[2], found.shape[1]) == expected
    assert decode_rgb(data, NAME, Decoding(side=100)).size == expected
    assert (found.float().mean((1, 2)) - torch.tensor([200.0, 10.0, 60.0])).abs().max() < 3
    assert decode_pixels(data, NAME, FULL).shape[1:] == size[::-1]
    png = encoded(Image.new("RGB", (400, 400)), "png")
    assert decode_pixels(png, NAME, Decoding(side=100)).shape[1:] == (400, 400)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_part_that_is_used_decides_the_size(orientation: int) -> None:
    asked = []

    def used(width: int, height: int) -> int:
        asked.append((width, height))
        return 200

    data = encoded(photograph(1600, 1200), exif=exif(orientation))
    found = decode_pixels(data, NAME, Decoding(side=50), used)
    upright = (1600, 1200) if orientation == 1 else (1200, 1600)
    assert set(asked) == {upright}
    assert (found.shape[2], found.shape[1]) == (upright[0] // 2, upright[1] // 2)


def test_a_reduced_size_hardly_changes_the_resized_picture() -> None:
    data = encoded(photograph(1600, 1200), quality=90)
    full, small = (
        decode_rgb(data, NAME, decoding).resize((133, 100), Image.Resampling.BILINEAR)
        for decoding in (FULL, Decoding(side=100))
    )
    difference = np.abs(np.asarray(full).astype(int) - np.asarray(small))
    assert difference.mean() < 1


def test_a_truncated_large_jpeg_is_found_at_a_reduced_size() -> None:
    data = encoded(photograph(1600, 1200))
    for broken in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        with pytest.raises(UnreadableImage):
            decode_pixels(broken, NAME, Decoding(side=100))
