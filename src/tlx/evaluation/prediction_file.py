"""The file of predictions: path, label where known, predicted, one probability per class."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlx.errors import UserError
from tlx.files import replace_atomically
from tlx.models.decision import Decision, decide


@dataclass(frozen=True)
class Predictions:
    paths: Sequence[str]
    labels: Sequence[str] | None  # None where the truth is not known
    probabilities: NDArray[np.float64]  # (n, classes)
    classes: Sequence[str]
    decision: Decision | None = None

    @property
    def predicted(self) -> list[str]:
        return [self.classes[i] for i in decide(self.probabilities, self.decision)]

    def write(self, path: Path) -> None:
        """As CSV, probabilities with nine digits."""
        known = self.labels is not None
        columns = ["path", *(["label"] if known else []), "predicted", *self.classes]
        labels = self.labels if self.labels is not None else [""] * len(self.paths)
        rows = zip(self.paths, labels, self.predicted, self.probabilities, strict=True)
        # surrogateescape: as in the manifest
        with (
            replace_atomically(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            for name, label, predicted, row in rows:
                probability = [f"{p:.9g}" for p in row]
                writer.writerow([name, *([label] if known else []), predicted, *probability])


@dataclass(frozen=True)
class PredictionFile:
    """What a file of predictions for labelled images says."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: NDArray[np.float64]  # (n, classes)


def read_predictions(path: Path, classes: Sequence[str]) -> PredictionFile:
    """Raises UserError unless the columns are of these classes, in this order."""
    again = f"python -m tlx.evaluate run={path.parent.parent} split={path.stem}"
    if not path.is_file():
        raise UserError(f"no predictions at {path}; {again} writes them.")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    if header != ["path", "label", "predicted", *classes]:
        raise UserError(
            f"{path} has the columns {','.join(header)}; the run's classes are, in this order, "
            f"{','.join(classes)}. Make the file again: {again}."
        )
    for row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}: the row of {row[0]} has {len(row)} values instead of {len(header)}. Make "
                f"the file again: {again}."
            )
    probabilities = np.array([row[3:] for row in rows], dtype=np.float64)
    paths, labels, predicted = (tuple(row[i] for row in rows) for i in range(3))
    return PredictionFile(paths, labels, predicted, probabilities.reshape(-1, len(classes)))


def nine_digits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers as the file will hold them, so that metrics are those of the file."""
    known = np.where(probabilities > 0, probabilities, 1.0)
    exponent = 8 - np.floor(np.log10(known)).astype(int)
    scale = 10.0 ** np.minimum(exponent, 300)
    return np.asarray(np.round(probabilities * scale) / scale)
