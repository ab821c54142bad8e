"""What TensorBoard shows of a trained run: results, figures, curves and points."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.tensorboard import SummaryWriter

from tlx.data.images import UnreadableImage, load_rgb
from tlx.data.manifest import Manifest
from tlx.evaluation.examples import augmented_views, class_counts
from tlx.evaluation.figures import (
    MOST_SHARES,
    class_distribution,
    class_shares,
    confusion_matrix,
    image_grid,
)
from tlx.evaluation.hparams import write_hparams
from tlx.evaluation.metrics import confusion
from tlx.evaluation.prediction_file import PredictionFile, read_predictions
from tlx.evaluation.projector import SIDE, write_projector
from tlx.evaluation.style import pixels, printable, short
from tlx.files import replace_atomically
from tlx.models.preprocess import Preprocess
from tlx.specs import Config

IN_GRID = 12
CURVES = 10
THUMBNAIL = 128  # pixels, in the grids


@dataclass(frozen=True)
class _Board:
    """A run's events, at its last step, and what is shown in them."""

    writer: SummaryWriter
    run: Path
    manifest: Manifest
    preprocess: Preprocess
    step: int

    def show(self, tag: str, figure: Figure) -> None:
        """In TensorBoard and, the same, as a file below the run's figures/."""
        image = pixels(figure)
        self.writer.add_image(tag, image, self.step, dataformats="HWC")
        path = self.run / "figures" / f"{tag.replace('/', '_')}.png"
        with replace_atomically(path) as temporary:
            Image.fromarray(image).save(temporary, "PNG")

    def show_grid(self, tag: str, paths: Sequence[str], captions: Sequence[str]) -> None:
        if paths:
            images = [np.asarray(self.picture(path, THUMBNAIL)) for path in paths]
            self.show(tag, image_grid(images, captions))

    def picture(self, path: str, side: int) -> Image.Image:
        """The centre of the photograph; grey where it is no longer there."""
        try:
            image = load_rgb(self.manifest.root / path, self.preprocess.decoding)
        except UnreadableImage:
            return Image.new("RGB", (side, side), "grey")
        return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def write_board(
    run: Path, config: Config, manifest: Manifest, preprocess: Preprocess, *, pictures: bool
) -> None:
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
        board = _Board(writer, run, manifest, preprocess, step)
        _show_data(board, config)
        split = next((name for name in ("test", "val") if name in metrics), None)
        if split is not None:
            found = read_predictions(run / "predictions" / f"{split}.csv", manifest.classes)
            _show_labelled(board, split, _labelled(found), config.positive)
            _write_points(board, split, found)


def _labelled(found: PredictionFile) -> PredictionFile:
    known = [i for i, label in enumerate(found.labels) if label]
    paths, labels, predicted = (
        tuple(column[i] for i in known) for column in (found.paths, found.labels, found.predicted)
    )
    return PredictionFile(paths, labels, predicted, found.probabilities[known])


def _show_data(board: _Board, config: Config) -> None:
    """The classes, training images, and what augmentation makes of one."""
    manifest = board.manifest
    counts = class_counts(manifest)
    board.show("data/classes", class_distribution(counts, manifest.classes))
    total = np.sum(list(counts.values()), axis=0)
    if len(manifest.classes) <= MOST_SHARES:
        board.show("data/class_shares", class_shares(total, manifest.classes))
    samples = manifest.split("train")  # at equal distances: it has them by class
    places = np.linspace(0, len(samples) - 1, min(len(samples), IN_GRID)).round().astype(int)
    chosen = [samples[i] for i in places]
    board.show_grid("data/examples", [s.path for s in chosen], [_name(s.label) for s in chosen])
    if views := augmented_views(manifest, config, board.preprocess):
        board.show("data/augmented", image_grid(views))


def _show_labelled(board: _Board, split: str, found: PredictionFile, positive: str | None) -> None:
    """What needs the truth: the confusion matrix, the most confident mistakes, PR curves."""
    if not found.labels:
        return
    classes = list(board.manifest.classes)
    truth = np.array([classes.index(label) for label in found.labels])
    predicted = np.array([classes.index(label) for label in found.predicted])
    matrix = confusion_matrix(confusion(truth, predicted, len(classes)), classes)
    board.show(f"{split}/confusion_matrix", matrix)

    sure = found.probabilities[np.arange(len(predicted)), predicted]
    wrong = [i for i in np.argsort(-sure, kind="stable") if truth[i] != predicted[i]][:IN_GRID]
    captions = [
        f"{_name(found.labels[i])},\nsaid {_name(found.predicted[i])} {sure[i]:.0%}" for i in wrong
    ]
    board.show_grid(f"{split}/mistakes", [found.paths[i] for i in wrong], captions)

    for index in _with_curve(classes, truth, positive):
        name, probability = printable(classes[index]), found.probabilities[:, index]
        board.writer.add_pr_curve(f"{split}/{name}", truth == index, probability, board.step)


def _name(label: str) -> str:
    return short(label, 12)  # what goes below an image


def _with_curve(classes: list[str], truth: NDArray[np.int64], positive: str | None) -> list[int]:
    """Of two classes the positive one, of many the largest."""
    if len(classes) == 2:
        return [1 if positive is None else classes.index(positive)]
    sizes = np.bincount(truth, minlength=len(classes))
    return [int(i) for i in np.argsort(-sizes, kind="stable")[:CURVES]]


def _write_points(board: _Board, split: str, found: PredictionFile) -> None:
    """Of the images whose features `captured.kept_features` left here."""
    path = board.run / "predictions" / f"{split}_features.npy"
    if not path.is_file():
        return
    features = np.load(path)
    n = len(features)
    sure = [f"{p:.3f}" for p in found.probabilities[:n].max(axis=1)]
    rows = list(zip(found.labels[:n], found.predicted[:n], sure, found.paths[:n], strict=True))
    pictures = [board.picture(row[-1], SIDE) for row in rows]
    write_projector(board.run, split, features, pictures, rows)
