"""How a run learned: its stages, curves, parameters and BatchNorm statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tlx.data.checks import TOLD_OF_DATA
from tlx.errors import UserError
from tlx.evaluation.finished import FinishedRun
from tlx.evaluation.history import History
from tlx.evaluation.learning_figures import LONG, SMOOTHING, learning_curves, learning_rates
from tlx.evaluation.shown import NOTHING, ShownFigure, duration, figure
from tlx.models.classifier import parameter_table
from tlx.training.plan import meta_classifier
from tlx.training.unfreezing import apply_stage, plain_stages


def learning(run: FinishedRun) -> dict[str, Any]:
    return {
        "stages": [
            (
                stage["name"],
                stage["train_from"],
                stage["epochs"],
                stage.get("best_epoch", NOTHING),
                f"{stage['trainable_parameters']:,}",
                duration(stage["seconds"]),
            )
            for stage in run.metrics.get("stages", [])
        ],
        "handed": _handed(run),
        "parameters": _parameters(run),
        "figures": _figures(run.history),
        "drift": _drift(run.history),
        "doctor": run.doctor if run.doctor is None else _doctor(run.doctor),
    }


def _doctor(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "severity": finding["severity"],
            "message": f"{finding['title']}: {finding['evidence']}",
            "fix": finding["fix"],
        }
        for finding in findings
        if finding["cause"] not in TOLD_OF_DATA
    ]


def _handed(run: FinishedRun) -> str:
    kinds = {stage.hand_over for stage in run.config.stages} if run.config is not None else {"best"}
    words = {"best": "its best epoch, chosen on validation images,", "last": "its last epoch"}
    return " or ".join(words[kind] for kind in sorted(kinds))


def _parameters(run: FinishedRun) -> dict[str, Any]:
    """Per block: all parameters and, of each stage, those that learn."""
    if run.config is None or not run.classes:
        return {}
    try:
        classifier = meta_classifier(run.config, len(run.classes))
        stages = plain_stages(classifier, run.config.stages)
    except UserError:
        return {}
    learn = []
    for stage in stages:
        with torch.device("meta"):
            apply_stage(classifier, stage)
        learn.append([row.trainable for row in parameter_table(classifier)])
    rows = parameter_table(classifier)
    return {
        "stages": [stage.name for stage in stages],
        "rows": [(r.group, r.total, [of[i] for of in learn]) for i, r in enumerate(rows)],
        "total": (sum(r.total for r in rows), [sum(of) for of in learn]),
    }


def _figures(history: History) -> list[ShownFigure]:
    if "train/loss" not in history.series:
        return []
    shown = []
    for metric, best in (("loss", min), ("accuracy", max)):
        tags = [tag for tag in (f"train/{metric}", f"val/{metric}") if tag in history.series]
        if not tags:
            continue
        told = []
        for tag in tags:
            values = [float(value) for value in history.series[tag][1]]
            told.append(
                f"{tag.partition('/')[0]} goes from {values[0]:.3f} to {values[-1]:.3f} "
                f"(best {best(values):.3f})"
            )
        alt = f"{metric.capitalize()} by epoch: {'; '.join(told)}."
        caption = f"{metric.capitalize()} in training and on validation images, epoch by epoch"
        if max(len(history.series[tag][1]) for tag in tags) >= LONG:
            caption += f" (thin), and smoothed exponentially by {SMOOTHING:g} (bold)"
        caption += "."
        shown.append(figure(learning_curves(history, metric), alt, caption))
    groups = [tag.removeprefix("lr/") for tag in history.series if tag.startswith("lr/")]
    if groups:
        caption = "Learning rate of each layer group; 0 is not drawn."
        alt = (
            f"Learning rates of {len(groups)} layer groups, {groups[0]} to {groups[-1]}, by epoch."
        )
        shown.append(figure(learning_rates(history), alt, caption))
    return shown


def _drift(history: History) -> dict[str, Any]:
    """How far the running statistics moved from the pretrained ones, at the end."""
    mean, scale = history.last("batchnorm_drift_mean/"), history.last("batchnorm_drift_scale/")
    moved = [block for block in mean if mean[block] != 0 or scale.get(block, 0) != 0]
    rows = [(block, f"{mean[block]:.4f}", f"{scale.get(block, 0):.4f}") for block in moved]
    return {"known": bool(history.series), "blocks": len(mean), "rows": rows}
