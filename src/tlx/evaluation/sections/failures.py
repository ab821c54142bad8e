"""Where the classifier fails and what it looks at: its images, and its features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray

from tlx.data.images import UnreadableImage, load_rgb
from tlx.evaluation import figures
from tlx.evaluation.embedding import pooled_features, principal_components
from tlx.evaluation.examples import mistakes, successes
from tlx.evaluation.finished import FinishedRun, Judged
from tlx.evaluation.gradcam import grad_cam
from tlx.evaluation.shown import Picture, ShownFigure, figure, percent, picture, thumbnail
from tlx.models.folder import SavedModel

MISTAKES = 12
LOOKED_AT = 6  # right ones, and as many wrong ones
EMBEDDED = 600  # images at most
EMBEDDING_SECONDS = 6.0


def failures(run: FinishedRun, *, gradcam: bool) -> dict[str, Any]:
    if run.split is None:
        return {}
    judged = run.judged[run.split]
    found: dict[str, Any] = {"wrong": int((~judged.right).sum()), "n": len(judged.labels)}
    if run.has_images:
        found["mistakes"] = _gallery(run, judged, mistakes(judged, MISTAKES))
    if run.has_images and run.model is not None and gradcam:
        found["looks"] = [
            ("Right", _looks(run, run.model, judged, successes(judged, LOOKED_AT))),
            ("Wrong", _looks(run, run.model, judged, mistakes(judged, LOOKED_AT))),
        ]
    found["embedding"] = _embedding(run, judged)
    return found


def _lines(run: FinishedRun, judged: Judged, i: int) -> tuple[str, str, str]:
    """Truth, prediction with its probability, path."""
    said = f"{run.classes[judged.predicted[i]]} {percent(float(judged.confidence[i]), 0)}"
    return run.classes[judged.labels[i]], said, judged.paths[i]


def _alt(lines: tuple[str, str, str]) -> str:
    truth, said, path = lines
    return f"{path}: in truth {truth}, predicted {said}"


def _gallery(run: FinishedRun, judged: Judged, chosen: Sequence[int]) -> list[Picture]:
    pictures = []
    for i in chosen:
        lines = _lines(run, judged, i)
        pixels = thumbnail(run.file(judged.paths[i]), run.decoding)
        if pixels is not None:
            pictures.append(picture(pixels, _alt(lines), lines))
    return pictures


def _looks(
    run: FinishedRun, model: SavedModel, judged: Judged, chosen: Sequence[int]
) -> list[Picture]:
    """Each image as the network gets it and, to its right, under what it looked at."""
    pictures = []
    for i in chosen:
        try:
            image = load_rgb(run.file(judged.paths[i]), run.decoding)
        except UnreadableImage:
            continue
        pixels = model.preprocess(image)
        inputs = model.preprocess.normalize(pixels[None])
        heat = grad_cam(model.classifier, inputs, torch.tensor([judged.predicted[i]]))[0].numpy()
        plain = pixels.permute(1, 2, 0).numpy()
        lines = _lines(run, judged, i)
        alt = f"{_alt(lines)}; beside it, brightest where the classifier looked"
        pictures.append(picture(np.hstack([plain, overlay(plain, heat)]), alt, lines))
    return pictures


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3) in grey, coloured by `heat` (H, W) from 0 to 1."""
    grey = image.mean(axis=2, keepdims=True) / 255
    colours = colormaps["inferno"](heat)[..., :3]
    mixed = 0.45 * grey + 0.55 * colours * (0.35 + 0.65 * grey)
    return np.asarray(np.clip(mixed * 255, 0, 255).astype(np.uint8))


def _embedding(run: FinishedRun, judged: Judged) -> ShownFigure | None:
    n = len(judged.labels)
    used, features = np.arange(n), judged.features
    if features is None:
        used, features = _sampled_features(run, judged)
    if len(features) < 3:
        return None
    points, explained = principal_components(features)
    drawn = figures.embedding(
        points, judged.labels[used], run.classes, explained=explained, right=judged.right[used]
    )
    share = percent(sum(explained), 0)
    return figure(
        drawn,
        f"Scatter plot of {len(used)} images by their two principal components, which carry "
        f"{share} of the variance of the {features.shape[1]} features; "
        f"{int((~judged.right[used]).sum())} of them were predicted wrongly.",
        f"{len(used)} of {n} images by the first two principal components (PCA) of the backbone's "
        f"{features.shape[1]} features, which carry {share} of their variance. The colour is the "
        "truth; a cross was predicted wrongly.",
    )


def _sampled_features(
    run: FinishedRun, judged: Judged
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of as many images as there is time for, evenly spread, and which they are."""
    n = len(judged.labels)
    none = np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    if run.model is None or not run.has_images:
        return none
    spread = np.linspace(0, n - 1, min(n, EMBEDDED)).astype(np.int64)
    # an order any first part of which is spread over all
    order = spread[np.argsort(np.arange(len(spread)) * 0.6180339887498949 % 1, kind="stable")]
    files = [run.file(judged.paths[i]) for i in order]
    try:
        features = pooled_features(run.model, files, seconds=EMBEDDING_SECONDS)
    except UnreadableImage:
        return none
    return order[: len(features)], features
