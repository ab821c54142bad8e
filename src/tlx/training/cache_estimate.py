"""Whether caching pays: what computing once and reading takes, against computing every epoch."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

from tlx.models.backbones import Place
from tlx.training.feature_store import Entry, FeatureStore
from tlx.training.features import Pictures, Source, entry_of

log = logging.getLogger(__name__)

MEMORY_RATE = 2e9  # bytes a second of a file that the system keeps in memory
PROBE = 16_000_000  # bytes written to learn the rate of a disk


@dataclass(frozen=True)
class Task:
    """Features to have before `cuts`, of val and of train's views, for so many epochs."""

    source: Source
    pictures: Sequence[Pictures]
    cuts: tuple[Place, ...]
    epochs: int

    @cached_property
    def entries(self) -> list[Entry]:
        cuts = set(self.cuts)
        return [entry_of(self.source, pictures, cut) for pictures in self.pictures for cut in cuts]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)


def pays(task: Task, store: FeatureStore, *, measure: bool) -> bool:
    """Log the estimate. Without `measure` only the passes through the frozen blocks are counted."""
    views = len(task.pictures) - 1
    counts = f"{task.epochs} epochs over {views} view{'s' * (views > 1)} of each image"
    missing = [entry for entry in task.entries if not store.hold(entry)]
    if not missing:
        log.info("Cache: %s, whose features are there.", counts)
        return True
    if task.epochs <= views:
        log.info("No cache: it does not pay in %s.", counts)
        return False
    if not measure:
        log.info("Cache: %s.", counts)
        return True
    n = sum(len(pictures.samples) for pictures in task.pictures[:2])
    size = sum(entry.bytes for entry in missing)
    each, rate = _seconds_an_image(task), _bytes_a_second(store, size)
    passes = sum(entry.rows for entry in missing) / len(set(task.cuts))
    once = passes * each + size / rate
    reading = task.bytes / views / rate
    cached, plain = once + task.epochs * reading, task.epochs * n * each
    log.info(
        "%s: %s; %d images take %.1f ms each: %.1f s once with writing %.2f GB, and %.1f s an "
        "epoch for reading, %.1f s in all against %.1f s.",
        "Cache" if cached < plain else "No cache, it does not pay",
        counts, n, 1000 * each, once, size / 1e9, reading, cached, plain,
    )  # fmt: skip
    return cached < plain


def _seconds_an_image(task: Task) -> float:
    """Measured on a batch, decoding included: the best of three, as memory comes slowly at first.

    This process decodes; where extraction has workers for that, it is faster.
    """
    pictures, source = task.pictures[-1], task.source
    n = min(source.batch_size, len(pictures.samples))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        images, _, _ = pictures.dataset.__getitems__([(i, pictures.view or 0) for i in range(n)])
        with torch.inference_mode():
            found = source.forward(images, task.cuts)
        found[max(task.cuts)].cpu()  # a GPU is done only now
        times.append(time.perf_counter() - started)
    return min(times) / n


def _bytes_a_second(store: FeatureStore, size: int) -> float:
    """Of the disk, by trying, where the memory that is free cannot hold `size` bytes."""
    names = "SC_PAGE_SIZE", "SC_AVPHYS_PAGES"  # macOS lacks the second
    free = prod(os.sysconf(name) for name in names) if names[1] in os.sysconf_names else 0
    if size < min(free / 2, store.max_bytes):
        return MEMORY_RATE
    path = store.folder / f".probe.{os.getpid()}"
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(os.urandom(PROBE))
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return PROBE / (time.perf_counter() - started)
