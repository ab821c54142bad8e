"""The feature cache: what frozen blocks make of every image, computed once and memory-mapped.

An entry is the output of the blocks before one cut, for one list of files under one view: rows
in the files' order, raw, in one file. Its name is a fingerprint of everything the numbers depend
on, so an entry is never stale; it is whole once `entry.json` lies beside it.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from tlx.data.augment import Augment
from tlx.data.datamodule import ImageData
from tlx.data.datasets import ImageDataset
from tlx.data.loaders import view_loader
from tlx.data.manifest import Sample
from tlx.files import write_json
from tlx.models.classifier import Classifier
from tlx.models.preprocess import Preprocess

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where features come from: a network, and how its images are made."""

    classifier: Classifier
    preprocess: Preprocess
    augment: Augment
    seed: int
    device: torch.device
    bf16: bool
    batch_size: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32


@dataclass(frozen=True)
class Pictures:
    """The images of one split under one view; `view` is None where nothing is augmented."""

    dataset: ImageDataset
    samples: Sequence[Sample]
    view: int | None


def pictures_of(data: ImageData) -> list[Pictures]:
    """What a stage sees: val, then train under each view."""
    augmented = data.augment.is_random
    train, samples = data.dataset("train"), data.manifest.split("train")
    return [
        Pictures(data.dataset("val"), data.manifest.split("val"), None),
        *(Pictures(train, samples, view if augmented else None) for view in range(data.views or 0)),
    ]


class FeatureStore:
    """Entries below `folder`, no more than `max_bytes` of them; the least recently used go first.

    While a store is open, what it has handed out is in use: no process removes it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._locks: dict[Path, TextIO] = {}

    def close(self) -> None:
        while self._locks:
            self._locks.popitem()[1].close()

    def features(self, source: Source, pictures: Pictures, cuts: Sequence[int]) -> list[Tensor]:
        """What comes before each cut, (images, …), mapped from disk; computed where missing.

        One pass through the network serves all cuts. Raises OSError when the folder cannot hold
        them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        source.classifier.to(source.device).eval()
        rows = len(pictures.samples)
        shapes = _shapes(source, cuts)
        entries = {cut: self.folder / fingerprint(source, pictures, cut) for cut in shapes}
        missing = {
            cut: entry
            for cut, entry in sorted(entries.items(), key=lambda item: item[1])
            if not self._hold(entry, rows * _row_bytes(shapes[cut], source.dtype))
        }
        if missing:
            self._make_room(rows * sum(_row_bytes(shapes[cut], source.dtype) for cut in missing))
            _extract(source, pictures, missing, shapes)
        for entry in entries.values():
            fcntl.flock(self._locks[entry], fcntl.LOCK_SH)
            os.utime(entry / "entry.json")
        return [_open(entries[cut], rows, shapes[cut], source.dtype) for cut in cuts]

    def _hold(self, entry: Path, size: int) -> bool:
        """Lock the entry, shared if it is whole (True), else for this process to compute it."""
        if entry not in self._locks:
            self._locks[entry] = entry.with_suffix(".lock").open("w")
            fcntl.flock(self._locks[entry], fcntl.LOCK_SH)
        if _is_whole(entry, size):
            return True
        fcntl.flock(self._locks[entry], fcntl.LOCK_EX)  # waits for a process that computes it
        return _is_whole(entry, size)

    def _make_room(self, needed: int) -> None:
        """Remove the least recently used entries that nobody uses, until `needed` bytes fit."""
        whole = sorted(self.folder.glob("*/entry.json"), key=lambda path: path.stat().st_mtime)
        sizes = {path.parent: (path.parent / "features").stat().st_size for path in whole}
        excess = sum(sizes.values()) + needed - self.max_bytes
        for entry, size in sizes.items():
            if excess <= 0:
                break
            with entry.with_suffix(".lock").open("w") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry)
                excess -= size
        free = shutil.disk_usage(self.folder).free
        if needed > min(free, self.max_bytes):
            raise OSError(
                f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on the disk "
                f"and cache.max_bytes allows {self.max_bytes / 1e9:.1f}"
            )


