"""Figures of how good a classifier is and of the images it learned from, out of plain arrays.

Every function returns a matplotlib Figure; `style.data_uri` and `style.pixels` make files of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tlx.evaluation.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    PALETTE,
    SPLIT_COLOURS,
    VERMILION,
    WIDTH,
    panel,
    printable,
    shorten,
    styled,
)  # fmt: skip

MOST_CLASSES = 20  # more are no longer readable; the figure says what it leaves out
MOST_SHARES = len(PALETTE)
_SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#8FC1E0", BLUE])


@styled
def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """(C, C), a row per true class. Numbers are images; the shade is their share of the row."""
    errors = counts - np.diag(np.diag(counts))
    involved = np.argsort(-(errors.sum(0) + errors.sum(1)), kind="stable")[:MOST_CLASSES]
    kept = np.sort(involved)
    shown, names = counts[np.ix_(kept, kept)], shorten([classes[i] for i in kept], 14)
    side = WIDTH if len(kept) <= 10 else 1.4 * WIDTH
    figure, axes = panel(side, side * 0.86)
    rows = counts[kept].sum(axis=1, keepdims=True)
    shares = shown / np.maximum(rows, 1)
    axes.imshow(shares, cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    size = 10 if len(kept) <= 4 else 8.5 if len(kept) <= 10 else 6.5
    for (row, column), count in np.ndenumerate(shown):
        if count > 0 or len(kept) <= 10:
            text = f"{count}\n{shares[row, column]:.0%}" if len(kept) <= 6 else str(count)
            colour = "white" if shares[row, column] > 0.6 else BLACK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    long = len(kept) > 4 or max(map(len, names), default=0) > 12
    axes.set_xticks(range(len(kept)), names, rotation=90 if long else 0)
    axes.set_yticks(range(len(kept)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if len(kept) < len(classes):
        axes.set_title(f"The {len(kept)} most confused of {len(classes)} classes", fontsize=9)
    return figure


@styled
def reliability(
    confidence: NDArray[np.float64], share: NDArray[np.float64], count: NDArray[np.int64]
) -> Figure:
    """Of each bin: mean confidence, share that is right, number of images (NaN where none)."""
    figure, axes = panel()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    filled = count > 0
    size = 14 + 150 * count[filled] / max(1, count.max())
    axes.plot(confidence[filled], share[filled], color=BLUE, linewidth=1, alpha=0.6)
    axes.scatter(confidence[filled], share[filled], s=size, color=BLUE, linewidths=0, alpha=0.85)
    low = max(0.0, float(confidence[filled].min(initial=1.0)) - 0.06)
    axes.set(xlim=(low, 1.02), ylim=(-0.03, 1.04), xlabel="probability the classifier gives",
             ylabel="share that is right")  # fmt: skip
    axes.grid()
    return figure


@styled
def curves(
    points: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    x: str,
    y: str,
    chance: bool = False,
) -> Figure:
    """One line per name, of (x, y): ROC and precision-recall curves. `chance` is the diagonal."""
    figure, axes = panel()
    if chance:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for colour, (name, (across, up)) in zip(PALETTE, points.items(), strict=False):
        axes.plot(across, up, color=colour, label=printable(name), linewidth=1.5)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xlabel=x, ylabel=y)
    axes.grid()
    if len(points) > len(PALETTE):
        axes.set_title(f"The first {len(PALETTE)} of {len(points)} classes", fontsize=9)
    columns = 2 if len(points) > 1 else 1
    rows = -(-min(len(points), len(PALETTE)) // columns)
    figure.set_figheight(HEIGHT + 0.18 * rows)  # below the axes, whose height stays
    figure.legend(loc="outside lower left", ncols=columns, columnspacing=1)
    return figure


@styled
def class_distribution(counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str]) -> Figure:
    """Images per class, as bars of train, val and test: the counts by split."""
    total = np.sum(list(counts.values()), axis=0)
    kept = np.argsort(-total, kind="stable")[:MOST_CLASSES]
    figure, axes = panel(height=max(1.6, 0.9 + 0.24 * len(kept)))
    left = np.zeros(len(kept))
    for split, numbers in counts.items():
        width = numbers[kept]
        axes.barh(range(len(kept)), width, left=left, color=SPLIT_COLOURS[split], label=split,
                  height=0.7)  # fmt: skip
        left += width
    axes.set_yticks(range(len(kept)), shorten([classes[i] for i in kept]))
    for row, number in enumerate(left.astype(int)):
        axes.annotate(f"{number:,}", (number, row), (4, 0), textcoords="offset points",
                      va="center", fontsize=8, color="#4A5058")  # fmt: skip
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.13)
    axes.set_xlabel("images")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.0 + 0.3 / (0.24 * len(kept) + 0.6)),
                ncols=3, handlelength=1, borderaxespad=0)  # fmt: skip
    if len(kept) < len(classes):
        axes.set_xlabel(f"images; the {len(kept)} largest of {len(classes)} classes")
    return figure


@styled
def class_shares(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Images per class as a ring, of at most MOST_SHARES classes."""
    figure, axes = panel(height=2.6)
    order = np.argsort(-counts, kind="stable")
    names, total = shorten([classes[i] for i in order]), max(1, counts.sum())
    labels = [f"{name}  {counts[i] / total:.1%}" for name, i in zip(names, order, strict=True)]
    if counts.any():
        wedges, *_ = axes.pie(
            counts[order], colors=PALETTE[: len(order)], startangle=90, counterclock=False,
            wedgeprops={"width": 0.42, "edgecolor": "white"},
        )  # fmt: skip
        figure.legend(wedges, labels, loc="outside right center")
    return figure


