"""What a run's folder holds, read piece by piece: a run that broke off has only some of it."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tlx.composition import saved_config
from tlx.config import parse
from tlx.data.manifest import Manifest
from tlx.data.sources import data_root
from tlx.errors import UserError
from tlx.evaluation.finished import overrides_of
from tlx.evaluation.history import History, read_history
from tlx.evaluation.prediction_file import PredictionFile, read_predictions
from tlx.models.classifier import Classifier
from tlx.models.folder import SavedModel, load_model
from tlx.specs import Config, StageSpec
from tlx.training.plan import meta_classifier
from tlx.training.unfreezing import plain_stages


@dataclass(frozen=True)
class RunFolder:
    """Reading a piece raises UserError where it is missing.

    `root` is where the images are now, if not where the configuration says.
    """

    folder: Path
    root: Path | None = None

    @cached_property
    def config(self) -> Config:
        return parse(saved_config(self.folder))

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder / "manifest.csv", Path())

    @cached_property
    def images(self) -> Path:
        """The folder that the manifest's paths are relative to."""
        return self.root if self.root is not None else data_root(self.config.data)

    @cached_property
    def description(self) -> Mapping[str, Any]:
        """Of the model, as model.json has it."""
        return self._json("model/model.json")

    @cached_property
    def model(self) -> SavedModel:
        return load_model(self.folder / "model")

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        return self._json("metrics.json")

    @cached_property
    def history(self) -> History:
        found = read_history(self.folder)
        if "train/loss" not in found.series:
            raise UserError(f"{self.folder} has no TensorBoard events of a whole epoch")
        return found

    @cached_property
    def empty_classifier(self) -> Classifier:
        """The network without numbers in it."""
        return meta_classifier(self.config, len(self.manifest.classes))

    @cached_property
    def stages(self) -> tuple[StageSpec, ...]:
        return plain_stages(self.empty_classifier, self.config.stages)

    @property
    def overrides(self) -> str:
        """What was given on the command line, to paste."""
        return shlex.join(overrides_of(self.folder))

    @property
    def place(self) -> str:
        """The folder, to paste."""
        return shlex.quote(str(self.folder))

    @property
    def splits(self) -> list[str]:
        """Those with predictions."""
        return [s for s in ("test", "val") if (self.folder / f"predictions/{s}.csv").is_file()]

    def predictions(self, split: str) -> PredictionFile:
        return read_predictions(self.folder / "predictions" / f"{split}.csv", self.manifest.classes)

    def weights(self, stage: StageSpec) -> Path:
        """What the stage handed over, or will; it may not be there."""
        return self.folder / "checkpoints" / stage.name / "weights.safetensors"

    def _json(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        try:
            found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} is not there: the run did not reach its end") from None
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        return found


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """One after the other, for memory's sake: of a safetensors file or a `last.ckpt`."""
    if path.suffix == ".ckpt":
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
        yield from state.items()
        return
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            yield name, file.get_tensor(name)
