"""Figures of merit of predictions, from probabilities and true classes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def evaluate(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, Any]:
    """What metrics.json says of a split; (n, classes) probabilities, (n,) class indices.

    `loss` is the mean negative log-likelihood in nats, `macro_f1` the mean over the classes that
    occur in the labels or the predictions (a class never predicted counts 0).
    """
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == labels).sum())
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "n": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_ci95": list(wilson(correct, len(labels))),
        "macro_f1": macro_f1(predicted, labels),
        "loss": float(-np.log(np.clip(likelihood, 1e-15, None)).mean()),
    }


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927)."""
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def macro_f1(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    scores = []
    for cls in np.union1d(predicted, labels):
        hits = np.sum((predicted == cls) & (labels == cls))
        scores.append(2 * hits / (np.sum(predicted == cls) + np.sum(labels == cls)))
    return float(np.mean(scores))
