"""How fast photographs get from JPEG files to a network, beside torchvision's usual way.

    OMP_NUM_THREADS=1 python benchmarks/feeding.py            # needs scikit-learn: two photographs

Of the photographs 200 JPEGs of 500×375 pixels are cut, with noise, 40 to 60 KB each. Both sides
make float32 batches of 32 at 224 pixels: decoded, scaled to 256, cut out of the centre, turned by
up to 40°, shifted, sheared and zoomed by up to 0.2 with bilinear interpolation, mirrored, and
normalised. torchvision's way is ImageFolder, its transforms (v1) and a DataLoader; tlx's is its
data set with `augment=keras` and its loader, and `Preprocess.normalize`, as in a training step.
They take turns. First one core each, and what counts is the processor's time, with workers theirs
too, also with the decode cache; then all cores, by the clock. Then: tlx's parts one by one; large
photographs decoded at a reduced size.
"""

import argparse
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder

from tlx.composition import compose
from tlx.config import parse
from tlx.data.augment import Augment, apply
from tlx.data.datamodule import ImageData
from tlx.data.decoded import DecodeCache
from tlx.data.images import Decoding
from tlx.data.manifest import Manifest, Sample
from tlx.data.parallel import cores
from tlx.data.pixels import decode_pixels
from tlx.data.scan import scan
from tlx.models.preprocess import Preprocess

IMAGES, BATCH, SIZE = 200, 32, 224


def make_photographs(folder: Path, images: int, size: tuple[int, int], noise: float) -> list[str]:
    """JPEGs cut at random from the two photographs, enlarged where they are smaller."""
    random = np.random.default_rng(0)
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = []
    for number in range(images):
        source = sources[number % 2]
        scale = max(1.0, 1.1 * size[0] / source.width, 1.1 * size[1] / source.height)
        source = source.resize((round(scale * source.width), round(scale * source.height)))
        x, y = (int(random.integers(0, source.size[axis] - size[axis])) for axis in (0, 1))
        pixels = np.asarray(source.crop((x, y, x + size[0], y + size[1]))).astype(float)
        pixels += random.normal(0, noise, pixels.shape)
        path = f"{'ab'[number % 2]}/{number}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / path, quality=(78, 90)[number % 2])
        paths.append(path)
    return paths


def torchvisions(root: Path, preprocess: Preprocess, workers: int) -> Iterable[torch.Tensor]:
    change = v1.Compose(
        [
            v1.Resize(preprocess.resize_size),
            v1.CenterCrop(preprocess.image_size),
            v1.RandomAffine(
                40,
                translate=(0.2, 0.2),
                scale=(0.8, 1.2),
                shear=0.2,
                interpolation=v1.InterpolationMode.BILINEAR,
            ),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    loader = DataLoader(
        ImageFolder(root, change), BATCH, shuffle=True, num_workers=workers, drop_last=False
    )
    return (images for images, _ in loader)


def tlxs(data: ImageData) -> Iterable[torch.Tensor]:
    assert isinstance(data.preprocess, Preprocess)
    return (data.preprocess.normalize(images) for images, _, _ in data.train_dataloader())


def processor_seconds() -> float:
    """With that of workers, which end with the loader."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def seconds(batches: Callable[[], Iterable[torch.Tensor]], clock: Callable[[], float]) -> float:
    start = clock()
    for images in batches():
        assert images.dtype == torch.float32
    return clock() - start


def speeds(
    ways: dict[str, Callable[[], Iterable[torch.Tensor]]],
    repeats: int,
    clock: Callable[[], float] = processor_seconds,
) -> None:
    """Images a second, and how many times the first way's; the ways take turns."""
    for way in ways.values():
        seconds(way, clock)
    taken = {name: list[float]() for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(seconds(way, clock))
    first = next(iter(taken.values()))
    for name, times in taken.items():
        ratios = [a / b for a, b in zip(first, times, strict=True)]
        print(
            f"  {name:34} {IMAGES / statistics.median(times):6.0f} images/s, "
            f"{statistics.median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def milliseconds(name: str, work: Callable[[int], object], images: int) -> None:
    times = []
    for _ in range(5):
        start = time.process_time()
        for index in range(images):
            work(index)
        times.append(1000 * (time.process_time() - start) / images)
    print(f"  {name:34} {statistics.median(times):6.2f} ms an image")


def parts(root: Path, paths: list[str], preprocess: Preprocess, augment: Augment) -> None:
    files = [root / path for path in paths[:64]]
    data = [path.read_bytes() for path in files]
    full = replace(preprocess.decoding, side=None)
    pixels = [decode_pixels(d, p, full) for d, p in zip(data, files, strict=True)]
    fitted = [preprocess(image, None) for image in pixels]
    params = [augment.draw(0, 0, key) for key in range(len(files))]
    batch = torch.stack(fitted[:BATCH])
    for name, work in {
        "read": lambda i: files[i].read_bytes(),
        "decode": lambda i: decode_pixels(data[i], files[i], full),
        "resize and cut": lambda i: preprocess(pixels[i], None),
        "draw the augmentation": lambda i: augment.draw(0, 1, i),
        "augment": lambda i: apply(fitted[i][None], [params[i]]),
        "collate": lambda i: torch.stack(fitted[:BATCH]) if i % BATCH == 0 else None,
        "normalise": lambda i: preprocess.normalize(batch) if i % BATCH == 0 else None,
    }.items():
        milliseconds(name, work, len(files))


def reduced(folder: Path, preprocess: Preprocess) -> None:
    """Scaled decoding: its time, and what it changes."""
    paths = make_photographs(folder, 6, (4000, 3000), 6)
    files = [folder / path for path in paths]
    data = [path.read_bytes() for path in files]
    small = preprocess.decoding
    full = replace(small, side=None)
    for name, decoding in (("in full", full), (f"side={small.side}", small)):
        milliseconds(name, lambda i, d=decoding: decode_pixels(data[i], files[i], d), len(files))
    for name, decoding in (
        ("side (twice as large)", small),
        ("half of it (as large)", Decoding(side=(small.side or 0) // 2)),
    ):
        worst, means = 0.0, []
        for d, path in zip(data, files, strict=True):
            one, other = (preprocess(decode_pixels(d, path, x), None) for x in (full, decoding))
            difference = (one.float() - other.float()).abs()
            means.append(difference.mean().item())
            worst = max(worst, difference.max().item())
        print(f"  {name:34} differs by {statistics.mean(means):.2f} levels, {worst:.0f} at most")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    logging.getLogger("tlx").setLevel(logging.ERROR)
    config = parse(compose(["data.root=.", "augment=keras"]))
    augment = Augment(**vars(config.augment))
    preprocess = Preprocess.for_weights("vgg16", image_size=SIZE)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TLX_CACHE_DIR"] = str(Path(temporary) / "cache")
        root = Path(temporary) / "photographs"
        paths = make_photographs(root, IMAGES, (500, 375), 3)
        kilobytes = statistics.median((root / path).stat().st_size for path in paths) / 1024
        print(f"{IMAGES} JPEGs of 500x375, {kilobytes:.0f} KB, at {SIZE} px, {repeats} repeats")
        found = scan(root, paths)
        manifest = Manifest.of(
            root,
            [
                Sample(path, path[0], "train", "", getattr(found[path], "sha256", ""))
                for path in paths
            ],
        )

        def data(workers: int, **more: object) -> ImageData:
            return ImageData(
                manifest,
                preprocess,
                augment=augment,
                batch_size=BATCH,
                num_workers=workers,
                seed=0,
                decoding=preprocess.decoding,
                **more,  # type: ignore[arg-type]
            )

        plain = {workers: data(workers) for workers in (0, 1)}
        kept = {where: data(0, decode_cache=DecodeCache(where, 10**9)) for where in ("ram", "disk")}
        for workers in (0, 1):
            print(f"one core, workers: {workers}")
            ways: dict[str, Callable[[], Iterable[torch.Tensor]]] = {
                "torchvision": lambda w=workers: torchvisions(root, preprocess, w),
                "tlx": lambda w=workers: tlxs(plain[w]),
            }
            if workers == 0:
                for where, images in kept.items():
                    ways[f"tlx, data.decode_cache={where}"] = lambda d=images: tlxs(d)
            speeds(ways, repeats)
        print(f"all cores, {cores()}")
        torch.set_num_threads(cores())
        ways = {
            "torchvision without workers": lambda: torchvisions(root, preprocess, 0),
            f"torchvision, workers: {cores()}": lambda: torchvisions(root, preprocess, cores()),
            "tlx without workers": lambda: tlxs(plain[0]),
        }
        speeds(ways, repeats, time.perf_counter)
        torch.set_num_threads(1)
        print("tlx's parts, one core")
        parts(root, paths, preprocess, augment)
        print("4000x3000")
        reduced(Path(temporary) / "large", preprocess)


if __name__ == "__main__":
    main()
