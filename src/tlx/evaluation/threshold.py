"""The threshold of a run with two classes, chosen on val for a stated aim."""

import logging

import numpy as np
from numpy.typing import NDArray

from tlx.evaluation.curves import counts
from tlx.models.decision import Decision, parse_aim

log = logging.getLogger(__name__)


def choose_threshold(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, positive: int, aim: str
) -> Decision:
    """Reaches `aim` on these images; warns and comes nearest where none does.

    It lies half-way to the next lower probability that occurs, so that an image on the brink does
    not change sides by a rounding error.
    """
    scores, truth = probabilities[:, positive], labels == positive
    if truth.all() or not truth.any():
        log.warning("threshold=%s: val has one of the two classes only; 0.5 is used.", aim)
        return Decision(positive, 0.5, aim)
    right, wrong, values = counts(scores, truth)
    best = _best(right, wrong, aim)
    lower = values[best + 1] if best + 1 < len(values) else 0.0
    return Decision(positive, float((values[best] + lower) / 2), aim)


def _best(right: NDArray[np.int64], wrong: NDArray[np.int64], text: str) -> int:
    """The place, among falling thresholds, of the one that serves the aim."""
    aim = parse_aim(text)
    recall, precision = right / right[-1], right / (right + wrong)
    if aim.name == "f1":
        return int(np.argmax(2 * right / (right[-1] + right + wrong)))
    if aim.name == "youden":
        return int(np.argmax(recall - wrong / wrong[-1]))
    if aim.name == "recall":
        return int(np.argmax(recall >= aim.level))  # reached at the latest by the lowest
    fits = precision >= aim.level
    if not fits.any():
        log.warning("threshold=%s cannot be reached on val; the best precision there is %.4f.",
                    text, precision.max())  # fmt: skip
        fits = precision == precision.max()
    return int(np.flatnonzero(fits)[np.argmax(recall[fits])])
