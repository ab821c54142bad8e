"""A split's predictions and figures: into the run's folder and onto the screen."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tlx.data.manifest import Sample
from tlx.evaluation.metrics import evaluate
from tlx.evaluation.predictions import Compute, Predictions, predict
from tlx.files import write_json
from tlx.models.folder import SavedModel, save_model
from tlx.training.devices import choose_device
from tlx.training.job import Job
from tlx.training.run import StageResult


def evaluate_samples(
    model: SavedModel, samples: Sequence[Sample], root: Path, output: Path, compute: Compute
) -> dict[str, Any]:
    """Write the predictions for `samples` to `output`; what metrics.json says of them."""
    files = [root / sample.path for sample in samples]
    probabilities = predict(model, files, compute)
    labels = [sample.label for sample in samples]
    paths = [sample.path for sample in samples]
    Predictions(paths, labels, probabilities, model.classes).write(output)
    return evaluate(probabilities, np.array([model.classes.index(label) for label in labels]))


def finish(job: Job, stages: Sequence[StageResult], *, with_test: bool, started: float) -> None:
    """Save the model; evaluate it on val and, once, on test; write metrics.json, last of all."""
    save_model(job.folder / "model", job.model, job.architecture)
    trainer = job.config.trainer
    compute = Compute(
        choose_device(trainer.accelerator),
        job.precision == "bf16-mixed",
        job.config.data.batch_size,
    )
    metrics: dict[str, Any] = {}
    for split in ("test", "val") if with_test else ("val",):
        samples = job.manifest.split(split)
        if trainer.limit_eval is not None:
            samples = samples[: trainer.limit_eval * compute.batch_size]
        if samples:
            output = job.folder / "predictions" / f"{split}.csv"
            root = job.manifest.root
            metrics[split] = evaluate_samples(job.model, samples, root, output, compute)
    metrics["stages"] = [asdict(stage) for stage in stages]
    metrics["seconds"] = round(time.monotonic() - started, 3)
    write_json(job.folder / "metrics.json", metrics)
    show(metrics)
    print(f"The run is in {job.folder}")


def show(metrics: Mapping[str, Any]) -> None:
    """The stages and the results, as tables on the screen."""
    console = Console()
    if stages := metrics.get("stages"):
        table = Table(title="Stages")
        for column in ("stage", "learns from", "epochs", "best", "trainable", "of", "time"):
            table.add_column(
                column, justify="left" if column in ("stage", "learns from") else "right"
            )
        for s in stages:
            table.add_row(
                s["name"], s["train_from"], str(s["epochs"]), str(s["best_epoch"]),
                f"{s['trainable_parameters']:,}", f"{s['total_parameters']:,}",
                f"{s['seconds']:.0f} s",
            )  # fmt: skip
        console.print(table)
    table = Table(title="Results")
    for column in ("split", "images", "accuracy", "95 % interval", "macro F1", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("val", "test"):
        if split in metrics:
            m = metrics[split]
            low, high = m["accuracy_ci95"]
            table.add_row(
                split, str(m["n"]), f"{m['accuracy']:.4f}", f"{low:.4f} to {high:.4f}",
                f"{m['macro_f1']:.4f}", f"{m['loss']:.4f}",
            )  # fmt: skip
    console.print(table)
