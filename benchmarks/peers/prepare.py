"""The recipe's files, written once: 2,000 train and 624 val photographs, and VGG16's weights.

    python benchmarks/peers/prepare.py FOLDER

FOLDER/data holds train/ and val/ with a folder for each class, FOLDER/manifest.csv lists them.
"""

import csv
import os
import random
import sys
from pathlib import Path

from safetensors.torch import save_file

from tlx.composition import compose
from tlx.config import parse
from tlx.data.sources import build_manifest
from tlx.models.weights import resolve_weights

VAL = 624


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    manifest = build_manifest(parse(compose(["data=elpv"])).data, seed=0)
    samples = sorted(manifest.samples, key=lambda sample: sample.path)
    random.Random(0).shuffle(samples)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number, sample in enumerate(samples):
            split = "val" if number < VAL else "train"
            target = folder / "data" / split / sample.label / Path(sample.path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.symlink(Path(manifest.root / sample.path).resolve(), target)
            writer.writerow([target.relative_to(folder / "data"), sample.label, split])
    weights = resolve_weights("vgg16", "imagenet")
    if weights is None:
        raise SystemExit("no weights of VGG16")
    kept = {k: v.contiguous() for k, v in weights.state_dict.items() if k.startswith("features.")}
    save_file(kept, folder / "vgg16.safetensors")


if __name__ == "__main__":
    main()