@styled
def embedding(
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    explained: tuple[float, float],
    right: NDArray[np.bool_],
) -> Figure:
    """Points (n, 2) by true class; what was predicted wrongly is a cross. `explained`: shares."""
    figure, axes = panel(height=3.6)
    common = np.argsort(-np.bincount(labels, minlength=len(classes)), kind="stable")[:7]
    others = ~np.isin(labels, common)
    names = shorten([classes[c] for c in common])
    groups = [
        (name, labels == c, colour) for name, c, colour in zip(names, common, PALETTE, strict=False)
    ]
    if others.any():
        groups.append((f"{len(classes) - len(common)} other classes", others, "#C9CDD3"))
    for name, members, colour in reversed(groups):
        for chosen, marker, alpha in ((right, "o", 0.55), (~right, "X", 0.95)):
            these = points[members & chosen]
            size = 16 if marker == "o" else 26
            axes.scatter(these[:, 0], these[:, 1], s=size, color=colour,
                         marker=marker, alpha=alpha, linewidths=0.3, edgecolors="w")  # fmt: skip
        axes.scatter([], [], color=colour, s=16, label=name)
    axes.set(xlabel=f"first component ({explained[0]:.0%} of the variance)",
             ylabel=f"second ({explained[1]:.0%})")  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    handles, texts = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], texts[::-1], loc="best", handletextpad=0.2)
    return figure


@styled
def image_grid(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str] = (),
    *,
    columns: int = 4,
    right: Sequence[bool] | None = None,
) -> Figure:
    """(H, W, 3) images with a line or two of text below each: green where `right`, else red."""
    rows = -(-len(images) // columns)
    width = WIDTH * columns / 4
    lines = max((len(caption.split("\n")) for caption in captions), default=0)
    figure, first = panel(width, rows * (width / columns + 0.08 + 0.16 * lines))
    first.remove()
    for i, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image)
        axes.set_axis_off()
        if captions:
            colour = BLACK if right is None else GREEN if right[i] else VERMILION
            text = "\n".join(printable(line) for line in captions[i].split("\n"))
            axes.set_title(text, fontsize=6.5, color=colour, loc="center", y=-0.1, va="top")
    return figure
