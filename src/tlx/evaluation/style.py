"""How every figure looks, and how it becomes bytes. No display, no pyplot, no global state."""

import base64
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

P = ParamSpec("P")

# Okabe and Ito's colours, which people with any colour vision tell apart; yellow is left out.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY, BLACK = PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8A8F98", "#20242A",
)  # fmt: skip
SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
WIDTH, HEIGHT = 4.5, 3.1  # inches; at 96 dpi one figure fills a phone, two stand side by side
_LARGEST_SVG = 120_000  # bytes; more marks than that are smaller as pixels
_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
_STYLE: Any = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "text.parse_math": False,  # a class may be called $5$
    "text.color": BLACK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#4A5058",
    "axes.edgecolor": "#B8BDC4",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E8EAED",
    "grid.linewidth": 0.8,
    "xtick.color": "#B8BDC4",
    "ytick.color": "#B8BDC4",
    "xtick.labelcolor": "#4A5058",
    "ytick.labelcolor": "#4A5058",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: the reader's fonts have the scripts ours lacks
    "svg.hashsalt": "tlx",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the one style, whatever the user's matplotlibrc says."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return drawn


def panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure, in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def printable(text: str) -> str:
    """Without characters that are control codes or half of one, which no file can hold."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def short(text: str, length: int = 16) -> str:
    """Without its middle where it is longer: names that begin alike often end differently."""
    return _without_middle(printable(text), length, (length - 1) // 2)


def shorten(texts: Sequence[str], length: int = 16) -> list[str]:
    """All `short` in the same way, and distinct: by another cut, or else somewhat longer."""
    texts = [printable(text) for text in texts]
    for size in range(length, max(map(len, texts), default=0)):
        for end in sorted(range(size), key=lambda end: abs(end - (size - 1) // 2)):
            found = [_without_middle(text, size, end) for text in texts]
            if len(set(found)) == len(set(texts)):
                return found
    return texts


def _without_middle(text: str, length: int, end: int) -> str:
    """Of a longer text the last `end` characters, and as many of the first as it may have."""
    cut = len(text) - end
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[cut:]}"


def pixels(figure: Figure, dpi: int = 144) -> NDArray[np.uint8]:
    """(H, W, 3), for TensorBoard."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(_saved(figure, "png", dpi))).convert("RGB"))


def data_uri(figure: Figure) -> str:
    """As SVG, or as PNG where that would be large."""
    svg = _with_system_fonts(_saved(figure, "svg", 96))
    if len(svg) <= _LARGEST_SVG:
        return uri("image/svg+xml", svg)
    return uri("image/png", _saved(figure, "png", 160))


def uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _saved(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def _with_system_fonts(svg: bytes) -> bytes:
    """Those of the page around it; all are narrower than the one the layout was made for."""
    text = svg.decode("utf-8")
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", rf"\1 {_FONTS}", text)
    return re.sub(r"(font-family:)[^;\"]*", rf"\1 {_FONTS}", text).encode("utf-8")