def fingerprint(source: Source, pictures: Pictures, cut: int) -> str:
    """40 hex digits of all that the features before `cut` depend on."""
    classifier = source.classifier
    augmented = pictures.view is not None
    description = {
        "format": FORMAT,
        "torch": [torch.__version__, version("torchvision")],
        "backbone": classifier.backbone.name,
        "cut": list(classifier.groups)[cut],
        "pool": type(classifier.head.pool).__name__ if cut == len(classifier.groups) - 1 else None,
        "dtype": str(source.dtype),
        "device": source.device.type,
        "preprocess": source.preprocess.to_dict(),
        "augment": asdict(source.augment) if augmented else None,
        "draw": [source.seed, pictures.view, [s.path for s in pictures.samples]]
        if augmented
        else None,
        "files": [sample.sha256 for sample in pictures.samples],
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode("utf-8", "replace"))
    for name, tensor in classifier.backbone.blocks[:cut].state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:40]


def _shapes(source: Source, cuts: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Of one image's features before each cut, found by trying a black one."""
    size = source.preprocess.image_size
    with torch.inference_mode():
        found = _forward(source, torch.zeros(1, 3, size, size, dtype=torch.uint8), cuts)
    return {cut: tuple(features.shape[1:]) for cut, features in found.items()}


def _forward(source: Source, images: Tensor, cuts: Sequence[int]) -> dict[int, Tensor]:
    """The features before each cut, of uint8 images (B, 3, H, W); pooled before the head."""
    backbone, head = source.classifier.backbone, source.classifier.head
    x = source.preprocess.normalize(images.to(source.device))
    if backbone.is_convolutional:
        x = x.contiguous(memory_format=torch.channels_last)
    found, at = {}, 0
    with torch.autocast(source.device.type, torch.bfloat16, enabled=source.bf16):
        for cut in sorted(set(cuts)):
            x = backbone(x, at, cut)
            at = cut
            found[cut] = head.pool(x) if cut == len(backbone.blocks) else x
    return found


def _extract(
    source: Source,
    pictures: Pictures,
    entries: Mapping[int, Path],
    shapes: Mapping[int, tuple[int, ...]],
) -> None:
    """Append rows to each entry's file from where the shortest one ends."""
    rows = len(pictures.samples)
    files: dict[int, Any] = {}
    with ExitStack() as stack, torch.inference_mode():
        done = rows
        for cut, entry in entries.items():
            entry.mkdir(exist_ok=True)
            file = stack.enter_context((entry / "features").open("a+b"))
            files[cut] = file
            done = min(done, file.tell() // _row_bytes(shapes[cut], source.dtype))
        done -= done % source.batch_size  # the same batches as without a break: the same bits
        for cut, file in files.items():
            file.truncate(done * _row_bytes(shapes[cut], source.dtype))
        if done:
            log.info("Going on with an interrupted extraction at image %d of %d.", done, rows)
        loader = view_loader(
            pictures.dataset, pictures.view or 0, range(done, rows), batch_size=source.batch_size
        )
        for images, _, _ in loader:
            for cut, features in _forward(source, images, list(entries)).items():
                block = features.to(source.dtype).contiguous().cpu().flatten().view(torch.uint8)
                files[cut].write(block.numpy())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for cut, entry in entries.items():
        write_json(entry / "entry.json", {"rows": rows, "shape": shapes[cut], "format": FORMAT})


def _is_whole(entry: Path, size: int) -> bool:
    if not (entry / "entry.json").exists():
        return False
    file = entry / "features"
    if file.exists() and file.stat().st_size == size:
        return True
    log.warning("The cache entry %s is damaged: it is computed again.", entry)
    shutil.rmtree(entry, ignore_errors=True)
    return False


def _open(entry: Path, rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = rows * prod(shape)
    flat = torch.from_file(str(entry / "features"), shared=False, size=size, dtype=dtype)
    return flat.view(rows, *shape)


def _row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize
