"""A trained classifier's probabilities for images, matched to them by position."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlx.data.augment import Augment
from tlx.data.loaders import prediction_loader
from tlx.data.tta import tta_augment
from tlx.errors import UserError
from tlx.models.folder import SavedModel
from tlx.models.outputs import probabilities


@dataclass(frozen=True)
class Compute:
    """How predictions are computed.

    They are averages over `tta` views: the image itself, and draws of `augment` from `seed` that
    are the same for every image, or the mirror image (see `tta_augment`).
    """

    device: torch.device
    bf16: bool
    batch_size: int
    num_workers: int | None = None
    tta: int = 1
    augment: Augment = field(default_factory=Augment)
    seed: int = 0


def predict(model: SavedModel, files: Sequence[Path], compute: Compute) -> NDArray[np.float64]:
    """Probabilities (files, classes). Every view reads the files once more."""
    augment = tta_augment(compute.augment, compute.tta)
    result = _of_view(model, files, compute, None)
    for view in range(1, compute.tta):
        result += (_of_view(model, files, compute, augment, view) - result) / (view + 1)
    return _finite(result)


def predict_features(
    model: SavedModel, features: Tensor, start: int, compute: Compute
) -> NDArray[np.float64]:
    """The same probabilities from what the blocks before `start` make of the images."""
    classifier, device = model.classifier.to(compute.device).eval(), compute.device
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=compute.bf16):
        for batch in torch.split(features, compute.batch_size):
            inputs = batch.to(device)
            if classifier.backbone.is_convolutional and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            rows.append(probabilities(classifier(inputs, start).cpu()).numpy())
    return _finite(np.concatenate(rows))


def _finite(result: NDArray[np.float64]) -> NDArray[np.float64]:
    if invalid := int(np.isnan(result).any(axis=1).sum()):
        raise UserError(
            f"{invalid} of {len(result)} images have NaN as probabilities: "
            "the weights are not finite; lower optimizer.lr and train again."
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
    mirrored = augment is not None and not augment.is_random
    result = np.full((len(files), len(model.classes)), np.nan)
    loader = prediction_loader(
        files,
        model.preprocess,
        batch_size=compute.batch_size,
        num_workers=compute.num_workers,
        decoding=model.preprocess.decoding,
        augment=augment,
        seed=compute.seed,
        view=view,
    )
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=compute.bf16):
        for images, _, positions in loader:
            pixels = images.flip(-1) if mirrored else images
            inputs = model.preprocess.normalize(pixels.to(device))
            if classifier.backbone.is_convolutional:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            result[positions.numpy()] = probabilities(classifier(inputs).cpu()).numpy()
    return result
