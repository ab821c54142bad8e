"""A trained classifier's probabilities for images, matched to them by position."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tlx.data.augment import Augment
from tlx.data.datasets import Rows
from tlx.data.loaders import prediction_loader
from tlx.data.tta import Views, tta_augment
from tlx.errors import UserError
from tlx.models.backbones import Place
from tlx.models.folder import SavedModel
from tlx.models.outputs import probabilities
from tlx.training.devices import keep_freed_memory


@dataclass(frozen=True)
class Compute:
    """How predictions are computed."""

    device: torch.device
    bf16: bool
    batch_size: int
    num_workers: int | None = None
    views: Views = field(default_factory=Views)


def predict(model: SavedModel, files: Sequence[Path], compute: Compute) -> NDArray[np.float64]:
    """Probabilities (files, classes). Every view reads the files once more."""
    keep_freed_memory()
    augment = tta_augment(compute.views.augment, compute.views.count)
    views = (
        _of_view(model, files, compute, augment if view else None, view)
        for view in range(compute.views.count)
    )
    return _finite(_mean(views))


def predict_features(
    model: SavedModel, views: Sequence[Rows], start: Place, compute: Compute
) -> NDArray[np.float64]:
    """The same probabilities from what the blocks before `start` make of the images' views."""
    return _finite(_mean(_of_features(model, rows, start, compute) for rows in views))


def _mean(views: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    first, *others = views
    for count, view in enumerate(others, 2):
        first += (view - first) / count
    return first


def _of_features(
    model: SavedModel, features: Rows, start: Place, compute: Compute
) -> NDArray[np.float64]:
    classifier, device = model.classifier.to(compute.device).eval(), compute.device
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=compute.bf16):
        for positions in torch.split(torch.arange(len(features)), compute.batch_size):
            inputs = features.index_select(0, positions).to(device)
            if classifier.backbone.is_convolutional and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            rows.append(probabilities(classifier(inputs, start).cpu()).numpy())
    return np.concatenate(rows)


def _finite(result: NDArray[np.float64]) -> NDArray[np.float64]:
    if invalid := int(np.isnan(result).any(axis=1).sum()):
        raise UserError(
            f"{invalid} of {len(result)} images have NaN as probabilities: "
            "the weights are not finite; lower the rate (optimizer.lr, or the stage's own) and "
            "train again."
        )
    return result


def _of_view(
    model: SavedModel,
    files: Sequence[Path],
    compute: Compute,
    augment: Augment | None,
    view: int = 0,
) -> NDArray[np.float64]:
    """NaN where none was found; every batch says which positions its images have."""
    classifier, device = model.classifier.to(compute.device).eval(), compute.device
    result = np.full((len(files), len(model.classes)), np.nan)
    loader = prediction_loader(
        files,
        model.preprocess,
        batch_size=compute.batch_size,
        num_workers=compute.num_workers,
        decoding=model.preprocess.decoding,
        augment=augment,
        seed=compute.views.seed,
        view=view,
    )
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=compute.bf16):
        for images, _, positions in loader:
            inputs = model.preprocess.normalize(images.to(device))
            if classifier.backbone.is_convolutional:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            result[positions.numpy()] = probabilities(classifier(inputs).cpu()).numpy()
    return result
