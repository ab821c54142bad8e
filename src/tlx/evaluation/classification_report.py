"""The table of scores by class, in the form of scikit-learn's classification report."""

from collections.abc import Mapping
from typing import Any

SCORES = ("precision", "recall", "f1")


def classification_report(metrics: Mapping[str, Any], digits: int = 4) -> str:
    """Of a split's part of metrics.json; the classes that occur, then the averages."""
    rows = {
        name: [scores[key] for key in SCORES] + [scores["support"]]
        for name, scores in metrics["per_class"].items()
        if scores["support"] or scores["predicted"]
    }
    width = max(len("weighted avg"), *map(len, rows))
    heads = [f"{head:>9}" for head in ("precision", "recall", "f1-score", "support")]
    lines = [" ".join([" " * width + " ", *heads]), ""]
    lines += [_line(name, values, width, digits) for name, values in rows.items()]
    n = metrics["n"]
    gap = " " * 9
    accuracy = f"{metrics['accuracy']:>9.{digits}f}"
    lines += ["", " ".join([f"{'accuracy':>{width}} ", gap, gap, accuracy, f"{n:>9}"])]
    for name in ("macro", "weighted"):
        values = [metrics[name][key] for key in SCORES]
        lines.append(_line(f"{name} avg", [*values, n], width, digits))
    return "\n".join(lines) + "\n"


def _line(name: str, values: list[Any], width: int, digits: int) -> str:
    *scores, support = values
    cells = [f"{score:>9.{digits}f}" for score in scores]
    return " ".join([f"{name:>{width}} ", *cells, f"{support:>9}"])
