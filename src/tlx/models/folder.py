"""The `model/` folder: a trained classifier and all it takes to predict, nothing pickled."""

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tlx import __version__
from tlx.data.tta import Views
from tlx.errors import UserError
from tlx.files import replace_atomically, write_json
from tlx.models.backbones import build_backbone
from tlx.models.classifier import Classifier
from tlx.models.decision import Decision
from tlx.models.heads import Head
from tlx.models.preprocess import Preprocess
from tlx.models.winograd import use_winograd

FORMAT = 1


@dataclass(frozen=True)
class Architecture:
    """What a classifier is built from."""

    backbone: str
    image_size: int
    num_outputs: int
    pool: str
    hidden: tuple[int, ...]
    activation: str
    dropout: float
    classifier: bool = False  # the backbone's own hidden layers are blocks
    winograd: bool = True


def build_classifier(
    architecture: Architecture, state_dict: dict[str, torch.Tensor] | None = None
) -> Classifier:
    """The network, its backbone from `state_dict` (torchvision's keys) or at random."""
    a = architecture
    backbone = build_backbone(
        a.backbone, image_size=a.image_size, classifier=a.classifier, state_dict=state_dict
    )
    head = Head(
        backbone.feature_shape(a.image_size),
        a.num_outputs,
        pool=a.pool,
        hidden=a.hidden,
        activation=a.activation,
        dropout=a.dropout,
        norm=backbone.take_head_norm(),
    )
    classifier = Classifier(backbone, head)
    if a.winograd:
        use_winograd(classifier)
    return classifier


def save_weights(path: Path, classifier: Classifier) -> None:
    state = {k: v.detach().cpu().contiguous() for k, v in classifier.state_dict().items()}
    with replace_atomically(path) as temporary:
        save_file(state, temporary)


def load_weights(path: Path, classifier: Classifier) -> None:
    """Of a stage that is done."""
    try:
        classifier.load_state_dict(load_file(path))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged or missing ({error}); restore it, or remove done.json beside it to "
            "train the stage again."
        ) from None


def _incomplete(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or missing ({error}); copy the whole folder again.")


@dataclass(frozen=True)
class SavedModel:
    """`temperature` divides the logits of calibrated probabilities; None: none was fitted.

    It was fitted, and the threshold chosen, on averages over `views`.
    """

    classifier: Classifier
    preprocess: Preprocess
    classes: tuple[str, ...]
    temperature: float | None = None
    decision: Decision | None = None  # None: the likeliest class
    views: Views = field(default_factory=Views)


def save_model(folder: Path, model: SavedModel, architecture: Architecture) -> None:
    save_weights(folder / "model.safetensors", model.classifier)
    description = {
        "format": FORMAT,
        "tlx": __version__,
        "architecture": asdict(architecture),
        "classes": list(model.classes),
        "preprocess": model.preprocess.to_dict(),
        "temperature": model.temperature,
        "decision": asdict(model.decision) if model.decision is not None else None,
        "views": model.views.to_dict(),
    }
    write_json(folder / "model.json", description)


def load_model(folder: Path) -> SavedModel:
    """The classifier in evaluation mode, on the CPU."""
    description = _read_description(folder / "model.json")
    try:
        settings = description["architecture"]
        settings["hidden"] = tuple(settings["hidden"])
        with torch.device("meta"):
            classifier = build_classifier(Architecture(**settings))
        classifier.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (FileNotFoundError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise _incomplete(folder, error) from None
    classifier.requires_grad_(False).eval()
    if classifier.backbone.is_convolutional:
        classifier.to(memory_format=torch.channels_last)  # as in training, to the same last bit
    preprocess = Preprocess.from_dict(description["preprocess"])
    decision, views = description.get("decision"), description.get("views")
    return SavedModel(
        classifier,
        preprocess,
        tuple(description["classes"]),
        temperature=description.get("temperature"),
        decision=Decision(**decision) if decision is not None else None,
        views=Views.from_dict(views) if views is not None else Views(),
    )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _incomplete(path, error) from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_way_to_a_model(path.parent)) from None
    if not isinstance(description, dict):
        raise _incomplete(path, TypeError("no JSON object"))
    if description.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {description.get('format')!r}; this tlx reads format {FORMAT}."
        )
    return description


def _way_to_a_model(folder: Path) -> str:
    run = folder.parent if folder.name == "model" else folder
    if (run / "metrics.json").is_file():
        return f"{folder} has no model.json, though the run is finished: copy the folder again."
    if (run / ".hydra").is_dir():
        return (
            f"no trained model in {run} (model.json is missing): did the run reach its end? "
            f"python -m tlx.train resume={shlex.quote(str(run))} continues it."
        )
    if folder.is_file():
        return f"{folder} is a file; a model is in a folder: give that of the run."
    if not folder.is_dir():
        return f"no such folder: {folder}."
    return f"no trained model in {folder}: it has no model.json, and is no run's folder."
