"""A run's predictions: do they belong to their images, and say more than one class?"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tlx.data.manifest import Sample
from tlx.diagnosis.claims import claim
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.run_folder import RunFolder
from tlx.errors import UserError
from tlx.evaluation.intervals import wilson
from tlx.evaluation.prediction_file import PredictionFile
from tlx.evaluation.results import compute_of, probabilities_of
from tlx.training.devices import choose_precision

AGAIN = "python -m tlx.evaluate run={} split={}"
MOSTLY = 0.95  # of the predictions


def files_and_manifest(run: RunFolder) -> Iterator[Finding]:
    """Every row is an image of the split, once, with the manifest's label."""
    if not run.splits:
        raise UserError("there are no predictions: the run did not reach its end")
    for split in run.splits:
        path = run.folder / "predictions" / f"{split}.csv"
        labels = {sample.path: sample.label for sample in run.manifest.split(split)}
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            # by place: a class may be called path
            rows = [(row[0], "".join(row[1:2])) for row in csv.reader(file) if row][1:]
        counts = Counter(name for name, _ in rows)
        of_others = [(p, label) for p, label in rows if p in labels and labels[p] != label]
        faults = {
            "are no image of the split": [name for name in counts if name not in labels],
            "occur more than once": [name for name, count in counts.items() if count > 1],
            "have another label than in manifest.csv": [name for name, _ in of_others],
        }
        if run.config.trainer.limit_eval is None:
            faults["are missing"] = [name for name in labels if name not in counts]
        said = [f"{len(v)} {what} ({v[0]})" for what, v in faults.items() if v]
        if said:
            yield Finding(
                "wrong_rows", "error", f"of predictions/{split}.csv's rows: {'; '.join(said)}",
                AGAIN.format(run.place, split),
                {"rows": len(rows), "wrong": sum(map(len, faults.values()))},
            )  # fmt: skip


def one_class(run: RunFolder) -> Iterator[Finding]:
    """Against the answer that always says the most frequent class; over val and test together."""
    files = [run.predictions(split) for split in run.splits]
    pairs = [pair for f in files for pair in zip(f.labels, f.predicted, strict=True) if pair[0]]
    if not pairs:
        raise UserError("there are no predictions for labelled images")
    n = len(pairs)
    labels = Counter(label for label, _ in pairs)
    name, times = Counter(predicted for _, predicted in pairs).most_common(1)[0]
    right = sum(label == predicted for label, predicted in pairs)
    majority, most = labels.most_common(1)[0]
    too_often = times >= MOSTLY * n and wilson(times, n)[0] > labels[name] / n
    if not too_often or wilson(right, n)[0] > most / n:
        return
    weighed = run.config.data.class_weights is not None or run.config.data.sampling == "balanced"
    yield Finding(
        "one_class", "error" if times == n else "warning",
        f"{name!r} is predicted for {times} of {n} val and test images and is the label of "
        f"{labels[name]}; accuracy {right / n:.3f}, always answering {majority!r}: {most / n:.3f}",
        "data.class_weights=balanced" if most * len(labels) > 1.5 * n and not weighed
        else f"what stands above; or ask python -m tlx.doctor {run.overrides}",
        {"n": n, "predicted": times, "labelled": labels[name], "accuracy": right / n,
         "majority": most / n},
    )  # fmt: skip


def few_images(run: RunFolder) -> Iterator[Finding]:
    """Of test, or without it of val: what the accuracy can claim."""
    split = next((s for s in ("test", "val") if "accuracy" in run.metrics.get(s, {})), None)
    if split is None:
        raise UserError("metrics.json has no accuracy")
    found = run.metrics[split]
    smallest = min(scores["support"] for scores in found["per_class"].values())
    yield from claim(split, found["n"], found["accuracy"], smallest, run.config.data)


LOOKED_AT = 12  # images
TOLERANCE, COARSE = 2e-3, 5e-2  # of a probability: other hardware; bf16


def predicted_again(run: RunFolder) -> Iterator[Finding]:
    """On evaluation's own path, with the saved model."""
    if not run.splits:
        raise UserError("there are no predictions: the run did not reach its end")
    precision = choose_precision(run.config.trainer, run.folder)
    compute = replace(compute_of(run.config, precision), num_workers=0, batch_size=LOOKED_AT)
    tolerance = TOLERANCE if precision == "32" else COARSE
    for split in run.splits:
        file = run.predictions(split)
        samples = _unchanged(run, split, file)
        found = probabilities_of(run.model, list(samples.values()), run.images, compute)
        # (looked at, rows): how far each row is from what the model says
        distances = np.abs(file.probabilities[None] - found[:, None]).max(axis=2)
        own = distances[np.arange(len(samples)), list(samples)]
        wrong = np.flatnonzero(own > tolerance)
        if not wrong.size:
            continue
        rows = [list(samples)[i] for i in wrong]
        yield Finding(
            "wrong_rows", "error",
            f"predictions/{split}.csv: of {len(samples)} images that the model predicted again "
            f"{len(wrong)} have other probabilities in their row; "
            f"{_where(rows, distances[wrong], tolerance)}",
            AGAIN.format(run.place, split),
            {"looked_at": len(samples), "wrong": len(wrong), "largest": float(own.max())},
        )  # fmt: skip


def _unchanged(run: RunFolder, split: str, file: PredictionFile) -> dict[int, Sample]:
    """By row, a dozen images that are still the files they were."""
    samples = {sample.path: sample for sample in run.manifest.split(split)}
    kept = {}
    for row in np.unique(np.linspace(0, len(file.paths) - 1, LOOKED_AT).round().astype(int)):
        path = run.images / file.paths[row]
        sample = samples.get(file.paths[row])
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        if sample is not None and sample.sha256 == digest:
            kept[int(row)] = sample
    if not kept:
        raise UserError(f"{run.images} does not hold the {split} images any more, as they were")
    return kept


def _where(rows: Sequence[int], distances: NDArray[np.float64], tolerance: float) -> str:
    """Which rows hold what belongs into `rows`; (rows, all rows) distances."""
    n = distances.shape[1]
    fits = [set(np.flatnonzero(d <= tolerance).tolist()) for d in distances]
    found = [(row, places) for row, places in zip(rows, fits, strict=True) if places]
    if 2 * len(found) <= len(rows):
        return "hardly a row holds what it says of them: another model made this file"
    shifts = Counter((place - row) % n for row, places in found for place in places)
    shift, times = shifts.most_common(1)[0]
    if len(found) > 1 and times == len(found):
        shift -= n if shift > n / 2 else 0
        return f"the row {abs(shift)} further {'down' if shift > 0 else 'up'} holds them each time"
    return f"for {len(found)} of them another image's row holds these: the rows are shuffled"
