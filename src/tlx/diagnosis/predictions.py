"""A run's files of predictions: do they belong to the images, and say more than one class?"""

import csv
from collections import Counter
from collections.abc import Iterator

from tlx.diagnosis.claims import claim
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.run_folder import RunFolder
from tlx.errors import UserError
from tlx.evaluation.intervals import wilson

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
            rows = [(row["path"], row.get("label")) for row in csv.DictReader(file)]
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
                AGAIN.format(run.folder, split),
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
    yield Finding(
        "one_class", "error" if times == n else "warning",
        f"{name!r} is predicted for {times} of {n} val and test images and is the label of "
        f"{labels[name]}; accuracy {right / n:.3f}, always answering {majority!r}: {most / n:.3f}",
        "data.class_weights=balanced" if most * len(labels) > 1.5 * n
        else f"what stands above this, or is found by python -m tlx.doctor {run.overrides}",
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
    yield from claim(split, found["n"], found["accuracy"], smallest=smallest)
