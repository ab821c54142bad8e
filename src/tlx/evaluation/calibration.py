"""Whether probabilities mean what they say, and the temperature that mends them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
BINS = 15
TEMPERATURES = (0.05, 20.0)  # searched between
SMALLEST = float(np.finfo(np.float64).eps)  # a probability in a logarithm is no smaller


@dataclass(frozen=True)
class Reliability:
    """Of each of the bins of equal width, by the probability of the likeliest class."""

    edges: Array  # (bins + 1,)
    counts: Labels  # images
    confidence: Array  # mean; NaN in an empty bin
    accuracy: Array  # share that is right; NaN in an empty bin

    @property
    def ece(self) -> float:
        """The expected calibration error (Guo et al. 2017)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(np.sum(self.counts * gaps) / self.counts.sum())


def reliability(probabilities: Array, labels: Labels, bins: int = BINS) -> Reliability:
    """A confidence on an edge falls into the upper bin, 1.0 into the last."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    known = np.where(counts > 0, counts, np.nan)
    return Reliability(
        edges,
        counts,
        np.bincount(index, confidence, bins) / known,
        np.bincount(index, right, bins) / known,
    )


def negative_log_likelihood(probabilities: Array, labels: Labels) -> float:
    """Mean over the images, in nats."""
    likelihood = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(likelihood, SMALLEST, None)).mean())


def brier(probabilities: Array, labels: Labels) -> float:
    """Mean squared error: of two classes' second one, else summed over the classes."""
    if probabilities.shape[1] == 2:
        return float(np.mean((probabilities[:, 1] - labels) ** 2))
    own = probabilities[np.arange(len(labels)), labels]
    squares = np.einsum("ij,ij->i", probabilities, probabilities)
    return float(np.mean(squares - 2 * own + 1))


def calibrated(probabilities: Array, temperature: float) -> Array:
    """What a softmax of logits / `temperature` gives (Guo et al. 2017); the order stays."""
    if temperature == 1:
        return probabilities
    logits = np.log(np.clip(probabilities, np.finfo(np.float64).tiny, None)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: Array, labels: Labels) -> float | None:
    """The one that makes the labels likeliest; None when there is none within `TEMPERATURES`.

    Newton's method on the sharpness, 1 / temperature, in which the negative log-likelihood is
    convex; a step that leaves the bracket is replaced by its middle.
    """
    if len(labels) == 0:
        return None
    logits = np.log(np.clip(probabilities, np.finfo(np.float64).tiny, None))
    logits -= logits.max(axis=1, keepdims=True)
    truth = float(logits[np.arange(len(labels)), labels].mean())
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if _slope(logits, low)[0] >= truth or _slope(logits, high)[0] <= truth:
        return None
    sharpness = 1.0
    while high / low > 1 + 1e-9:
        mean, curvature = _slope(logits, sharpness)
        low, high = (sharpness, high) if mean < truth else (low, sharpness)
        step = (truth - mean) / curvature if curvature > 0 else np.inf
        if abs(step) < 1e-9 * sharpness:
            break
        sharpness += step
        if not low < sharpness < high:
            sharpness = (low * high) ** 0.5
    return 1 / sharpness


def _slope(logits: Array, sharpness: float) -> tuple[float, float]:
    """The mean, under the softmax of logits × sharpness, of the logits, and its derivative."""
    weights = np.exp(logits * sharpness)
    total = weights.sum(axis=1)
    means = np.einsum("ij,ij->i", weights, logits) / total
    squares = np.einsum("ij,ij,ij->i", weights, logits, logits) / total
    return float(means.mean()), float((squares - means**2).mean())
