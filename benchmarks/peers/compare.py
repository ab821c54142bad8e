"""tlx beside its peers on the reference recipe; prints a table and keeps it as JSON too.

    python benchmarks/peers/compare.py .bench [--steps 20] [--repeats 3] [--full [NAME ...]]

All train VGG16 on the same 2,000 images of 150 pixels, 20 a step: 30 epochs of 100 steps on the
head, then 100 with block5, and go over the same 624 val images after each epoch. Those named after
--full take all of it (all, where none is named). The others take one epoch of `--steps` steps of
each kind, but tlx, which computes its frozen blocks once, whole, 2 epochs on the head and 1 with
block5; the time of the whole recipe is what a step, a pass over val and everything else took, each
as often as the recipe has it. Accuracies are compared after the same steps: where the peers'
schedule is short, tlx trains once more on it, without its cache. The programs take turns,
`--repeats` times with another seed each; ratios are within a turn, medians are shown.
With --everything all blocks learn after the head, nothing is cached, and a step's time is printed:
of tlx the mean of steps 11 to 20 with `--steps 22`, of the others the median.
How long the default `stage=finetune` takes on the same files, and how good it gets, by seed:

    python benchmarks/peers/tlx_train.py --data .bench/data --weights .bench/vgg16.safetensors \
        --steps 100 --head-epochs 8 --top-epochs 3 --default --seed 0
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tlx.evaluation.intervals import wilson

HEAD_EPOCHS, TOP_EPOCHS, STEPS = 30, 100, 100
HERE = Path(__file__).parent
PROGRAMS = {  # name → script, environment below the folder (None: tlx's own)
    "tlx": ("tlx_train.py", None),
    "Keras 3 on TensorFlow": ("keras_tf.py", "keras"),
    "fastai vision_learner": ("fastai_learner.py", "torch"),
    "Lightning BackboneFinetuning": ("lightning_finetuning.py", "torch"),
    "torchvision reference": ("torchvision_reference.py", "torch"),
}

Found = dict[str, Any]


def run(folder: Path, name: str, taken: list[str], seed: int) -> Found:
    """What the program's last line says, with the peak memory of its largest process in GB."""
    script, environment = PROGRAMS[name]
    python = folder / environment / "bin/python" if environment else sys.executable
    command = [
        str(python), str(HERE / script), "--data", str(folder / "data"),
        "--weights", str(folder / "vgg16.safetensors"), "--seed", str(seed), *taken,
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{name} failed")
    return json.loads(lines[-1]) | {"memory": usage.ru_maxrss / 1024**2}


def schedule(steps: int, epochs: tuple[int, int], everything: bool = False) -> list[str]:
    head, top = epochs
    numbers = ["--steps", str(steps), "--head-epochs", str(head), "--top-epochs", str(top)]
    return [*numbers, *["--everything"] * everything]


def whole(found: Found) -> Found:
    """Seconds of an epoch of each kind and of the whole recipe."""
    if "head_epoch" not in found:  # a peer, which counts steps
        for phase in ("head", "top"):
            found[f"{phase}_epoch"] = STEPS * found[f"{phase}_step"] + found["val"]
    epochs = HEAD_EPOCHS * found["head_epoch"] + TOP_EPOCHS * found["top_epoch"]
    return found | {"recipe": found["once"] + epochs}


def table(results: dict[str, list[Found]]) -> str:
    lines = [
        "| | head epoch, s | block5 epoch, s | recipe, min | tlx is faster by | memory, GB "
        "| val accuracy (95 % CI) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        head, top, recipe, memory = (
            statistics.median(f[key] for f in found)
            for key in ("head_epoch", "top_epoch", "recipe", "memory")
        )
        pairs = zip(found, results["tlx"], strict=True)
        ratio = statistics.median(f["recipe"] / own["recipe"] for f, own in pairs)
        last = sorted(found, key=lambda f: f["right"])[len(found) // 2]
        low, high = wilson(last["right"], last["images"])
        lines.append(
            f"| {name} | {head:.1f} | {top:.1f} | {recipe / 60:.1f} | {ratio:.1f} | {memory:.1f} "
            f"| {last['right'] / last['images']:.3f} ({low:.3f} to {high:.3f}) |"
        )
    return "\n".join(lines)


def steps_table(results: dict[str, list[Found]]) -> str:
    lines = ["| everything learns | a step, s | tlx is faster by |", "|---|---|---|"]
    for name, found in results.items():
        ratios = [
            f["top_step"] / own["top_step"] for f, own in zip(found, results["tlx"], strict=True)
        ]
        step = statistics.median(f["top_step"] for f in found)
        lines.append(f"| {name} | {step:.2f} | {statistics.median(ratios):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", nargs="*", choices=list(PROGRAMS), help="the whole recipe")
    parser.add_argument("--everything", action="store_true", help="a step that trains it all")
    parser.add_argument("--only", nargs="*", choices=list(PROGRAMS)[1:], help="peers; default: all")
    args = parser.parse_args()
    folder = args.folder.resolve()
    names = ["tlx", *(args.only if args.only is not None else list(PROGRAMS)[1:])]
    full = names if args.full == [] else args.full or []
    results: dict[str, list[Found]] = {name: [] for name in names}
    for seed in range(args.repeats):
        for name in names:
            steps, epochs = args.steps, (1, 1)
            if name in full:
                steps, epochs = STEPS, (HEAD_EPOCHS, TOP_EPOCHS)
            elif name == "tlx" and not args.everything:
                steps, epochs = STEPS, (2, 1)
            found = whole(run(folder, name, schedule(steps, epochs, args.everything), seed))
            if name == "tlx" and not args.everything and full != names:
                short = [*schedule(args.steps, (1, 1)), "--uncached"]
                found |= {"end": found["right"], "right": run(folder, name, short, seed)["right"]}
            results[name].append(found)
            print(name, json.dumps(found), file=sys.stderr, flush=True)
    if args.everything:
        print(steps_table(results))
        return
    measured = f"The whole recipe by {', '.join(full)}. " if full else ""
    if full != names:
        measured += (
            f"One epoch of {args.steps} steps of each kind by the others, by tlx 2 and 1 of "
            f"{STEPS}; times are scaled to {HEAD_EPOCHS} and {TOP_EPOCHS} epochs of {STEPS} steps. "
            f"Accuracies are those after {args.steps} steps of each kind. "
        )
    if "tlx" in full and full != names:
        ends = ", ".join(f"{found['end'] / found['images']:.3f}" for found in results["tlx"])
        measured += f"After its whole recipe tlx's, of the epoch with the lowest loss, are {ends}. "
    text = f"{measured}Medians of {args.repeats}.\n\n{table(results)}\n"
    (folder / "peers.md").write_text(text, "utf-8")
    (folder / "peers.json").write_text(json.dumps(results, indent=1), "utf-8")
    print(text)


if __name__ == "__main__":
    main()
