"""How good the classifier is: the headline, scores, and what it takes for what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.evaluation import curves, figures
from tlx.evaluation.calibration import reliability
from tlx.evaluation.examples import confused_pairs
from tlx.evaluation.finished import FinishedRun, Judged
from tlx.evaluation.metrics import confusion
from tlx.evaluation.shown import NOTHING, ShownFigure, figure, interval, listed, percent
from tlx.evaluation.style import shorten

SPLIT_NAMES = {"test": "test", "val": "validation"}
MOST_ROWS = 60
MOST_CURVES = 8


def headline(run: FinishedRun) -> dict[str, Any] | None:
    """None for a run that was not evaluated."""
    split = run.split
    if split is None or "accuracy" not in run.metrics.get(split, {}):
        return None
    metrics, judged = run.metrics[split], run.judged[split]
    counts = np.bincount(judged.labels, minlength=len(run.classes))
    return {
        "split": split,
        "n": metrics["n"],
        "accuracy": metrics["accuracy"],
        "interval": metrics["accuracy_ci95"],
        "baseline": float(counts.max() / counts.sum()),
        "baseline_class": run.classes[int(counts.argmax())],
    }


def quality(run: FinishedRun) -> dict[str, Any]:
    if run.split is None:
        return {}
    judged = run.judged[run.split]
    counts = confusion(judged.labels, judged.predicted, len(run.classes))
    pairs = confused_pairs(counts, 10)
    return {
        "split": SPLIT_NAMES[run.split],
        "splits": [SPLIT_NAMES[split] for split in SPLIT_NAMES if _measured(run, split)],
        "scores": _scores(run),
        "classes": _by_class(run.metrics.get(run.split, {}).get("per_class") or {}),
        "notes": run.metrics.get(run.split, {}).get("notes", []),
        "pairs": [
            (run.classes[i], run.classes[j], n, percent(n / counts[i].sum(), 0))
            for i, j, n in pairs
        ],
        **_figures(judged, run.classes, pairs, _positive(run)),
    }


def _measured(run: FinishedRun, split: str) -> Mapping[str, Any]:
    """What metrics.json says of a split; empty when no image of it has a label."""
    metrics: Mapping[str, Any] = run.metrics.get(split, {})
    return metrics if "accuracy" in metrics else {}


def _scores(run: FinishedRun) -> dict[str, list[str]]:
    """Rows of the table of scores: name → one text for each of test and val that there is."""
    found = [m for split in SPLIT_NAMES if (m := _measured(run, split))]
    whose = ""
    if len(run.classes) == 2:
        positive = run.classes[_positive(run)]
        whose = f" of {positive}"
        found = [{**m, **_areas(m, positive)} for m in found]
    rows: dict[str, list[str]] = {"images": [f"{m['n']:,}" for m in found]}
    for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
        rows[name] = [percent(m[key]) for m in found]
        if any(m.get(f"{key}_ci95") is not None for m in found):
            rows[f"{name}, 95 % interval"] = [interval(m.get(f"{key}_ci95")) for m in found]
    others = (
        ("balanced accuracy", "balanced_accuracy", percent),
        ("truth among the first 2", "top2_accuracy", percent),
        ("truth among the first 5", "top5_accuracy", percent),
        (f"area under the ROC curve{whose}", "roc_auc", _number),
        (f"average precision{whose}", "average_precision", _number),
        ("loss (nats)", "loss", _number),
        ("calibration error", "ece", percent),
        ("calibration error at the fitted temperature", "ece_calibrated", percent),
    )
    for name, key, spell in others:
        if any(m.get(key) is not None for m in found):
            rows[name] = [spell(m.get(key)) for m in found]
    return rows


def _areas(metrics: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """One class's: a former tlx gave those of the second for the whole."""
    own = metrics.get("per_class", {}).get(name, {})
    return {key: own.get(key) for key in ("roc_auc", "average_precision")}


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _by_class(per_class: Mapping[str, Any]) -> dict[str, Any]:
    """Of many classes, those with the lowest F1. Without an image there is no recall, and no F1."""
    names = list(per_class)
    if len(names) > MOST_ROWS:
        names.sort(key=lambda name: (not per_class[name]["support"], per_class[name]["f1"]))
        names = names[:MOST_ROWS]
    rows = [
        (
            name,
            str(m["support"]),
            percent(m["precision"]),
            percent(m["recall"] if m["support"] else None),
            interval(m.get("recall_ci95")),
            percent(m["f1"] if m["support"] else None),
        )
        for name, m in ((name, per_class[name]) for name in names)
    ]
    return {"rows": rows, "left_out": len(per_class) - len(rows)}


