"""Run the stand-ins of the write-ups, some seeds each, and put them side by side.

    python benchmarks/reproductions/run.py [EXPERIMENT …] [--seeds 0 1 2] [--folder DIR]

Finished runs are kept, interrupted ones go on. Ends with DIR/table.md and DIR/results.json. The
interval of an accuracy is Wilson's for as many test images; that of a difference is Student's,
over the test images, of the mean over the seeds: images are the sample, seeds are averaged.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from commands import names, stand_ins

from tlx.composition import saved_config
from tlx.evaluation.comparison import Run, read_run
from tlx.evaluation.intervals import t_interval, wilson
from tlx.files import write_json

PAIRS = (  # the right one first
    ("flowers_vgg16_relu", "flowers_vgg16_softmax"),
    ("resnet50_bottleneck", "resnet50_bottleneck_rescaled"),
    ("cats_dogs_forty_images_fixed", "cats_dogs_forty_images"),
)


def train(arguments: list[str], seed: int, folder: Path) -> None:
    if (folder / "metrics.json").exists():
        return
    if (folder / "checkpoints").exists():
        own = [f"resume={folder}"]
    else:
        own = [*arguments, f"seed={seed}", "report=none", "verbosity=plain"]
        own.append(f"hydra.run.dir={folder}")
    print("python -m tlx.train", *own, flush=True)
    subprocess.run([sys.executable, "-m", "tlx.train", *own], check=True)


def read(folder: Path) -> tuple[Run, float]:
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    run = read_run(folder, folder.name, "test", saved_config(folder), metrics["test"])
    return run, metrics["seconds"]


def result(runs: list[Run], seconds: list[float]) -> dict[str, Any]:
    scores = [float(run.metrics["accuracy"]) for run in runs]
    n, mean = int(runs[0].metrics["n"]), fmean(scores)
    low, high = wilson(round(mean * n), n)
    return {
        "n": n,
        "accuracy": scores,
        "mean": mean,
        "ci95": [low, high],
        "macro_f1": fmean(run.metrics["macro_f1"] for run in runs),
        "seconds": seconds,
    }


def difference(first: list[Run], second: list[Run]) -> dict[str, Any]:
    """How much more often the first is right on the same images; runs come seed by seed."""
    if any(a.right[i][0] != b.right[i][0]
           for a, b in zip(first, second, strict=True) for i in range(len(a.right))):  # fmt: skip
        raise SystemExit("a pair's test images differ")
    rights = [[[right for _, right in run.right] for run in runs] for runs in (first, second)]
    ours, theirs = ([fmean(image) for image in zip(*runs, strict=True)] for runs in rights)
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = t_interval(fmean(gaps), stdev(gaps), len(gaps))
    return {"mean": fmean(gaps), "ci95": [low, high], "n": len(gaps), "seeds": len(first)}


def pairs(found: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    differences = {}
    for right, wrong in PAIRS:
        for label, ours in found.items():
            if label.partition("-")[0] == right:
                other = wrong + label.removeprefix(right)
                if other in found:
                    differences[f"{label} over {other}"] = difference(ours, found[other])
    return differences


def table(results: dict[str, dict[str, Any]], differences: dict[str, dict[str, Any]]) -> str:
    lines = ["| experiment | n | accuracy, by seed | mean | 95 % interval | seconds |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for label, r in results.items():
        scores = " ".join(f"{score:.3f}" for score in r["accuracy"])
        seconds = " ".join(f"{s:.0f}" for s in r["seconds"])
        low, high = r["ci95"]
        lines.append(
            f"| `{label}` | {r['n']} | {scores} | {r['mean']:.3f} | {low:.3f} to {high:.3f} "
            f"| {seconds} |"
        )
    lines += ["", "| difference, same images | mean | 95 % interval |", "|---|---|---|"]
    for label, d in differences.items():
        low, high = d["ci95"]
        lines.append(f"| {label} | {d['mean']:+.3f} | {low:+.3f} to {high:+.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("experiment", nargs="*", default=names())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs/reproductions"))
    own = parser.parse_args()
    if unknown := sorted(set(own.experiment) - set(names())):
        parser.error(f"no experiment {unknown[0]}; there are {', '.join(names())}")
    commands = {k: v for name in own.experiment for k, v in stand_ins(name).items()}
    runs, results = {}, {}
    for label, arguments in commands.items():
        folders = [own.folder / label / f"seed-{seed}" for seed in own.seeds]
        for seed, folder in zip(own.seeds, folders, strict=True):
            train(arguments, seed, folder)
        read_ones = [read(folder) for folder in folders]
        runs[label] = [run for run, _ in read_ones]
        results[label] = result(runs[label], [seconds for _, seconds in read_ones])
    differences = pairs(runs)
    machine = f"{platform.machine()}, {os.cpu_count()} processors"
    everything = {"machine": machine, "seeds": own.seeds, "results": results}
    write_json(own.folder / "results.json", {**everything, "differences": differences})
    (own.folder / "table.md").write_text(table(results, differences), "utf-8")
    print(table(results, differences))


if __name__ == "__main__":
    main()
