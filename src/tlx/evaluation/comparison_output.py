"""A comparison of runs on the screen, as CSV and as a plot."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tlx.evaluation.comparison import SCORES, Group, Pair, Run
from tlx.evaluation.tables import interval, results_table, table
from tlx.files import replace_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"accuracy": "#0072B2", "macro_f1": "#D55E00"}  # Okabe and Ito's


def show_comparison(
    runs: Sequence[Run], pairs: Sequence[Pair], groups: Sequence[Group], split: str
) -> None:
    console = Console()
    numbers = {run.name: str(i) for i, run in enumerate(runs, start=1)}
    rows = {f"{numbers[run.name]}: {run.name}": run.metrics for run in runs}
    console.print(results_table(f"Runs, on {split}", "run", rows))
    if any(pair.p_value is not None for pair in pairs):
        console.print(_pairs(pairs, numbers))
    for problem in dict.fromkeys(pair.problem for pair in pairs if pair.problem):
        these = [pair for pair in pairs if pair.problem == problem]
        text = f"{these[0].first} and {these[0].second}"
        text += f", and of {len(these) - 1} other pairs" if len(these) > 1 else ""
        console.print(f"No McNemar test of {text}: {problem}.", markup=False, highlight=False)
    if groups:
        console.print(_groups(groups, numbers))


def _pairs(pairs: Sequence[Pair], numbers: Mapping[str, str]) -> Table:
    columns = ("run", "and run", "only first right", "only second right", "p", "Holm's p")
    rows = table("McNemar's exact test", columns, left=2)
    for p in pairs:
        if p.p_value is not None:
            counts = (str(p.first_only), str(p.second_only))
            values = (f"{p.p_value:.4g}", f"{p.p_holm:.4g}")
            rows.add_row(numbers[p.first], numbers[p.second], *counts, *values)
    return rows


def _groups(groups: Sequence[Group], numbers: Mapping[str, str]) -> Table:
    columns = ("runs", "score", "mean", "sd", "range", "95 % interval")
    rows = table("Runs that differ in seed or fold alone", columns, left=2)
    for g in groups:
        spread = (f"{g.mean:.4f}", f"{g.sd:.4f}", interval((g.low, g.high)), interval(g.ci95))
        rows.add_row(", ".join(numbers[name] for name in g.runs), g.score, *spread)
    return rows


def write_comparison(
    folder: Path, runs: Sequence[Run], pairs: Sequence[Pair], groups: Sequence[Group], split: str
) -> None:
    """runs.csv, pairs.csv, seeds.csv (where there are any) and compare.png."""
    scores = [{score: run.metrics.get(score) for score in SCORES} for run in runs]
    rows = [
        {"run": run.name, "n": run.metrics["n"], **values, **_bounds(run.metrics)}
        for run, values in zip(runs, scores, strict=True)
    ]
    _write_csv(folder / "runs.csv", rows)
    _write_csv(folder / "pairs.csv", [vars(pair) for pair in pairs])
    if groups:
        together = [{**vars(g), "runs": " ".join(g.runs), **_bounds(vars(g))} for g in groups]
        for row in together:
            del row["ci95"]
        _write_csv(folder / "seeds.csv", together)
    with replace_atomically(folder / "compare.png") as temporary:
        dot_plot(runs, split).savefig(temporary, format="png")


def _bounds(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Every interval among the values, as two of their own."""
    pairs = {key: value for key, value in values.items() if key.endswith("ci95")}
    return {
        f"{key}_{side}": None if value is None else value[i]
        for key, value in pairs.items()
        for i, side in enumerate(("low", "high"))
    }


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with (
        replace_atomically(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def dot_plot(runs: Sequence[Run], split: str) -> "Figure":
    """Accuracy and macro-F1 of every run with their 95 % intervals, the first run on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.5 * len(runs)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for shift, (score, colour) in zip((-0.12, 0.12), COLOURS.items(), strict=True):
        for place, run in enumerate(runs):
            value, interval = run.metrics[score], run.metrics[f"{score}_ci95"]
            if interval is not None:
                axes.plot(interval, [place + shift] * 2, color=colour, linewidth=2)
            label = score.replace("_f1", " F1") if place == 0 else None
            axes.plot(value, place + shift, "o", color=colour, label=label)
    names = [run.name if len(run.name) <= 48 else f"{run.name[:47]}…" for run in runs]
    axes.set_yticks(range(len(runs)), [name.replace("$", r"\$") for name in names])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlabel(f"on {split}, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure
