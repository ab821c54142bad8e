"""torchvision's image classification sets by name, downloaded by torchvision's own classes.

Sets of image files are read where torchvision puts them. The others live in arrays: their images
are written once, as PNG, into the cache.
"""

import csv
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tlx.data.manifest import Record
from tlx.data.tables import read_table
from tlx.errors import UserError, unknown
from tlx.files import cache_dir, waiting

log = logging.getLogger(__name__)

# What makes torchvision's class yield each split; '' is a set without splits of its own.
_Splits = Mapping[str, Mapping[str, Any]]
_FLAG: _Splits = {"train": {"train": True}, "test": {"train": False}}
_TWO: _Splits = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: _Splits = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_WHOLE: _Splits = {"": {}}

FILES: Mapping[str, _Splits] = {
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": {**_TWO, "val": {"split": "valid"}},
    "DTD": _THREE,
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _THREE,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},  # it has no other test
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "RenderedSST2": _THREE,
    "StanfordCars": {k: {**v, "download": False} for k, v in _TWO.items()},  # from nowhere, by now
    "SUN397": _WHOLE,
}
ARRAYS: Mapping[str, _Splits] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "EMNIST": {name: {"split": "balanced", **flag} for name, flag in _FLAG.items()},
    "FashionMNIST": _FLAG,
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "QMNIST": _FLAG,
    "SEMEION": _WHOLE,
    "STL10": _TWO,
    "SVHN": _TWO,
    "USPS": _FLAG,
}


def images_root(name: str | None, root: Path | None) -> Path:
    """The folder that paths are relative to: where the files are, or the cache for arrays."""
    names = sorted({**FILES, **ARRAYS})
    if name is None:
        raise UserError(f"no data set named: set data.name, one of {', '.join(names)}.")
    if name not in names:
        raise unknown("data.name", name, names)
    own = cache_dir() / "torchvision" / name
    if name in ARRAYS:
        return own / "images"
    return own if root is None else root


def read_torchvision(name: str, root: Path | None) -> list[Record]:
    """Its images with the splits they were published with, downloaded if they are not yet there.

    Raises UserError when it can be neither read nor downloaded.
    """
    folder = images_root(name, root)
    place = root or cache_dir() / "torchvision" / name
    with waiting(cache_dir() / "torchvision" / f"{name}.lock"):
        if name in FILES:
            sets = _load(name, FILES[name], place)
            return [
                Record(os.path.relpath(path, folder), label, label, split)
                for split, dataset in sets.items()
                for path, label in _files(dataset)
            ]
        if not folder.is_dir():
            _write_images(_load(name, ARRAYS[name], place), folder)
    return read_table(folder / "labels.csv", folder, {})


def _load(name: str, splits: _Splits, place: Path) -> dict[str, Any]:
    from torchvision import datasets

    make = getattr(datasets, name)
    place.mkdir(parents=True, exist_ok=True)
    log.info("data set %s in %s", name, place)
    try:
        return {
            split: make(str(place), **{"download": True, **settings})
            for split, settings in splits.items()
        }
    except Exception as error:  # the network's errors, torchvision's own, missing packages
        arguments = [{"download": True, **settings} for settings in splits.values()]
        calls = [", ".join(f"{key}={value!r}" for key, value in a.items()) for a in arguments]
        listed = " and ".join(f"torchvision.datasets.{name}(FOLDER, {call})" for call in calls)
        raise UserError(
            f"data.name={name} can be neither read nor downloaded to {place}: "
            f"{str(error) or type(error).__name__}\nDownload it where the network allows, with "
            f"{listed}, and set data.root to that FOLDER."
        ) from error


def _classes(dataset: Any) -> list[str]:
    """Empty when torchvision has no names; in Imagenette a class has several, the first counts."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    return [name if isinstance(name, str) else name[0] for name in names]


def _files(dataset: Any) -> list[tuple[str, str]]:
    """Path and label of each image: torchvision keeps them in one of these ways."""
    pairs: Iterable[tuple[Any, int]]
    if samples := getattr(dataset, "samples", None) or getattr(dataset, "_samples", None):
        pairs = samples
    elif hasattr(dataset, "_labels"):
        paths = getattr(dataset, "_image_files", None) or dataset._images
        pairs = zip(paths, dataset._labels, strict=True)
    else:  # Caltech: an image that is opened, not yet read, knows its file
        pairs = (
            (_file_of(image), index) for image, index in map(dataset.__getitem__, _all(dataset))
        )
    names = _classes(dataset)
    return [(str(path), names[index] if names else str(index)) for path, index in pairs]


def _all(dataset: Any) -> range:
    return range(len(dataset))


def _file_of(image: Any) -> str:
    with image:
        return str(image.filename)


def _write_images(sets: Mapping[str, Any], folder: Path) -> None:
    """SPLIT/CLASS NUMBER/NUMBER.png and their labels.csv: all of them, or nothing."""
    partial = folder.with_name("images.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split, dataset in sets.items():
            names = _classes(dataset)
            log.info("writing %d images of %s", len(dataset), split or "the set")
            for number in _all(dataset):
                image, index = dataset[number]
                path = Path(split or "all", str(int(index)), f"{number:06d}.png")
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                image.save(partial / path)
                writer.writerow([path, names[int(index)] if names else int(index), split])
    partial.rename(folder)
