"""Figures of merit of predictions, from probabilities and true classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.evaluation.calibration import brier, negative_log_likelihood, reliability
from tlx.evaluation.curves import areas
from tlx.evaluation.intervals import FEWEST, macro_f1_interval, wilson

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
MOST_IN_CONFUSION = 100  # classes; the matrix of more is not written


def evaluate(
    probabilities: Array,
    labels: Labels,
    classes: Sequence[str],
    *,
    predicted: Labels | None = None,
    positive: int = 1,
) -> dict[str, Any]:
    """What metrics.json says of a split; (n, classes) probabilities, (n,) class indices.

    `predicted` (default: the likeliest) counts for accuracy and the scores by class. `loss` is the
    mean negative log-likelihood in nats. The macro averages are over the classes that occur in
    the labels or the predictions; a score without a denominator is 0, as scikit-learn has it. The
    areas are those of the `positive` of two classes, else the mean over the classes.
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    matrix = confusion(labels, predicted, len(classes))
    correct, n = int(matrix.trace()), len(labels)
    by_class = class_scores(matrix)
    ranks = ranks_of_truth(probabilities, labels)
    own_areas = _areas_by_class(probabilities, labels)
    support = matrix.sum(axis=1)
    occurs = support + matrix.sum(axis=0) > 0
    scores = np.stack([by_class[name] for name in ("precision", "recall", "f1")])
    mean = scores[:, occurs].mean(axis=1)
    weighted = scores @ support / n
    interval = macro_f1_interval(matrix)
    return {
        "n": n,
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson(correct, n)),
        "balanced_accuracy": float(by_class["recall"][support > 0].mean()),
        **{f"top{k}_accuracy": float(np.mean(ranks < k)) for k in (2, 5) if k < len(classes)},
        "macro_f1": float(mean[2]),
        "macro_f1_ci95": None if interval is None else list(interval),
        "macro": dict(zip(("precision", "recall", "f1"), mean.tolist(), strict=True)),
        "weighted": dict(zip(("precision", "recall", "f1"), weighted.tolist(), strict=True)),
        "roc_auc": _overall(own_areas["roc_auc"], positive),
        "average_precision": _overall(own_areas["average_precision"], positive),
        "loss": negative_log_likelihood(probabilities, labels),
        "brier": brier(probabilities, labels),
        "ece": reliability(probabilities, labels).ece,
        "per_class": {
            name: _of_class(i, matrix, by_class, own_areas) for i, name in enumerate(classes)
        },
        "confusion": matrix.tolist() if len(classes) <= MOST_IN_CONFUSION else None,
        "notes": _notes(matrix, classes, with_interval=interval is not None),
    }


def confusion(labels: Labels, predicted: Labels, classes: int) -> Labels:
    """Counts (classes, classes): rows are the truth, columns the prediction."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_scores(matrix: Labels) -> dict[str, Array]:
    """Precision, recall and F1 of every class; 0 where the denominator is."""
    hits, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(truth, 1),
        "f1": 2 * hits / np.maximum(truth + predicted, 1),
    }


def _of_class(
    i: int, matrix: Labels, scores: dict[str, Array], own_areas: dict[str, list[float | None]]
) -> dict[str, Any]:
    support = int(matrix[i].sum())
    return {
        **{key: float(values[i]) for key, values in scores.items()},
        "support": support,
        "predicted": int(matrix[:, i].sum()),
        "recall_ci95": list(wilson(int(matrix[i, i]), support)) if support else None,
        **{key: values[i] for key, values in own_areas.items()},
    }


def ranks_of_truth(probabilities: Array, labels: Labels) -> NDArray[np.intp]:
    """How many classes come before the true one; of equals the later ones, as in scikit-learn."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    ranks: NDArray[np.intp] = np.count_nonzero(probabilities > own, axis=1)
    rows, columns = np.nonzero(probabilities == own)
    np.add.at(ranks, rows, columns > labels[rows])
    return ranks


def _areas_by_class(probabilities: Array, labels: Labels) -> dict[str, list[float | None]]:
    columns = np.ascontiguousarray(probabilities.T)
    pairs = [areas(column, labels == i) for i, column in enumerate(columns)]
    return {"roc_auc": [a for a, _ in pairs], "average_precision": [b for _, b in pairs]}


def _overall(values: Sequence[float | None], positive: int) -> float | None:
    if len(values) == 2:
        return values[positive]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _notes(matrix: Labels, classes: Sequence[str], *, with_interval: bool) -> list[str]:
    """What a reader of the numbers must know."""
    truth, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    notes = []
    if len(absent := np.flatnonzero(truth == 0)):
        notes.append(
            f"No image of {_named(absent, classes)}: no recall, and no area under a curve."
        )
    if len(called := np.flatnonzero((truth == 0) & (predicted > 0))):
        notes.append(
            f"No image of {_named(called, classes)}, yet predicted: its F1 of 0 counts in macro F1."
        )
    if len(never := np.flatnonzero((predicted == 0) & (truth > 0))):
        notes.append(f"Never predicted: {_named(never, classes)}; precision and F1 count 0.")
    if not with_interval:
        notes.append(
            f"Fewer than {FEWEST} images of a class on average: macro F1 has no 95 % interval."
        )
    if len(classes) > MOST_IN_CONFUSION:
        notes.append(
            "metrics.json leaves the confusion matrix out: it follows from the predictions file."
        )
    return notes


def _named(indices: NDArray[np.intp], classes: Sequence[str], most: int = 10) -> str:
    names = ", ".join(classes[i] for i in indices[:most])
    return names + (f" and {len(indices) - most} more" if len(indices) > most else "")
