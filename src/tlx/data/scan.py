"""Every image read in full, once: whether it decodes, its bytes, its size and its looks."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from tlx.data.images import Decoding, UnreadableImage, decode_rgb
from tlx.data.manifest import Manifest
from tlx.data.parallel import shared_out
from tlx.data.scan_cache import ScanCache, Stamp, stamp
from tlx.errors import UserError

SIDE = 32  # pixels of a thumbnail
GREY_SPREAD = 3  # levels between the channels that rounding can make of a grey picture
BATCH = 1000  # files after which results are kept, lest an interrupted scan has to start again


@dataclass(frozen=True, slots=True)
class Scanned:
    """`width` and `height` in pixels, upright; `mean` and `deviation` are of the grey levels.

    `phash` is the 64-bit perceptual hash, 16 hex digits; `thumbnail` is what it is made of,
    32×32 grey levels row by row.
    """

    sha256: str
    width: int
    height: int
    phash: str
    mean: float
    deviation: float
    is_grey: bool
    thumbnail: bytes = field(repr=False)


Result = Scanned | UnreadableImage


def scan(root: Path, paths: Sequence[str], decode: Decoding | None = None) -> dict[str, Result]:
    """What is in each file, in the order of `paths`; an error in place of what cannot be read.

    Results are kept between calls: only files of another size or time are read again.
    """
    decode = replace(decode or Decoding(), side=None)  # all of the picture is looked at
    results: dict[str, Result | None] = dict.fromkeys(paths)
    with ScanCache(root, f"{decode} Pillow {PIL.__version__}") as cache:
        new: list[tuple[str, Stamp]] = []
        for path in results:
            try:
                at = stamp(root / path)
            except OSError as error:
                results[path] = _unreadable(root / path, error)
                continue
            if (row := cache.find(path, at)) is None:
                new.append((path, at))
            else:
                results[path] = _from_row(root / path, row)
        with shared_out(len(new)) as map_over_cores:
            read = map_over_cores(partial(_read, root, decode), (path for path, _ in new))
            rows = []
            try:
                for (path, at), (result, lasts) in zip(new, read, strict=True):
                    results[path] = result
                    if lasts:
                        rows.append((path, at, _to_row(result)))
                    if len(rows) == BATCH:
                        cache.keep(rows)
                        rows = []
            finally:
                cache.keep(rows)
    return results  # type: ignore[return-value]


def _read(root: Path, decode: Decoding, path: str) -> tuple[Result, bool]:
    """What is in a file, and whether it will be as long as the file does not change."""
    try:
        data = (root / path).read_bytes()
        return examine(data, root / path, decode), True
    except UnreadableImage as error:
        return error, True
    except OSError as error:
        return _unreadable(root / path, error), False
    except MemoryError:
        return UnreadableImage(root / path, "there was not enough memory"), False


def _unreadable(path: Path, error: OSError) -> UnreadableImage:
    return UnreadableImage(path, error.strerror or str(error))


def _to_row(result: Result) -> tuple[Any, ...]:
    if isinstance(result, UnreadableImage):
        return (result.reason, *[None] * 8)
    return ("", *astuple(result))


def _from_row(path: Path, row: tuple[Any, ...]) -> Result:
    reason, sha256, width, height, phash, mean, deviation, is_grey, thumbnail = row
    if reason:
        return UnreadableImage(path, reason)
    return Scanned(sha256, width, height, phash, mean, deviation, bool(is_grey), thumbnail)


def examine(data: bytes, path: Path, decode: Decoding) -> Scanned:
    """Raises UnreadableImage."""
    image = decode_rgb(data, path, decode)
    grey = image.convert("L")
    counts = np.array(grey.histogram())
    mean = counts @ _LEVELS / counts.sum()
    variance = counts @ (_LEVELS - mean) ** 2 / counts.sum()
    # bilinear over all pixels: a copy in another size then has the same thumbnail
    bilinear = Image.Resampling.BILINEAR
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), bilinear, reducing_gap=2.0))
    colours = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    red, green, blue = (np.asarray(channel) for channel in colours.split())
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return Scanned(
        sha256=hashlib.sha256(data).hexdigest(),
        width=image.width,
        height=image.height,
        phash=perceptual_hash(thumbnail),
        mean=float(mean),
        deviation=float(variance**0.5),
        is_grey=bool(spread.max() <= GREY_SPREAD),
        thumbnail=thumbnail.tobytes(),
    )


_LEVELS = np.arange(256)
_FREQUENCIES, _PIXELS = np.arange(8)[:, None], np.arange(SIDE)[None]
_DCT: NDArray[np.float64] = np.cos(np.pi * _FREQUENCIES * (2 * _PIXELS + 1) / (2 * SIDE))


def perceptual_hash(thumbnail: NDArray[np.uint8]) -> str:
    """Which of the 8×8 lowest frequencies are above their median, 16 hex digits (Zauner 2010)."""
    low = _DCT @ thumbnail @ _DCT.T
    ordered = np.sort(low, axis=None)
    return np.packbits(low > (ordered[31] + ordered[32]) / 2).tobytes().hex()


def verify(manifest: Manifest) -> None:
    """Raises UserError that names the files changed or missing since the manifest was written."""
    with ScanCache(manifest.root, "") as cache, ThreadPoolExecutor() as pool:
        digests = {}
        for sample in manifest.samples:
            try:
                at = stamp(manifest.root / sample.path)
            except OSError:
                digests[sample.path] = "missing"
                continue
            if (known := cache.digest(sample.path, at)) is not None:
                digests[sample.path] = known
        unknown = [s.path for s in manifest.samples if s.path not in digests]
        digests |= zip(unknown, pool.map(partial(_digest, manifest.root), unknown), strict=True)
    wrong = [
        f"  {s.path}: {'missing' if digests[s.path] == 'missing' else 'changed'}"
        for s in manifest.samples
        if digests[s.path] != s.sha256
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        listed = "\n".join(wrong[:10])
        raise UserError(
            f"{len(wrong)} of {len(manifest.samples)} images in {manifest.root} are not as they "
            f"were when the manifest was written:\n{listed}{more}\n"
            "Restore them, or train anew on what there is now."
        )


def _digest(root: Path, path: str) -> str:
    try:
        return hashlib.sha256((root / path).read_bytes()).hexdigest()
    except OSError:
        return "missing"
