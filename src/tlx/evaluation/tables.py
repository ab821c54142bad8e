"""What metrics.json holds, as tables on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MOST_CLASSES = 20  # in the table by class


def show(metrics: Mapping[str, Any]) -> None:
    """The stages, the results by split, the scores by class of test (or else val), the notes."""
    console = Console()
    if stages := metrics.get("stages"):
        console.print(_stages(stages))
    splits = [name for name in ("train", "val", "test", "all") if name in metrics]
    console.print(results_table("Results", "split", {name: metrics[name] for name in splits}))
    last = metrics[splits[-1]] if splits else {}
    if "per_class" in last and len(last["per_class"]) <= MOST_CLASSES:
        console.print(_by_class(last, splits[-1]))
    if threshold := metrics.get("threshold"):
        reached = threshold.get("reached")
        found = "" if reached is None else f", reached {reached:.4f}"
        console.print(
            f"{threshold['positive']} is predicted from a probability of "
            f"{threshold['threshold']:.4g} on (aim on val: {threshold['aim']}{found}).",
            markup=False,
            highlight=False,
        )
    for name in splits:
        for note in metrics[name]["notes"]:
            console.print(f"{name}: {note}", markup=False, highlight=False)


def _stages(stages: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("stage", "learns from", "epochs", "best", "trainable", "of", "time")
    rows = table("Stages", columns, left=2)
    for s in stages:
        rows.add_row(
            s["name"], s["train_from"], str(s["epochs"]), str(s["best_epoch"]),
            f"{s['trainable_parameters']:,}", f"{s['total_parameters']:,}",
            f"{s['seconds']:.0f} s",
        )  # fmt: skip
    return rows


def results_table(title: str, first: str, metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each of `metrics`, by name: a split's, or a run's."""
    columns = (first, "images", "accuracy", "95 % CI", "macro F1", "95 % CI", "loss")
    rows = table(title, columns, left=1)
    for name, m in metrics.items():
        if "accuracy" not in m:
            rows.add_row(name, str(m["n"]), *["-"] * 5)
            continue
        rows.add_row(
            Text(name), str(m["n"]), f"{m['accuracy']:.4f}", interval(m["accuracy_ci95"]),
            f"{m['macro_f1']:.4f}", interval(m["macro_f1_ci95"]), f"{m['loss']:.4f}",
        )  # fmt: skip
    return rows


def _by_class(metrics: Mapping[str, Any], split: str) -> Table:
    columns = ("class", "precision", "recall", "95 % CI", "F1", "images")
    rows = table(f"Classes, on {split}", columns, left=1)
    for name, m in metrics["per_class"].items():
        recall, f1 = (f"{m[key]:.4f}" if m["support"] else "-" for key in ("recall", "f1"))
        rows.add_row(
            Text(name), f"{m['precision']:.4f}", recall, interval(m["recall_ci95"]), f1,
            str(m["support"]),
        )  # fmt: skip
    return rows


def interval(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:.3f}–{bounds[1]:.3f}"  # noqa: RUF001


def table(title: str, columns: Sequence[str], *, left: int) -> Table:
    """The first `left` columns hold text, the others numbers."""
    empty = Table(title=title)
    for i, column in enumerate(columns):
        if i < left:
            empty.add_column(column, overflow="fold")
        else:
            empty.add_column(column, justify="right", no_wrap=True)
    return empty
