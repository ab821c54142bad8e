"""Figures of how a run learned."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tlx.evaluation.history import History, smooth
from tlx.evaluation.style import PALETTE, SPLIT_COLOURS, panel, short, shorten, styled

SMOOTHING = 0.8
LONG = 30  # epochs from which curves are smoothed: at first that lags behind them
_MOST_RATES = 7


@styled
def learning_curves(history: History, metric: str) -> Figure:
    """`metric` is loss or accuracy, of train and val: of each epoch; where there are LONG or more,
    thin, with each stage smoothed (bold).
    """
    figure, axes = panel()
    for split in ("train", "val"):
        if f"{split}/{metric}" not in history.series:
            continue
        steps, values = history.series[f"{split}/{metric}"]
        epochs, colour = history.epochs(steps), SPLIT_COLOURS[split]
        if len(values) < LONG:
            axes.plot(epochs, values, color=colour, marker="o", markersize=2.5, label=split)
            continue
        axes.plot(epochs, values, color=colour, alpha=0.55, linewidth=1, marker="o", markersize=2.5)
        ends = np.searchsorted(steps, [start for _, start in history.stages[1:]], side="right")
        parts = [smooth(part, SMOOTHING) for part in np.split(values, ends) if len(part)]
        axes.plot(epochs, np.concatenate(parts), color=colour, label=split)
    axes.set_ylabel(metric)
    _finish(axes, history)
    axes.legend(loc="best")
    return figure


@styled
def learning_rates(history: History) -> Figure:
    """One line per layer group; where they are many, of the first, the last and some between."""
    figure, axes = panel()
    tags = [tag for tag in history.series if tag.startswith("lr/")]
    kept = np.unique(np.linspace(0, len(tags) - 1, min(len(tags), _MOST_RATES)).astype(int))
    lowest = np.inf
    names = shorten([tags[i].removeprefix("lr/") for i in kept])
    for colour, i, name in zip(PALETTE, kept, names, strict=False):
        steps, values = history.series[tags[i]]
        shown = np.where(values > 0, values, np.nan)  # a rate of 0 has no place on this axis
        axes.plot(
            history.epochs(steps),
            shown,
            color=colour,
            label=name,
            linewidth=1.5,
            marker="o",
            markersize=2,
        )
        lowest = min(lowest, np.nanmin(shown, initial=np.inf))
    if np.isfinite(lowest):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
    left_out = f" ({len(kept)} of {len(tags)} groups)" if len(kept) < len(tags) else ""
    axes.set_ylabel(f"learning rate{left_out}")
    _finish(axes, history)
    axes.legend(loc="best", ncols=2 if len(kept) > 4 else 1)
    return figure


def _finish(axes: Axes, history: History) -> None:
    """Epochs below; a line and a name where a stage begins."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.set_xlim(0, None)
    starts = history.epochs(np.array([step for _, step in history.stages], dtype=np.int64))
    for number, ((name, _), start) in enumerate(zip(history.stages, starts, strict=True)):
        if number > 0:
            axes.axvline(start, color="#8A8F98", linewidth=0.9, linestyle=(0, (4, 3)))
        if len(history.stages) <= 6:
            axes.annotate(short(name), (start, 1.02), fontsize=8, color="#4A5058",
                          xycoords=("data", "axes fraction"), va="bottom")  # fmt: skip
