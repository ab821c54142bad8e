"""A few images predicted again: does the run's file hold in their rows what its model says?"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tlx.data.manifest import Sample
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.predictions import AGAIN
from tlx.diagnosis.run_folder import RunFolder
from tlx.errors import UserError
from tlx.evaluation.prediction_file import PredictionFile
from tlx.evaluation.results import compute_of, probabilities_of
from tlx.training.devices import choose_precision

LOOKED_AT = 12  # images
TOLERANCE, COARSE = 2e-3, 5e-2  # of a probability: other hardware; bf16


def predicted_again(run: RunFolder) -> Iterator[Finding]:
    """On evaluation's own path, with the saved model."""
    if not run.splits:
        raise UserError("there are no predictions: the run did not reach its end")
    precision = choose_precision(run.config.trainer)
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
            AGAIN.format(run.folder, split),
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
