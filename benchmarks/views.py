"""How many views are enough: 1, 2, 4, … of them against new ones every epoch, by what val says.

    python benchmarks/views.py [views=1,2,4,8,16] [seeds=0,1,2] [epochs=32] [output=FOLDER]
        [OVERRIDE …]

Trains SqueezeNet 1.1 on the solar cells, its head, then with it the last block for `epochs`, under
augment=light. With as many views as the last block has epochs, it has a new one in each.
Runs of a seed have the same splits, and share what views they have in common. Saves views.json and
a plot, in which a line is a seed and the thick one their mean.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from tlx.commands import own_arguments
from tlx.evaluation.style import BLUE, GREY, styled

OWN = {"views": "1,2,4,8,16", "seeds": "0,1,2", "epochs": "32", "output": "."}
SETTINGS = [
    "backbone=squeezenet1_1", "stage=finetune", "stage.head.epochs=4", "augment=light",
    "stage.top.lr=3e-4", "data=elpv", "data.image_size=112", "test=false", "report=none",
    "verbosity=quiet",
]  # fmt: skip

SCORES = ("accuracy", "loss")
Found = dict[str, list[dict[str, float]]]  # views → of each seed, the scores on val


def train(views: str, seed: str, folder: Path, settings: list[str]) -> dict[str, float]:
    """The run's scores on val; a finished run is not repeated."""
    run = folder / f"views_{views}_seed_{seed}"
    if not (run / "metrics.json").exists():
        own = [f"cache.views={views}", f"seed={seed}", "cache=on", f"hydra.run.dir={run}"]
        subprocess.run([sys.executable, "-m", "tlx.train", *settings, *own], check=True)
    val = json.loads((run / "metrics.json").read_text("utf-8"))["val"]
    return {score: val[score] for score in SCORES}


@styled
def plot(found: Found) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    *counts, epochs = found
    names = [*counts, f"{epochs}: new\neach epoch"]
    for axes, score in zip(figure.subplots(1, len(SCORES)), SCORES, strict=True):
        values = [[seed[score] for seed in seeds] for seeds in found.values()]
        axes.plot(names, values, "o-", color=GREY, linewidth=0.8, markersize=3)
        axes.plot(names, [fmean(seeds) for seeds in values], "o-", color=BLUE)
        axes.set(title=f"{score.capitalize()} on val", xlabel="views of each training image")
    return figure


def main() -> None:
    given = [a for a in sys.argv[1:] if a.split("=")[0] in OWN]
    arguments = own_arguments(given, OWN)
    output = Path(arguments["output"])
    settings = [*SETTINGS, f"stage.top.epochs={arguments['epochs']}"]
    settings += [a for a in sys.argv[1:] if a not in given]
    counts = [*arguments["views"].split(","), arguments["epochs"]]
    found: Found = {}
    for views in counts:
        seeds = arguments["seeds"].split(",")
        found[views] = [train(views, seed, output, settings) for seed in seeds]
        print(views, json.dumps(found[views]), flush=True)
    (output / "views.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    plot(found).savefig(output / "views.png", dpi=110)


if __name__ == "__main__":
    main()
