"""What frozen blocks make of every image, computed once and mapped from disk.

An entry of the cache is the output of the blocks before one cut, for one list of files under one
view, in the files' order. Its name is a fingerprint of everything the numbers depend on, so an
entry is never stale. The batches are always the same ones, whoever computes them: a row's last
bits depend on how many images share its batch.
"""

import hashlib
import json
import logging
import mmap
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from math import ceil, prod
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tlx
from tlx.data.datamodule import ImageData
from tlx.data.datasets import ImageDataset, Item
from tlx.data.loaders import as_it_is, auto_workers
from tlx.data.manifest import Sample
from tlx.models.backbones import Place
from tlx.models.classifier import HEAD, Classifier
from tlx.models.preprocess import Preprocess
from tlx.training.feature_store import FORMAT, Entry, FeatureStore, Part

log = logging.getLogger(__name__)

PART_ROWS = 256  # about so many images are computed again when a process is killed
MOST_RESIDENT = 512e6  # bytes of entries that stay in a process's memory after being read
AROUND = 1 << 16  # bytes that the system maps around a page which is read


@dataclass(frozen=True)
class Source:
    """Where features come from: a network, and how its images are made."""

    classifier: Classifier
    preprocess: Preprocess
    device: torch.device
    bf16: bool
    batch_size: int
    num_workers: int | None = None  # that read images; None: by the machine
    _described: dict[nn.Module, tuple[str, str]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _shapes: dict[Place, tuple[int, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    @cached_property
    def cuts(self) -> dict[Place, str]:
        """Where the network can be cut, and the path of what follows; the head is last."""
        backbone = self.classifier.backbone
        return {**backbone.places, (len(backbone.blocks), 0): HEAD}

    def shape(self, cut: Place) -> tuple[int, ...]:
        """Of one image's features before the cut."""
        if cut not in self._shapes:
            size = self.preprocess.image_size
            black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
            self.classifier.to(self.device).eval()
            with torch.inference_mode():
                self._shapes[cut] = tuple(self.forward(black, [cut])[cut].shape[1:])
        return self._shapes[cut]

    def modules(self, cut: Place) -> list[tuple[str, str]]:
        """Each one before the cut, printed, and the checksum of its weights."""
        modules = self.classifier.backbone.before(cut)
        for module in modules:
            if module not in self._described:
                self._described[module] = _printed(module), digest(module.state_dict())
        return [self._described[module] for module in modules]

    def row_bytes(self, cut: Place) -> int:
        return prod(self.shape(cut)) * self.dtype.itemsize

    def forward(self, images: Tensor, cuts: Sequence[Place]) -> dict[Place, Tensor]:
        """The features before each cut, of uint8 images (B, 3, H, W); pooled before the head."""
        backbone, head = self.classifier.backbone, self.classifier.head
        x = self.preprocess.normalize(images.to(self.device))
        if backbone.is_convolutional:
            x = x.contiguous(memory_format=torch.channels_last)
        found: dict[Place, Tensor] = {}
        at = (0, 0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            for cut in sorted(set(cuts)):
                x = backbone(x.clone() if found else x, at, cut)  # what follows may work in place
                at = cut
                found[cut] = head.pool(x) if self.cuts[cut] == HEAD else x
        return found


@dataclass(frozen=True)
class Pictures:
    """The images of one split under one view; `view` is None where nothing is augmented."""

    split: str
    dataset: ImageDataset
    samples: Sequence[Sample]
    view: int | None

    def __post_init__(self) -> None:
        # the features are kept under these names: they must be of these files
        self.dataset.contents = [sample.sha256 for sample in self.samples]

    @cached_property
    def contents(self) -> str:
        """A checksum of the files and of the keys that augmentation is drawn by."""
        keys = list(self.dataset.keys) if self.view is not None else None
        text = json.dumps([[s.sha256 for s in self.samples], keys])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def drawn(self) -> Mapping[str, Any] | None:
        """What the view follows from, besides those keys; mirror images from no seed."""
        augment = self.dataset.augment
        if augment is None or self.view is None:
            return None
        seed = None if augment.mirrorings else self.dataset.seed
        return {"augment": asdict(augment), "seed": seed, "view": self.view}


class Rows:
    """The rows of an entry, in a tensor that lies in its file.

    What has been read, of all of them, does not pile up in the process's memory; the system keeps
    it if it can.
    """

    _all: ClassVar[WeakSet["Rows"]] = WeakSet()
    _read: ClassVar[int] = 0

    def __init__(self, store: FeatureStore, entry: Entry, shape: Sequence[int], dtype: torch.dtype):
        with store.file(entry).open("rb") as file:
            # a private mapping would count as memory, of which a large entry needs too much
            self._map = mmap.mmap(file.fileno(), entry.bytes, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            self.tensor = torch.frombuffer(self._map, dtype=dtype).view(entry.rows, *shape)
        self._row_bytes = entry.row_bytes
        Rows._all.add(self)

    def __len__(self) -> int:
        return len(self.tensor)

    def index_select(self, dim: int, index: Tensor, /) -> Tensor:
        """A copy of so many rows, as of a tensor; `dim` is 0."""
        Rows._read += (self._row_bytes + AROUND) * len(index)
        if Rows._read > MOST_RESIDENT:
            for rows in Rows._all:
                rows._map.madvise(mmap.MADV_DONTNEED)  # what is read again is mapped again
            Rows._read = 0
        return self.tensor.index_select(dim, index)


def pictures_of(data: ImageData) -> list[Pictures]:
    """What a stage sees: val, then train under each view."""
    augmented = data.augment.is_random
    train, samples = data.dataset("train"), data.manifest.split("train")
    return [
        Pictures("val", data.dataset("val"), data.manifest.split("val"), None),
        *(
            Pictures("train", train, samples, view if augmented else None)
            for view in range(data.views or 0)
        ),
    ]


def features(
    store: FeatureStore, source: Source, pictures: Pictures, cuts: Sequence[Place]
) -> list[Rows]:
    """What comes before each cut, computed where missing: one pass through the network for all.

    Raises OSError when the store cannot hold them.
    """
    source.classifier.to(source.device).eval()
    entries = {cut: entry_of(source, pictures, cut) for cut in cuts}
    missing = {entry: cut for cut, entry in entries.items() if not store.hold(entry)}
    if missing:
        ordered = sorted(missing, key=lambda entry: entry.name)
        store.fill(ordered, lambda parts: _compute(source, pictures, missing, parts))
    return [Rows(store, entries[cut], source.shape(cut), source.dtype) for cut in cuts]


def entry_of(source: Source, pictures: Pictures, cut: Place) -> Entry:
    return Entry(
        fingerprint(source, pictures, cut),
        rows=len(pictures.samples),
        row_bytes=source.row_bytes(cut),
        part_rows=source.batch_size * ceil(PART_ROWS / source.batch_size),
        about={
            "backbone": source.classifier.backbone.name,
            "before": source.cuts[cut],
            "split": pictures.split,
            "images": len(pictures.samples),
            "view": pictures.view,
            "image_size": source.preprocess.image_size,
            "shape": source.shape(cut),
            "dtype": str(source.dtype).removeprefix("torch."),
            "tlx": tlx.__version__,
            "created": datetime.now().isoformat(timespec="seconds"),
        },
    )


def fingerprint(source: Source, pictures: Pictures, cut: Place) -> str:
    """40 hex digits of all that the features before `cut` depend on."""
    modules = source.modules(cut)
    description = {
        "format": FORMAT,
        "made by": [
            torch.__version__,
            version("torchvision"),
            version("pillow"),
            version("simplejpeg"),
        ],
        "backbone": [printed for printed, _ in modules],
        "weights": [weights for _, weights in modules],
        "cut": source.cuts[cut],
        "pool": repr(source.classifier.head.pool) if source.cuts[cut] == HEAD else None,
        "dtype": str(source.dtype),
        "device": source.device.type,
        "batch_size": source.batch_size,
        "preprocess": source.preprocess.to_dict(),
        "drawn": pictures.drawn,
        "files": pictures.contents,
    }
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _printed(module: nn.Module) -> str:
    """Without what a stage's fit changes and frozen values do not depend on."""
    # _BatchNormXd: what Lightning makes of SyncBatchNorm after a stage
    text = re.sub(r"SyncBatchNorm|_BatchNormXd", "BatchNorm2d", repr(module))
    return re.sub(r", momentum=[^,)]+", "", text)


def digest(state: Mapping[str, Tensor]) -> str:
    """40 hex digits of names and values."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:40]


def _compute(
    source: Source, pictures: Pictures, cuts: Mapping[Entry, Place], parts: Iterator[Part]
) -> None:
    """One pass over the parts, which are claimed as the loader asks for their images."""
    asked: deque[tuple[Part, bool]] = deque()

    def batches() -> Iterator[list[tuple[int, int]]]:
        for part in parts:
            for start in part.rows[:: source.batch_size]:
                stop = min(start + source.batch_size, part.rows.stop)
                asked.append((part, stop == part.rows.stop))
                yield [(index, pictures.view or 0) for index in range(start, stop)]

    with torch.inference_mode():
        for images, _, _ in _loader(pictures.dataset, batches(), source.num_workers):
            part, is_last = asked.popleft()
            found = source.forward(images, [cuts[entry] for entry in part.entries])
            for entry in part.entries:
                rows = found[cuts[entry]].to(source.dtype).contiguous().cpu()
                part.write(entry, rows.flatten().view(torch.uint8).numpy().data)
            if is_last:
                part.finish()


def _loader(
    dataset: ImageDataset, batches: Iterator[list[tuple[int, int]]], workers: int | None
) -> DataLoader[Item]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=auto_workers() if workers is None else workers,
        collate_fn=as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else it would move the global one
    )
