"""What a run was trained on: the images, their classes and splits, and the augmentation."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlx.data.manifest import SPLITS, Manifest, Sample
from tlx.evaluation import figures
from tlx.evaluation.examples import augmented_views, class_counts, in_turn
from tlx.evaluation.finished import FinishedRun
from tlx.evaluation.shown import Picture, ShownFigure, by, figure, percent, picture, thumbnail

MOST_ROWS = 60
EXAMPLES = 12


def data(run: FinishedRun) -> dict[str, Any]:
    if run.manifest is None:
        return {}
    manifest = run.manifest
    counted = Counter((sample.label, sample.split) for sample in manifest.samples)
    splits = [split for split in SPLITS if manifest.split(split)]
    rows = [
        (name, [counted[name, split] for split in splits], sum(counted[name, s] for s in splits))
        for name in manifest.classes
    ]
    rows.sort(key=lambda row: -row[2])
    return {
        "splits": splits,
        "rows": rows[:MOST_ROWS],
        "left_out": len(rows) - len(rows[:MOST_ROWS]),
        "total": [len(manifest.split(split)) for split in splits],
        "images": len(manifest.samples),
        "sizes": _sizes(manifest),
        "groups": len({sample.group for sample in manifest.samples if sample.group}),
        "grouped": sum(bool(sample.group) for sample in manifest.samples),
        "findings": run.findings,
        "figures": _distribution(manifest),
        "examples": _examples(run, manifest) if run.has_images else [],
        "draws": _draws(run, manifest) if run.has_images else [],
    }


def _sizes(manifest: Manifest) -> str:
    """The range of the images' sides, where the manifest knows them."""
    sizes = {(s.width, s.height) for s in manifest.samples if s.width > 0}
    if len(sizes) <= 1:
        return "".join(f"all {by(*size)} pixels" for size in sizes)
    widths, heights = zip(*sizes, strict=True)
    return f"{_span(widths)} pixels wide and {_span(heights)} high"


def _span(sides: Sequence[int]) -> str:
    least, most = min(sides), max(sides)
    return f"{least}" if least == most else f"{least} to {most}"


def _distribution(manifest: Manifest) -> list[ShownFigure]:
    counts = class_counts(manifest)
    total = np.sum(list(counts.values()), axis=0)
    most, least = int(total.argmax()), int(total.argmin())
    finding = (
        f"the largest class is {manifest.classes[most]} with {total[most]:,} images "
        f"({percent(total[most] / total.sum())}), the smallest {manifest.classes[least]} with "
        f"{total[least]:,}"
    )
    if total[most] == total[least]:
        finding = f"all {len(total)} classes have {total[most]:,} images"
    shown = [
        figure(
            figures.class_distribution(counts, manifest.classes),
            f"Bars of the images of each class, by split: {finding}.",
            "Images of each class, by split.",
        )
    ]
    if len(total) <= figures.MOST_SHARES:  # of more the bars say it better
        ring = figures.class_shares(total, manifest.classes)
        alt = f"Ring of the classes' shares: {finding}."
        shown.append(figure(ring, alt, "Shares of the classes, over all splits."))
    return shown


def _examples(run: FinishedRun, manifest: Manifest) -> list[Picture]:
    """Training images of each class in turn, spread over the class."""
    train = manifest.split("train")
    labels = np.array([manifest.classes.index(sample.label) for sample in train], dtype=np.int64)
    # multiples of the golden ratio modulo 1: any first few lie far from each other
    spread = np.argsort(np.arange(len(train)) * 0.6180339887498949 % 1, kind="stable")
    chosen = in_turn([int(i) for i in spread], labels[spread], EXAMPLES)
    return [shown for i in chosen if (shown := _example(run, train[i])) is not None]


def _example(run: FinishedRun, sample: Sample) -> Picture | None:
    pixels = thumbnail(run.file(sample.path), run.decoding)
    if pixels is None:
        return None
    return picture(pixels, f"training image {sample.path}: {sample.label}", (sample.label,))


def _draws(run: FinishedRun, manifest: Manifest) -> list[Picture]:
    if run.config is None or run.model is None:
        return []
    views = augmented_views(manifest, run.config, run.model.preprocess)
    return [picture(view, f"augmented view {i}") for i, view in enumerate(views, 1)]
