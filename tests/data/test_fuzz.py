"""Files that were damaged at random are decoded or named: no crash, no hang, no made-up picture."""

import io
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tlx.data.images import UnreadableImage, decode_rgb

SECONDS = 5  # for one file, at most


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Nowhere darker than 60, and no two rows alike."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(seed).integers(0, 60, size=x.shape)
    planes = [70 + x % 150, 75 + (y * 3) % 150, 80 + noise]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def originals() -> list[tuple[str, bytes]]:
    """Name and contents of a file of every format, in two sizes."""
    found = []
    for seed, size in enumerate([(48, 64), (300, 200)]):
        image = photograph(*size, seed)
        frames = {"save_all": True, "append_images": [photograph(*size, 9)]}
        found += [
            ("a.jpg", encoded(image, "jpeg")),
            ("progressive.jpg", encoded(image, "jpeg", progressive=True)),
            ("grey.jpg", encoded(image.convert("L"), "jpeg")),
            ("cmyk.jpg", encoded(image.convert("CMYK"), "jpeg")),
            ("a.png", encoded(image, "png")),
            ("alpha.png", encoded(image.convert("RGBA"), "png")),
            ("palette.png", encoded(image.quantize(64), "png")),
            ("a.gif", encoded(image, "gif", **frames)),
            ("a.bmp", encoded(image, "bmp")),
            ("a.ppm", encoded(image, "ppm")),
            ("a.tga", encoded(image, "tga", compression="tga_rle")),
            ("a.webp", encoded(image, "webp", **frames)),
            ("lossless.webp", encoded(image, "webp", lossless=True)),
            ("a.mpo", encoded(image, "mpo", **frames)),
        ]
        found += [
            (f"{name}.tiff", encoded(image, "tiff", compression=name))
            for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ]
        if features.check("jpg_2000"):
            found.append(("a.jp2", encoded(image, "jpeg2000")))
        if features.check("avif"):
            found.append(("a.avif", encoded(image, "avif", speed=10)))
    return found


def damaged(draw: random.Random, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    name, original = draw.choice(files)
    data = bytearray(original)
    kind = draw.choice(["flips", "truncated", "header", "zeros", "gap"])
    start = draw.randrange(len(data))
    length = draw.randint(1, max(1, len(data) // 4))
    if kind == "flips":
        # half of them in the header, where they do more
        end = draw.choice([len(data), min(len(data), 200)])
        for _ in range(draw.choice([1, 2, 8, 64])):
            data[draw.randrange(end)] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del data[start:]
    elif kind == "header":
        _, other = draw.choice(files)
        length = draw.choice([4, 12, 33, 64, 200, 700])
        data[:length] = other[:length]
    elif kind == "zeros":
        data[start : start + length] = bytes(len(data[start : start + length]))
    else:
        del data[start : start + length]
    return f"{kind}/{name}", bytes(data)


@contextmanager
def time_limit(name: str) -> Iterator[None]:
    """Of processor time, so that a busy machine cannot fail it."""

    def stop(*_: object) -> None:
        raise SystemExit(f"{name} took more than {SECONDS} s")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def filled_rows(image: Image.Image) -> float:
    """The share of rows, from below, that are all black or all mid-grey."""
    pixels = np.asarray(image).reshape(image.height, -1)
    filled = (pixels == 0).all(axis=1) | (pixels == 128).all(axis=1)
    return float(np.cumprod(filled[::-1]).sum() / image.height)


def cannot_tell(name: str) -> bool:
    """Zeros are a picture too where the file has no checksum; in a TIFF, libtiff reads the JPEG."""
    kind, _, file = name.partition("/")
    unchecked = (".jpg", ".mpo", ".bmp", ".ppm", ".tga", ".tiff")
    return file == "jpeg.tiff" or (kind == "zeros" and file.endswith(unchecked))


def outcome(data: bytes, path: Path) -> Image.Image | UnreadableImage:
    try:
        return decode_rgb(data, path)
    except UnreadableImage as error:
        return error


def check(count: int, seed: int) -> None:
    draw, files = random.Random(seed), originals()
    outcomes: Counter[type] = Counter()
    for number in range(count):
        name, data = damaged(draw, files)
        path = Path(f"{number}/{name}")
        with time_limit(str(path)):
            found = outcome(data, path)
        outcomes[UnreadableImage if isinstance(found, UnreadableImage) else Image.Image] += 1
        if isinstance(found, UnreadableImage):
            assert found.path == path
            assert found.reason
        else:
            assert found.mode == "RGB"
            assert filled_rows(found) < 0.1 or cannot_tell(name), path
    assert outcomes[UnreadableImage] > 0.6 * count
    assert outcomes[Image.Image] > 0.1 * count


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")


def test_undamaged_files_are_read() -> None:
    for name, data in originals():
        image = decode_rgb(data, Path(name))
        assert image.size in ((48, 64), (300, 200))
        assert filled_rows(image) == 0, name


def test_four_hundred_damaged_files() -> None:
    check(400, seed=1)


@pytest.mark.slow
def test_ten_thousand_damaged_files() -> None:
    """Of other seeds, about one file in 10,000 gets through: bits of a codec without checksums
    (JPEG, GIF, AVIF) that after the damage do mean black or grey."""
    check(10_000, seed=0)
