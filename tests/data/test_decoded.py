import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from tlx.data import datasets, decoded
from tlx.data.augment import Augment
from tlx.data.datamodule import ImageData
from tlx.data.decoded import DecodeCache, memory_folder
from tlx.data.manifest import Manifest, Sample
from tlx.data.rectangles import Box
from tlx.data.scan import scan

AUGMENT = {"horizontal_flip": True, "rotation_range": 20.0, "mixup": 0.2}
BYTES = 3 * 16 * 16 + decoded.CHECKSUM


class Squash:
    def __call__(self, image: Tensor, box: Box | None = None) -> Tensor:
        if box is not None:
            image = image[:, box[1] : box[3], box[0] : box[2]]
        return TF.resize(image, [16, 16], antialias=True).contiguous()

    def __repr__(self) -> str:
        return "Squash(16)"


@pytest.fixture
def manifest(image_folder: Path) -> Manifest:
    """16 train and 8 val pictures."""
    paths = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.*"))
    contents = {path: found.sha256 for path, found in scan(image_folder, paths).items()}
    return Manifest.of(
        image_folder,
        [
            Sample(path, path.partition("/")[0], ("train", "train", "val")[i % 3], "", sha256)
            for i, (path, sha256) in enumerate(contents.items())
        ],
    )


@pytest.fixture
def make(manifest: Manifest) -> Callable[..., ImageData]:
    def data(where: str = "off", rows: int = 100, workers: int = 0, **augment: Any) -> ImageData:
        return ImageData(
            manifest, Squash(), augment=Augment(**(augment or AUGMENT)), batch_size=5,
            num_workers=workers, seed=1, decode_cache=DecodeCache(where, rows * BYTES),
        )  # fmt: skip

    return data


def batches(data: ImageData, epochs: int = 2) -> list[Tensor]:
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        found += [tensor for batch in loader for tensor in batch]
        found += [tensor for batch in data.val_dataloader() for tensor in batch]
    return found


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def names(data: ImageData, split: str = "val") -> set[str]:
    return {path.name for path in data.kept[split].folder.iterdir()} - {"entry.json"}


def without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "decode_pixels", None)


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "MEMORY_DISK", tmp_path)
    memory_folder.cache_clear()


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing_and_spares_decoding(
    make: Callable[..., ImageData], where: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(make())
    data = make(where, workers=workers)
    assert equal(batches(data), expected)
    assert len(names(data)) == 24
    without_decoding(monkeypatch)
    assert equal(batches(data), expected)
    assert equal(batches(make(where)), expected)  # another run's


def test_threads_may_keep_the_same_picture_at_once(
    image_folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    set_threads: Callable[[int], None],
) -> None:
    path = "red/0.png"
    sample = Sample(path, "red", "train", "", scan(image_folder, [path])[path].sha256)
    both, replace = Barrier(2, timeout=30), Path.replace

    def together(path: Path, target: Path) -> Path:
        both.wait()
        return replace(path, target)

    data = ImageData(
        Manifest.of(image_folder, [sample] * 2), Squash(), augment=Augment(), batch_size=2,
        num_workers=0, seed=1, decode_cache=DecodeCache("disk", 100 * BYTES),
    )  # fmt: skip
    set_threads(2)
    monkeypatch.setattr(Path, "replace", together)
    data.dataset("train").__getitems__([(0, 0), (1, 0)])
    assert "no more images" not in caplog.text
    assert len(names(data, "train")) == 1


def test_what_is_beyond_the_bytes_is_decoded_each_time(
    make: Callable[..., ImageData], manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = make("disk", rows=18)
    assert "Decode cache: 18 of 24 images" in caplog.text
    assert "no room for the others" in caplog.text
    assert equal(batches(data), batches(make()))
    held = [*manifest.split("train"), *manifest.split("val")[:2]]
    assert names(data) == {sample.sha256 for sample in held}


def test_the_oldest_of_other_runs_make_room(make: Callable[..., ImageData], tmp_path: Path) -> None:
    other = tmp_path / "cache" / "images" / "other"
    other.mkdir(parents=True)
    for age in range(10):
        (other / str(age)).write_bytes(bytes(BYTES * (1 + age % 2)))  # some of a larger size
        os.utime(other / str(age), (1e9 - age, 1e9 - age))
    data = make("disk", rows=30)  # of which 24 are its own
    batches(data)
    assert sorted(path.name for path in other.iterdir()) == list("0123")
    make("disk", rows=30)
    assert (len(names(data)), len(list(other.iterdir()))) == (24, 4)


def test_a_file_that_changed_is_read_again(
    make: Callable[..., ImageData], manifest: Manifest, write_image: Callable[..., Path]
) -> None:
    data = make("disk")
    before = batches(data)
    path = manifest.root / manifest.split("train")[3].path
    write_image(path, (1, 2, 3), seed=999)
    after = batches(data)
    assert not equal(after, before)
    assert equal(after, batches(make()))
    assert equal(batches(data), after)


def test_damaged_entries_are_made_again(
    make: Callable[..., ImageData], caplog: pytest.LogCaptureFixture
) -> None:
    data = make("disk")
    expected = batches(data)
    first, second, *_ = [data.kept["train"].folder / sha for sha in data.kept["train"].contents]
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"\0" * BYTES)
    assert equal(batches(data, epochs=2), expected)
    assert caplog.text.count("is damaged") == 2


def test_train_is_not_kept_where_crops_need_the_whole_image(
    make: Callable[..., ImageData], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    crops = {"crop_scale": (0.1, 0.9)}
    data = make("ram", **crops)
    assert equal(batches(data), batches(make(**crops)))
    assert set(data.kept) == {"val"}
    assert "not of train" in caplog.text


def test_a_folder_that_takes_nothing_is_said_and_does_without(
    make: Callable[..., ImageData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = batches(make())
    data = make("disk")
    folder = data.kept["val"].folder
    (folder / "entry.json").unlink()
    folder.rmdir()
    assert equal(batches(data), expected)
    assert "takes no more images" in caplog.text
    shutil.rmtree(tmp_path / "cache" / "images")
    (tmp_path / "cache" / "images").write_text("in the way")
    assert equal(batches(make("disk")), expected)
    assert "No decode cache" in caplog.text


def test_other_preprocessing_has_other_files(make: Callable[..., ImageData]) -> None:
    first = make("disk").kept["val"].folder
    Squash.__repr__, own = lambda self: "Squash(17)", Squash.__repr__
    try:
        assert make("disk").kept["val"].folder != first
    finally:
        Squash.__repr__ = own


def test_memory_of_killed_processes_is_freed_and_that_of_live_ones_is_not(tmp_path: Path) -> None:
    killed, live = tmp_path / "tlx-images-killed", tmp_path / "tlx-images-live"
    for folder in (killed, live):
        folder.mkdir()
        (folder / "lock").touch()
    with (live / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        own = memory_folder()[0]
    assert own.is_dir()
    assert live.is_dir()
    assert not killed.exists()
    memory_folder.cache_clear()
