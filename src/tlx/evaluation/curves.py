"""ROC and precision–recall: areas and points, of one class against the rest.

Everywhere `scores` are (n,) and `positive` (n,) bool. Equal scores count as one threshold.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def areas(scores: Array, positive: Mask) -> tuple[float | None, float | None]:
    """ROC AUC and average precision; None where no image, or every one, is positive.

    Average precision is the step-wise sum, without interpolation, as scikit-learn has it.
    """
    hits = np.sort(scores[positive])
    p, n = len(hits), len(scores)
    if p in (0, n):
        return None, None
    ordered = np.sort(scores)
    below, up_to = np.searchsorted(ordered, hits), np.searchsorted(ordered, hits, side="right")
    ranks = (below + up_to + 1) / 2  # of equal scores, the mean
    roc_auc = (ranks.sum() - p * (p + 1) / 2) / (p * (n - p))
    precision = (p - np.searchsorted(hits, hits)) / (n - below)
    return float(roc_auc), float(precision.mean())


def counts(scores: Array, positive: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Right and wrong positives when all scores from a threshold on are called positive.

    The thresholds are the distinct scores, falling.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # of each group of equals
    right = np.cumsum(positive[order], dtype=np.int64)[last]
    return right, last + 1 - right, ordered[last]


def roc_curve(scores: Array, positive: Mask) -> tuple[Array, Array]:
    """False and true positive rates, from (0, 0) to (1, 1); both kinds must occur."""
    right, wrong, _ = counts(scores, positive)
    return np.append(0.0, wrong / wrong[-1]), np.append(0.0, right / right[-1])


def precision_recall_curve(scores: Array, positive: Mask) -> tuple[Array, Array]:
    """Precision and recall, recall rising from 0; some image must be positive."""
    right, wrong, _ = counts(scores, positive)
    return np.append(1.0, right / (right + wrong)), np.append(0.0, right / right[-1])