def _figures(
    judged: Judged,
    classes: Sequence[str],
    pairs: Sequence[tuple[int, int, int]],
    positive: int,
) -> dict[str, Any]:
    n, right = len(judged.labels), int(judged.right.sum())
    counts = confusion(judged.labels, judged.predicted, len(classes))
    worst = "no image is confused"
    if pairs:
        i, j, number = pairs[0]
        worst = (
            f"the most frequent confusion is {classes[i]} taken for {classes[j]}, {number} times"
        )
    bins = reliability(judged.probabilities, judged.labels)
    mean = float(judged.probabilities.max(axis=1).mean())
    share = float((judged.probabilities.argmax(axis=1) == judged.labels).mean())
    way = "more sure than" if mean > share else "less sure than"
    if abs(mean - share) < 0.01:
        way = "about as sure as"
    likeliest = "likelier" if len(classes) == 2 else "likeliest"
    return {
        "confusion": figure(
            figures.confusion_matrix(counts, classes),
            f"Confusion matrix: {right} of {n} images are on its diagonal, that is right; {worst}.",
            "Confusion matrix. A row is a true class; the shade is the share of its row.",
        ),
        "reliability": figure(
            figures.reliability(bins.confidence, bins.accuracy, bins.counts),
            f"Reliability diagram: its {likeliest} class has {percent(mean)} on average and is "
            f"right for {percent(share)}; the expected calibration error is {percent(bins.ece)}.",
            "Reliability. On the dashed line probabilities mean what they say; a larger dot is "
            f"more images. It is {way} right: its {likeliest} class has {percent(mean)} on "
            f"average and is right for {percent(share)}.",
        ),
        "curves": _curves(judged, classes, positive),
    }


def _positive(run: FinishedRun) -> int:
    """Of two classes, the one that curves are drawn for."""
    name = run.raw.get("positive")  # in YAML it may be a number
    return run.classes.index(str(name)) if name is not None and str(name) in run.classes else 1


def _curves(judged: Judged, classes: Sequence[str], positive: int) -> list[ShownFigure]:
    """ROC and precision-recall, each class against the rest; of two classes, of the positive."""
    counts = np.bincount(judged.labels, minlength=len(classes))
    both = [i for i in range(len(classes)) if 0 < counts[i] < len(judged.labels)]
    areas = {i: curves.areas(judged.probabilities[:, i], judged.labels == i) for i in both}
    shown = sorted(both, key=lambda i: areas[i][0] or 0)
    if len(classes) == 2:
        shown = [i for i in both if i == positive]
    if not shown:
        return []
    roc, pr = {}, {}
    drawn = shown[:MOST_CURVES]
    for i, name in zip(drawn, shorten([classes[i] for i in drawn]), strict=True):
        scores, truth = judged.probabilities[:, i], judged.labels == i
        area, average = areas[i]
        roc[f"{name} ({area:.3f})"] = curves.roc_curve(scores, truth)
        precision, recall = curves.precision_recall_curve(scores, truth)
        pr[f"{name} ({average:.3f})"] = (recall, precision)
    which = f"the class {classes[positive]}" if len(classes) == 2 else "each class against the rest"
    if len(shown) > MOST_CURVES:
        which = f"the {MOST_CURVES} classes of {len(shown)} with the smallest areas"
    return [
        figure(
            figures.curves(roc, x="false positive rate", y="true positive rate", chance=True),
            f"ROC curves, with their areas: {listed(list(roc), 20)}.",
            f"ROC curve of {which}, with the area under it.",
        ),
        figure(
            figures.curves(pr, x="recall", y="precision"),
            f"Precision-recall curves, with the average precision: {listed(list(pr), 20)}.",
            f"Precision and recall of {which}, with the average precision.",
        ),
    ]
