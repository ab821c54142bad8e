"""A trained classifier's probabilities for images, matched to them by position, and their file."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tlx.data.datamodule import prediction_loader
from tlx.errors import UserError
from tlx.files import replace_atomically
from tlx.models.folder import SavedModel
from tlx.models.outputs import probabilities


@dataclass(frozen=True)
class Compute:
    """How predictions are computed."""

    device: torch.device
    bf16: bool
    batch_size: int
    num_workers: int | None = None


def predict(model: SavedModel, files: Sequence[Path], compute: Compute) -> NDArray[np.float64]:
    """Probabilities (files, classes); every batch says which positions its images have."""
    classifier = model.classifier.to(compute.device).eval()
    channels_last = classifier.backbone.is_convolutional
    result = np.full((len(files), len(model.classes)), np.nan)
    loader = prediction_loader(
        files, model.preprocess, batch_size=compute.batch_size, num_workers=compute.num_workers
    )
    device = compute.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=compute.bf16):
        for images, _, positions in loader:
            inputs = model.preprocess.normalize(images.to(device))
            if channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            result[positions.numpy()] = probabilities(classifier(inputs).cpu()).numpy()
    if invalid := int(np.isnan(result).any(axis=1).sum()):
        raise UserError(
            f"{invalid} of {len(files)} images have NaN as probabilities: "
            "the weights are not finite; lower optimizer.lr and train again."
        )
    return result


@dataclass(frozen=True)
class Predictions:
    paths: Sequence[str]
    labels: Sequence[str] | None  # None where the truth is not known
    probabilities: NDArray[np.float64]  # (n, classes)
    classes: Sequence[str]

    @property
    def predicted(self) -> list[str]:
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    def write(self, path: Path) -> None:
        """CSV: path, label (where known), predicted, then one probability per class."""
        known = self.labels is not None
        columns = ["path", *(["label"] if known else []), "predicted", *self.classes]
        labels = self.labels if self.labels is not None else [""] * len(self.paths)
        rows = zip(self.paths, labels, self.predicted, self.probabilities, strict=True)
        with (
            replace_atomically(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            for name, label, predicted, row in rows:
                probability = [f"{p:.9g}" for p in row]
                writer.writerow([name, *([label] if known else []), predicted, *probability])
