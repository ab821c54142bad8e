"""What a report shows: figures, pictures and numbers, in the form its page needs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tlx.data.images import Decoding, UnreadableImage, load_rgb
from tlx.evaluation.style import data_uri, uri

NOTHING = "\N{EN DASH}"
SIDE = 192  # pixels of a picture's longer side


@dataclass(frozen=True)
class ShownFigure:
    """`alt` says what the figure shows to who cannot see it, `caption` what it is."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Picture:
    uri: str
    alt: str
    lines: Sequence[str] = ()


def figure(drawn: Figure, alt: str, caption: str) -> ShownFigure:
    return ShownFigure(data_uri(drawn), alt, caption)


def picture(pixels: NDArray[np.uint8], alt: str, lines: Sequence[str] = ()) -> Picture:
    """Of (H, W, 3), as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return Picture(uri("image/jpeg", buffer.getvalue()), alt, lines)


def thumbnail(path: Path, decoding: Decoding) -> NDArray[np.uint8] | None:
    """(H, W, 3), the longer side at most SIDE; None when the file cannot be read any more."""
    try:
        image = load_rgb(path, decoding)
    except UnreadableImage:
        return None
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def percent(share: float | None, digits: int = 1) -> str:
    return NOTHING if share is None else f"{100 * share:.{digits}f}\u202f%"


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    if bounds is None:
        return NOTHING
    return f"{100 * bounds[0]:.{digits}f} to {percent(bounds[1], digits)}"


def listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def by(width: int, height: int) -> str:
    return f"{width} \N{MULTIPLICATION SIGN} {height}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
