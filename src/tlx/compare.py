"""python -m tlx.compare: runs side by side."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.commands import command, split_arguments
from tlx.composition import is_trial, saved_config
from tlx.errors import UserError, unknown

if TYPE_CHECKING:
    from tlx.evaluation.comparison import Run

HELP = """\
tlx compare: runs side by side, with intervals.

  python -m tlx.compare RUN RUN… [split=test] [output=FOLDER]

  RUN             a finished run's folder, or a sweep's: each of its trials
  split=test      val | test
  output=FOLDER   write runs.csv, pairs.csv, seeds.csv and compare.png there

Pairs of runs on the same images get McNemar's exact test; of many pairs some are uneven by chance,
which Holm's p allows for. Runs that differ in nothing but seed or data.fold are also taken
together: mean, standard deviation, range and a 95 % interval.
"""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own, folders = split_arguments(arguments, {"split": "test", "output": ""})
    for argument in folders:
        if "=" in argument and not Path(argument).exists():
            raise unknown("argument", argument.partition("=")[0], own)
    if own["output"] and Path(own["output"]).is_file():
        raise UserError(f"output={own['output']} is a file; give a folder.")
    if own["split"] not in ("val", "test"):
        raise unknown("split", own["split"], ("val", "test"))
    found = {  # a run has one name, however often it is given
        place.resolve(): place for folder in folders for place in _trials(Path(folder))
    }
    unfinished = [path for path in found if not (path / "metrics.json").is_file()]
    if len(found) - len(unfinished) >= 2:
        for path in unfinished:
            print(f"Left out: {found.pop(path)} is not finished.")
    if len(found) < 2:
        raise UserError("give two runs or more: python -m tlx.compare RUN RUN.")
    from tlx.evaluation.comparison import compare_pairs, groups
    from tlx.evaluation.comparison_output import show_comparison, write_comparison

    runs = _read(list(found.values()), own["split"])
    pairs, seeds = compare_pairs(runs), groups(runs)
    show_comparison(runs, pairs, seeds, own["split"])
    if own["output"]:
        write_comparison(Path(own["output"]), runs, pairs, seeds, own["split"])
        print(f"Written to {own['output']}")


def _trials(folder: Path) -> list[Path]:
    """The run itself, or those below a sweep's folder, in its order."""
    from tlx.data.manifest import natural_key

    if (folder / ".hydra").is_dir() or (folder / "metrics.json").is_file():
        return [folder]
    trials = {path.parent.parent for path in folder.rglob(".hydra/config.yaml")}
    trials |= {path.parent for path in folder.rglob("metrics.json")}
    if any((trial / "metrics.json").is_file() for trial in trials):
        return sorted(trials, key=lambda trial: natural_key(str(trial)))
    raise UserError(f"{folder} holds no finished run: there is no metrics.json in or below it.")


def _way_out(place: Path, split: str, metrics: Mapping[str, Any]) -> str:
    if split in metrics:
        return "none of these images has a label"
    if not (place / "metrics.json").is_file():
        return f"python -m tlx.train resume={place} goes on with it"
    if split == "test" and is_trial(place):
        return "a sweep leaves them alone: compare its trials with split=val"
    return f"python -m tlx.evaluate run={place} split={split} makes them"


def _read(places: Sequence[Path], split: str) -> "list[Run]":
    from tlx.evaluation.comparison import read_run

    names = [place.resolve().name for place in places]
    runs = []
    for place, name in zip(places, names, strict=True):
        path = place / "metrics.json"
        metrics = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if "accuracy" not in metrics.get(split, {}):
            raise UserError(
                f"{place} has no results on {split}; {_way_out(place, split, metrics)}."
            )
        shown = name if names.count(name) == 1 else str(place)
        runs.append(read_run(place, shown, split, saved_config(place), metrics[split]))
    return runs


if __name__ == "__main__":
    main(sys.argv[1:])
