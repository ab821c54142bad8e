"""The features of images in two dimensions, by principal components (PCA)."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tlx.data.images import load_rgb
from tlx.evaluation.captured import one_vector
from tlx.models.folder import SavedModel

_BATCH = 16


def pooled_features(
    model: SavedModel, files: Sequence[Path], *, seconds: float = float("inf")
) -> NDArray[np.float32]:
    """(n, C) of the files in order, of as many as `seconds` of processor time allow.

    Maps are averaged; of tokens it is the class token.
    """
    deadline, rows = time.process_time() + seconds, []
    for first in range(0, len(files), _BATCH):
        batch = files[first : first + _BATCH]
        pictures = [model.preprocess(load_rgb(f, model.preprocess.decoding)) for f in batch]
        with torch.inference_mode():
            features = model.classifier.backbone(model.preprocess.normalize(torch.stack(pictures)))
        rows.append(one_vector(features))
        if time.process_time() > deadline:
            break
    return torch.cat(rows).float().numpy() if rows else np.empty((0, 0), dtype=np.float32)


def principal_components(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Features (n, C) to points (n, 2), and each component's share of the variance."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    # a component's sign is arbitrary: its largest weight becomes positive
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    points = np.zeros((len(features), 2))
    kept = min(2, len(singular))
    points[:, :kept] = (left * singular * signs)[:, :kept]
    variance = np.append(singular**2, [0.0, 0.0])
    shares = variance / max(variance.sum(), np.finfo(float).tiny)
    return points, (float(shares[0]), float(shares[1]))
