"""What TensorBoard shows of a trained run: results, figures, curves and points."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.tensorboard import SummaryWriter

from tlx.config import Config
from tlx.data.images import UnreadableImage, load_rgb
from tlx.data.manifest import Manifest
from tlx.evaluation.figures import confusion_matrix, image_grid
from tlx.evaluation.hparams import write_hparams
from tlx.evaluation.metrics import confusion
from tlx.evaluation.prediction_file import PredictionFile, read_predictions
from tlx.evaluation.projector import SIDE, write_projector
from tlx.evaluation.style import pixels, printable, short

IN_GRID = 12
CURVES = 10
THUMBNAIL = 128  # pixels, in the grids


def write_board(run: Path, config: Config, manifest: Manifest, *, pictures: bool) -> None:
    """Add to the run's events what its metrics.json, predictions and images say.

    Of the test images, or of val where those were left alone. Without `pictures` it is the
    HParams page alone, which compares the trials of a sweep.
    """
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    step = sum(stage["steps"] for stage in metrics["stages"])
    with closing(SummaryWriter(str(run))) as writer:
        write_hparams(writer, run, config, metrics, step)
        if not pictures:
            return
        _write_examples(writer, manifest, step)
        split = next((name for name in ("test", "val") if name in metrics), None)
        if split is not None:
            found = read_predictions(run / "predictions" / f"{split}.csv", manifest.classes)
            _write_labelled(writer, split, _labelled(found), manifest, config.positive, step)
            _write_points(run, split, found, manifest.root)


def _labelled(found: PredictionFile) -> PredictionFile:
    known = [i for i, label in enumerate(found.labels) if label]
    paths, labels, predicted = (
        tuple(column[i] for i in known) for column in (found.paths, found.labels, found.predicted)
    )
    return PredictionFile(paths, labels, predicted, found.probabilities[known])


def _write_examples(writer: SummaryWriter, manifest: Manifest, step: int) -> None:
    """Training images at equal distances in the manifest, which has them by class."""
    samples = manifest.split("train")
    places = np.linspace(0, len(samples) - 1, min(len(samples), IN_GRID)).round().astype(int)
    chosen = [samples[i] for i in places]
    images = [_picture(manifest.root / sample.path, THUMBNAIL) for sample in chosen]
    _write_grid(writer, "train/examples", images, [sample.label for sample in chosen], step)


def _write_labelled(  # noqa: PLR0913, PLR0917
    writer: SummaryWriter,
    split: str,
    found: PredictionFile,
    manifest: Manifest,
    positive: str | None,
    step: int,
) -> None:
    """What needs the truth: the confusion matrix, the most confident mistakes, PR curves."""
    if not found.labels:
        return
    classes = list(manifest.classes)
    truth = np.array([classes.index(label) for label in found.labels])
    predicted = np.array([classes.index(label) for label in found.predicted])
    matrix = confusion_matrix(confusion(truth, predicted, len(classes)), classes)
    writer.add_image(f"{split}/confusion_matrix", pixels(matrix), step, dataformats="HWC")

    sure = found.probabilities[np.arange(len(predicted)), predicted]
    wrong = [i for i in np.argsort(-sure, kind="stable") if truth[i] != predicted[i]][:IN_GRID]
    images = [_picture(manifest.root / found.paths[i], THUMBNAIL) for i in wrong]
    captions = [
        f"{_name(found.labels[i])} → {_name(found.predicted[i])} {sure[i]:.0%}" for i in wrong
    ]
    _write_grid(writer, f"{split}/mistakes", images, captions, step)

    for index in _with_curve(classes, truth, positive):
        name, probability = printable(classes[index]), found.probabilities[:, index]
        writer.add_pr_curve(f"{split}/{name}", truth == index, probability, step)


def _name(label: str) -> str:
    return short(label, 7)  # two of them and a number go below an image


def _with_curve(classes: list[str], truth: NDArray[np.int64], positive: str | None) -> list[int]:
    """Of two classes the positive one, of many the largest."""
    if len(classes) == 2:
        return [1 if positive is None else classes.index(positive)]
    sizes = np.bincount(truth, minlength=len(classes))
    return [int(i) for i in np.argsort(-sizes, kind="stable")[:CURVES]]


def _write_grid(
    writer: SummaryWriter,
    tag: str,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    step: int,
) -> None:
    if images:
        figure = image_grid([np.asarray(image) for image in images], captions)
        writer.add_image(tag, pixels(figure), step, dataformats="HWC")


def _write_points(run: Path, split: str, found: PredictionFile, root: Path) -> None:
    """Of the images whose features `captured.kept_features` left here."""
    path = run / "predictions" / f"{split}_features.npy"
    if not path.is_file():
        return
    features = np.load(path)
    n = len(features)
    sure = [f"{p:.3f}" for p in found.probabilities[:n].max(axis=1)]
    rows = list(zip(found.labels[:n], found.predicted[:n], sure, found.paths[:n], strict=True))
    write_projector(run, split, features, [_picture(root / row[-1], SIDE) for row in rows], rows)


def _picture(path: Path, side: int) -> Image.Image:
    """The centre of the photograph; grey where it is no longer there."""
    try:
        return ImageOps.fit(load_rgb(path), (side, side), Image.Resampling.BILINEAR)
    except UnreadableImage:
        return Image.new("RGB", (side, side), "grey")
