"""A run's end: the model kept, its splits evaluated, the figures into the run's folder."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.augment import Augment
from tlx.data.manifest import Sample
from tlx.data.tta import Views
from tlx.evaluation.calibration import calibrated, fit_temperature, reliability
from tlx.evaluation.captured import kept_features
from tlx.evaluation.classification_report import classification_report
from tlx.evaluation.environment import environment
from tlx.evaluation.metrics import evaluate
from tlx.evaluation.prediction_file import Predictions, nine_digits
from tlx.evaluation.predictions import Compute, predict, predict_features
from tlx.evaluation.tables import show
from tlx.evaluation.threshold import choose_threshold
from tlx.files import write_json
from tlx.models.decision import decide, positive_class
from tlx.models.folder import SavedModel, save_model
from tlx.specs import Config
from tlx.training.devices import choose_device, process_count
from tlx.training.inputs import split_features
from tlx.training.job import Job
from tlx.training.run import StageResult

log = logging.getLogger(__name__)

MOST_POINTS = 2000  # images whose features are kept, for the report's map and the Projector


def finish(job: Job, stages: Sequence[StageResult], *, with_test: bool, started: float) -> None:
    """Fix temperature and threshold on val, save the model, evaluate on val and, once, on test.

    metrics.json is written last of all.
    """
    compute = compute_of(job.config, job.precision)
    found: dict[str, NDArray[np.float64]] = {}
    samples: dict[str, Sequence[Sample]] = {}
    for split in ("val", "test") if with_test else ("val",):
        limit = job.config.trainer.limit_eval
        end = None if limit is None else limit * job.config.data.batch_size
        samples[split] = job.manifest.split(split)[:end]
        features = job.folder / "predictions" / f"{split}_features.npy"
        most = min(MOST_POINTS, len(samples[split]))  # with tta the first view alone
        with kept_features(job.model.classifier, features, limit=most):
            cached = bool(stages and samples[split]) and end is None and stages[-1].cached
            shown = _from_cache(job, split, compute) if cached else None
            if shown is None:
                root = job.manifest.root
                shown = probabilities_of(job.model, samples[split], root, compute)
            found[split] = shown
    model = replace(job.model, views=compute.views)
    model = fixed_on_val(model, found["val"], samples["val"], job.config)
    save_model(job.folder / "model", model, job.architecture)
    metrics: dict[str, Any] = {}
    positive = job.config.positive
    for split in reversed(found):
        if samples[split]:
            metrics[split] = write_split(
                job.folder, split, model, samples[split], found[split], positive=positive
            )
        else:
            log.warning("No %s images: nothing is said of %s.", split, split)
    metrics |= settings_of(model)
    metrics["stages"] = [asdict(stage) for stage in stages]
    metrics["environment"] = environment()
    metrics["seconds"] = round(time.monotonic() - started, 3)
    write_json(job.folder / "metrics.json", metrics)
    show(metrics)
    print(f"The run is in {job.folder}")


def _from_cache(job: Job, split: str, compute: Compute) -> NDArray[np.float64] | None:
    """What `probabilities_of` would find, up to bf16's rounding, from what frozen blocks gave.

    Val has passed them already; other seeds and heads find test there too.
    """
    try:
        views, start = split_features(job, split)
    except OSError as error:
        log.warning("The cache cannot hold %s: %s.", split, error)
        return None
    return nine_digits(predict_features(job.model, views, start, compute))


def compute_of(config: Config, precision: str) -> Compute:
    """How a run's images are evaluated, by its settings: so many at once as a device trains on."""
    return Compute(
        choose_device(config.trainer.accelerator),
        precision == "bf16-mixed",
        ceil(config.data.batch_size / process_count(config.trainer)),
        config.data.num_workers,
        Views(config.tta, Augment(**asdict(config.augment)), config.seed),
    )


def probabilities_of(
    model: SavedModel, samples: Sequence[Sample], root: Path, compute: Compute
) -> NDArray[np.float64]:
    """(samples, classes), with the digits that the predictions file has."""
    if not samples:
        return np.zeros((0, len(model.classes)))
    return nine_digits(predict(model, [root / sample.path for sample in samples], compute))


def fixed_on_val(
    model: SavedModel,
    probabilities: NDArray[np.float64],
    samples: Sequence[Sample],
    config: Config,
) -> SavedModel:
    """The model with the temperature and, where one is asked for, the threshold that suit val."""
    known, labels = _labelled(model, samples)
    probabilities = probabilities[known]
    temperature = fit_temperature(probabilities, labels)
    if temperature is None:
        log.info("No temperature is fitted: on val none is the best.")
    decision = None
    if config.threshold is not None:
        positive = positive_class(config.positive, model.classes)
        decision = choose_threshold(probabilities, labels, positive=positive, aim=config.threshold)
    return replace(model, temperature=temperature, decision=decision)


def settings_of(model: SavedModel) -> dict[str, Any]:
    """What was chosen on val, as metrics.json says it."""
    if model.decision is None:
        return {"temperature": model.temperature}
    threshold = asdict(model.decision) | {"positive": model.classes[model.decision.positive]}
    return {"temperature": model.temperature, "threshold": threshold}


def write_split(  # noqa: PLR0913 — one by name
    run: Path,
    split: str,
    model: SavedModel,
    samples: Sequence[Sample],
    probabilities: NDArray[np.float64],
    *,
    positive: str | None,
) -> dict[str, Any]:
    """Write predictions and classification report; what metrics.json says of the split."""
    paths, names = [s.path for s in samples], [s.label for s in samples]
    output = run / "predictions" / f"{split}.csv"
    Predictions(paths, names, probabilities, model.classes, model.decision).write(output)
    known, labels = _labelled(model, samples)
    if not len(known):
        return {"n": len(samples), "notes": ["No image has a label: there is nothing to compare."]}
    probabilities = probabilities[known]
    predicted = decide(probabilities, model.decision)
    metrics = evaluate(
        probabilities,
        labels,
        model.classes,
        predicted=predicted,
        positive=1 if positive is None else model.classes.index(positive),
    )
    if model.temperature is not None and split != "val":
        mended = calibrated(probabilities, model.temperature)
        metrics["ece_calibrated"] = reliability(mended, labels).ece
    if without := len(samples) - len(known):
        metrics["notes"].append(f"{without} images without a label are left out.")
    report = classification_report(metrics)
    output.with_name(f"{split}_report.txt").write_text(report, "utf-8", errors="replace")
    return metrics


def _labelled(
    model: SavedModel, samples: Sequence[Sample]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which samples have a label, and their classes' indices."""
    index = {name: i for i, name in enumerate(model.classes)}
    labels = np.array([index.get(sample.label, -1) for sample in samples], dtype=np.int64)
    known = np.flatnonzero(labels >= 0)
    return known, labels[known]
