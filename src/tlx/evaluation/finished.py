"""All that a finished run's folder tells about it. What is missing is empty, never an error."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.composition import saved_config
from tlx.config import parse
from tlx.data.images import Decoding
from tlx.data.manifest import Manifest
from tlx.data.sources import data_root
from tlx.errors import UserError
from tlx.evaluation.history import History, read_history
from tlx.evaluation.prediction_file import read_predictions
from tlx.models.folder import SavedModel, load_model
from tlx.specs import Config


@dataclass(frozen=True)
class Judged:
    """The labelled images of a split and what the classifier said; classes as indices."""

    paths: Sequence[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]  # (n, classes)
    features: NDArray[np.float32] | None = None  # (n, C), where evaluation kept them

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.equal(self.labels, self.predicted)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of what was predicted."""
        return self.probabilities[np.arange(len(self.labels)), self.predicted]


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    raw: Mapping[str, Any]  # the configuration as Hydra composed it
    config: Config | None  # None: of a tlx with other settings
    manifest: Manifest | None
    has_images: bool  # at manifest.root
    model: SavedModel | None
    metrics: Mapping[str, Any]
    judged: Mapping[str, Judged]  # by split: test, val
    history: History
    findings: Sequence[Mapping[str, Any]]  # in the images
    doctor: Sequence[Mapping[str, Any]] | None  # None: it was not asked
    overrides: Sequence[str]
    weights: str  # which, and where from, as the log has it

    @property
    def classes(self) -> tuple[str, ...]:
        if self.model is not None:
            return self.model.classes
        return self.manifest.classes if self.manifest is not None else ()

    @property
    def decoding(self) -> Decoding:
        return self.model.preprocess.decoding if self.model is not None else Decoding()

    def file(self, path: str) -> Path:
        """Where the image is that the manifest and the predictions call `path`."""
        return self.manifest.root / path if self.manifest is not None else Path(path)

    @property
    def split(self) -> str | None:
        """What the run is judged on: test, or without it val."""
        return next((name for name in ("test", "val") if name in self.judged), None)


def read_run(folder: Path, root: Path | None = None) -> FinishedRun:
    """`root` is where the images are now, if not where the configuration says.

    Raises UserError for a folder that is no run's.
    """
    raw = saved_config(folder)
    config = _or_none(lambda: parse(raw))
    if root is None and config is not None:
        found = config.data
        root = _or_none(lambda: data_root(found))
    manifest = _or_none(lambda: Manifest.read(folder / "manifest.csv", root or Path()))
    samples = manifest.samples if manifest is not None else ()
    model = _or_none(lambda: load_model(folder / "model"))
    classes = model.classes if model is not None else manifest.classes if manifest else ()
    judged = {name: _judged(folder, name, classes) for name in ("test", "val")}
    findings = _json(folder / "findings.json", {})
    return FinishedRun(
        folder,
        raw,
        config,
        manifest,
        root is not None and any((root / sample.path).is_file() for sample in samples[:5]),
        model,
        _json(folder / "metrics.json", {}),
        {name: found for name, found in judged.items() if found is not None},
        read_history(folder),
        findings.get("findings", []),
        findings.get("doctor"),
        overrides_of(folder),
        _weights(folder),
    )


def moved_root(folder: Path, given: str) -> Path | None:
    """Where a run's images are now, if `data.root=given` says that they were moved."""
    if not given:
        return None
    config = _or_none(lambda: parse(saved_config(folder)))
    if config is not None:
        return data_root(replace(config.data, root=given))
    if not Path(given).is_dir():
        raise UserError(f"no such folder: {given} (data.root).")
    return Path(given)


def _or_none(read: Any) -> Any:
    try:
        return read()
    except UserError:
        return None


def _judged(folder: Path, split: str, classes: Sequence[str]) -> Judged | None:
    path = folder / "predictions" / f"{split}.csv"
    if not path.is_file():
        return None
    file = read_predictions(path, classes)  # raises for another order of the classes
    index = {name: i for i, name in enumerate(classes)}
    kept = [i for i, label in enumerate(file.labels) if label in index]
    if not kept:
        return None
    return Judged(
        [file.paths[i] for i in kept],
        np.array([index[file.labels[i]] for i in kept]),
        np.array([index[file.predicted[i]] for i in kept]),
        file.probabilities[kept],
        _features(folder / "predictions" / f"{split}_features.npy", len(file.paths), kept),
    )


def _features(path: Path, rows: int, kept: list[int]) -> NDArray[np.float32] | None:
    """Those of all images; of a first part only they would show a part of the classes."""
    features = np.load(path) if path.is_file() else np.empty((0, 0), dtype=np.float32)
    return features[kept] if len(features) == rows else None


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else default
    except ValueError:
        return default


def overrides_of(folder: Path) -> list[str]:
    """What was given on the command line, as Hydra keeps it."""
    import yaml  # type: ignore[import-untyped]  # comes with Hydra

    path = folder / ".hydra" / "overrides.yaml"
    return yaml.safe_load(path.read_text("utf-8")) or [] if path.is_file() else []


def _weights(folder: Path) -> str:
    log = folder / "train.log"
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    found = re.search(r"weights of (\S+: .+)", text)
    return found[1] if found else ""
