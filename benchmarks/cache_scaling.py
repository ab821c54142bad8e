"""Time, disk and memory of the feature cache, from 1,000 images to as many as are asked for.

    python benchmarks/cache_scaling.py [images=1000,3000,10000] [views=1] [size=64]
        [backbone=squeezenet1_1] [output=FOLDER]

A hundred random JPEGs stand for any number of images. Each number has a process of its own, which
computes the features of all views before the last block, in float32, then reads all of them once
in random order, in batches of 32. Memory is the most the process had beyond what it had after
building the network and passing a batch through it. Saves cache_scaling.json and a plot.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from tlx.commands import own_arguments
from tlx.data.augment import Augment, sample_key
from tlx.data.datasets import FeatureDataset, ImageDataset
from tlx.data.loaders import make_loader
from tlx.data.manifest import Sample
from tlx.evaluation.style import BLUE, styled
from tlx.models.folder import Architecture, build_classifier
from tlx.models.preprocess import Preprocess
from tlx.training.feature_store import FeatureStore
from tlx.training.features import Pictures, Rows, Source, features

BATCH, FILES = 32, 100
OWN = {"images": "1000,3000,10000", "views": "1", "size": "64", "backbone": "squeezenet1_1",
       "output": "."}  # fmt: skip


def resident() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_files(folder: Path, size: int) -> list[Path]:
    random = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(FILES)]
    for file in files:
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)
    return files


def source_of(backbone: str, size: int) -> Source:
    preprocess = Preprocess.for_weights(backbone, None, image_size=size)
    classifier = build_classifier(Architecture(backbone, size, 2, "avg", (), "relu", 0.0))
    classifier.to(memory_format=torch.channels_last)
    return Source(classifier, preprocess, torch.device("cpu"), False, BATCH)


def repeated(files: list[Path], n: int, source: Source) -> Pictures:
    samples = [Sample(f"{i}.jpg", "a", "train", "", f"{i:064x}") for i in range(n)]
    dataset = ImageDataset(
        [files[i % FILES] for i in range(n)],
        [0] * n,
        source.preprocess,
        augment=Augment(horizontal_flip=True, rotation_range=40),
        keys=[sample_key(sample.path) for sample in samples],
    )
    return Pictures("train", dataset, samples, 0)


def read(views: list[Rows], images: ImageDataset) -> None:
    """Every row once, as a cached stage reads them."""
    random = np.random.default_rng(0)
    for view in range(len(views)):
        keys = [(int(index), view) for index in random.permutation(len(images))]
        dataset = FeatureDataset(views, images)
        for batch, _, _ in make_loader(dataset, keys, batch_size=BATCH, num_workers=0):
            batch.sum()


def measure(files: list[Path], n: int, arguments: dict[str, str]) -> dict[str, Any]:
    source = source_of(arguments["backbone"], int(arguments["size"]))
    pictures = repeated(files, n, source)
    cut = (len(source.classifier.groups) - 2, 0)
    source.shape(cut)  # the network has been used once before memory is measured
    size = int(arguments["size"])
    with torch.inference_mode():
        source.forward(torch.zeros(BATCH, 3, size, size, dtype=torch.uint8), [cut])
    before = resident()
    with (
        tempfile.TemporaryDirectory(dir=arguments["output"]) as folder,
        closing(FeatureStore(Path(folder), 10**12)) as store,
    ):
        started = time.perf_counter()
        views = [
            features(store, source, Pictures("train", pictures.dataset, pictures.samples, v), [cut])
            for v in range(int(arguments["views"]))
        ]
        extracted = time.perf_counter()
        read([rows for (rows,) in views], pictures.dataset)
        ended = time.perf_counter()
        disk = sum(file.stat().st_size for file in Path(folder).rglob("features"))
    return {
        "images": n,
        "extraction_seconds": round(extracted - started, 2),
        "reading_seconds": round(ended - extracted, 2),
        "disk_mb": round(disk / 1e6, 1),
        "memory_mb": round(resident() - before, 1),
    }


@styled
def plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    shown = {
        "extraction_seconds": "extraction, s",
        "reading_seconds": "reading all views, s",
        "disk_mb": "disk, MB",
        "memory_mb": "memory, MB",
    }
    for axes, (key, title) in zip(figure.subplots(1, 4), shown.items(), strict=True):
        axes.plot([row["images"] for row in rows], [row[key] for row in rows], "o-", color=BLUE)
        axes.set(
            title=title,
            xlabel="images",
            xlim=(0, None),
            ylim=(0, 1.1 * max(row[key] for row in rows)),
        )
        axes.tick_params(axis="x", rotation=45)
    return figure


def main() -> None:
    arguments = own_arguments(sys.argv[1:], OWN)
    output = Path(arguments["output"])
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), int(arguments["size"]))
        for n in map(int, arguments["images"].split(",")):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (files, n, arguments)))
            print(json.dumps(rows[-1]), flush=True)
    (output / "cache_scaling.json").write_text(json.dumps(rows, indent=2) + "\n")
    plot(rows).savefig(output / "cache_scaling.png", dpi=110)


if __name__ == "__main__":
    main()
