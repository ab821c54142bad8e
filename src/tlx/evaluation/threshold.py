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
    best, reached = _best(right, wrong, aim)
    lower = values[best + 1] if best + 1 < len(values) else 0.0
    return Decision(positive, float((values[best] + lower) / 2), aim, reached)


def _best(right: NDArray[np.int64], wrong: NDArray[np.int64], text: str) -> tuple[int, float]:
    """The place, among falling thresholds, of the one that serves the aim, and what it reaches."""
    aim = parse_aim(text)
    recall, precision = right / right[-1], right / (right + wrong)
    scores = {
        "f1": 2 * right / (right[-1] + right + wrong),
        "youden": recall - wrong / wrong[-1],
        "recall": recall,
        "precision": precision,
    }[aim.name]
    if aim.name in ("f1", "youden"):
        best = int(np.argmax(scores))
    elif aim.name == "recall":
        best = int(np.argmax(recall >= aim.level))  # reached at the latest by the lowest
    else:
        fits = precision >= aim.level
        if not fits.any():
            log.warning("threshold=%s cannot be reached on val; the best precision there is %.4f.",
                        text, precision.max())  # fmt: skip
            fits = precision == precision.max()
        best = int(np.flatnonzero(fits)[np.argmax(recall[fits])])
    return best, float(scores[best])
