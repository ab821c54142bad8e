import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from tlx.data import parallel, scan_cache
from tlx.data import scan as scanning
from tlx.data.images import Decoding, UnreadableImage
from tlx.data.manifest import Manifest, Sample
from tlx.data.scan import Scanned, examine, perceptual_hash, scan, verify
from tlx.errors import UserError
from tlx.files import cache_dir


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are kept at once: nobody can set the time of their change."""
    monkeypatch.setattr(scan_cache, "SETTLED", 0)


@pytest.fixture
def old_folder(image_folder: Path, settled: None) -> tuple[Path, list[str]]:
    return image_folder, sorted(str(p.relative_to(image_folder)) for p in image_folder.rglob("*.*"))


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    original = scanning.examine

    def spy(data: bytes, path: Path, decode: Decoding) -> Scanned:
        names.append(path.name)
        return original(data, path, decode)

    monkeypatch.setattr(scanning, "examine", spy)
    return names


def test_the_hash_is_the_median_rule_on_scipys_dct() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        thumbnail = random.integers(0, 256, (32, 32), dtype=np.uint8)
        low = dctn(thumbnail.astype(float))[:8, :8]
        bits = "".join(str(int(value > np.median(low))) for value in low.ravel())
        assert perceptual_hash(thumbnail) == f"{int(bits, 2):016x}"


def test_what_is_said_of_a_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(path, exif=exif)
    found = scan(tmp_path, ["a.png"])["a.png"]
    assert isinstance(found, Scanned)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.width, found.height, found.is_grey) == (40, 60, True)
    assert found.mean == pytest.approx(pixels.mean())
    assert found.deviation == pytest.approx(pixels.std())
    assert found.phash == perceptual_hash(
        np.frombuffer(found.thumbnail, np.uint8).reshape(32, 32)
    )  # fmt: skip


def test_colour_is_seen_and_jpegs_rounding_is_not(tmp_path: Path, write_image) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB").save(tmp_path / "grey.jpg", quality=40)
    write_image(tmp_path / "red.png", (140, 120, 120))
    found = scan(tmp_path, ["grey.jpg", "red.png"])
    assert [f.is_grey for f in found.values()] == [True, False]  # type: ignore[union-attr]


def test_what_cannot_be_read_is_an_error_in_its_place(image_folder: Path) -> None:
    cut = image_folder / "red" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    found = scan(image_folder, ["red/1.png", "red/0.png", "red/gone.png"])
    assert list(found) == ["red/1.png", "red/0.png", "red/gone.png"]
    assert [type(f) for f in found.values()] == [Scanned, UnreadableImage, UnreadableImage]
    assert "No such file" in str(found["red/gone.png"])


def test_a_second_scan_reads_only_what_changed(old_folder, read_paths, write_image) -> None:
    root, paths = old_folder
    (root / "red" / "0.png").write_bytes(b"no image")
    first = scan(root, paths)
    assert len(read_paths) == 24
    write_image(root / "red" / "3.png", seed=7)
    read_paths.clear()
    second = scan(root, paths)
    assert read_paths == ["3.png"]
    assert second.pop("red/3.png") != first.pop("red/3.png")
    assert str(second.pop("red/0.png")) == str(first.pop("red/0.png"))
    assert second == first


def test_another_file_of_the_same_size_and_time_is_read(old_folder) -> None:
    """As `rsync -t` and `tar` leave it."""
    root, paths = old_folder
    first = scan(root, paths)
    manifest = manifest_of(root, paths)
    path = root / "red" / "0.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"red/0\.png: changed"):
        verify(manifest)
    assert [p for p, found in scan(root, paths).items() if found != first[p]] == ["red/0.png"]


def test_a_file_changed_right_after_the_scan_is_read_again(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image_folder / "red" / "0.png"
    at = scan_cache.stamp(path)
    monkeypatch.setattr(scanning, "stamp", lambda _: at)  # within the clock's resolution
    scan(image_folder, ["red/0.png"])
    path.write_bytes(path.read_bytes()[::-1])
    assert isinstance(scan(image_folder, ["red/0.png"])["red/0.png"], UnreadableImage)


def test_each_decoding_has_its_own_results(tmp_path: Path, settled: None) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for alpha, mean in (("white", 255.0), ("black", 0.0)) * 2:
        found = scan(tmp_path, ["clear.png"], Decoding(alpha=alpha))["clear.png"]
        assert found.mean == mean  # type: ignore[union-attr]


def test_names_that_are_not_utf8(old_folder, read_paths) -> None:
    root, _ = old_folder
    odd = "red/\udcff.png"
    (root / "red" / "0.png").rename(root / odd)
    assert scan(root, [odd]) == scan(root, [odd])
    assert len(read_paths) == 1


def test_a_broken_cache_is_said_and_done_without(old_folder, caplog) -> None:
    root, paths = old_folder
    scan(root, paths)
    (cache,) = (cache_dir() / "scan").iterdir()
    cache.write_bytes(b"this is no database" * 1000)
    found = scan(root, paths)
    assert all(isinstance(f, Scanned) for f in found.values())
    assert str(cache) in caplog.text


def test_a_cache_that_cannot_be_written(old_folder, caplog, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLX_CACHE_DIR", str(tmp_path / "file"))
    root, paths = old_folder
    assert all(isinstance(f, Scanned) for f in scan(root, paths).values())
    assert "cannot be kept" in caplog.text


def test_scans_at_the_same_time_share_the_cache(old_folder) -> None:
    root, paths = old_folder
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(scan(root, paths))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(one == found[0] for one in found)
    (cache,) = (cache_dir() / "scan").glob("*.sqlite")
    with sqlite3.connect(cache) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (24,)


def manifest_of(root: Path, paths: list[str]) -> Manifest:
    samples = [
        Sample(p, "a", "train", "", hashlib.sha256((root / p).read_bytes()).hexdigest())
        for p in paths
    ]
    return Manifest.of(root, samples)


def test_what_fails_for_want_of_memory_is_read_again(old_folder, monkeypatch) -> None:
    root, paths = old_folder
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "decode_rgb", lambda *_: (_ for _ in ()).throw(MemoryError))
        found = scan(root, paths)
        assert all("memory" in found[path].reason for path in paths)
    assert all(isinstance(result, Scanned) for result in scan(root, paths).values())


CTRL_C = """
import signal, sys, time
from pathlib import Path
from tlx.data import parallel, scan
from tlx.data.images import Decoding

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests may ignore it
parallel.cores = lambda: 2
parallel.FEW = 2
examine = scan.examine
def slow(*arguments):
    time.sleep(0.3)
    return examine(*arguments)
scan.examine = slow
root = Path(sys.argv[1])
print("scanning", flush=True)
scan.scan(root, [str(path.relative_to(root)) for path in root.rglob("*.png")] * 20)
"""


def test_ctrl_c_twice_ends_a_scan(old_folder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CTRL_C, str(old_folder[0])], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        for wait in (1.5, 0.3):
            time.sleep(wait)
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=20)
    assert process.returncode != 0


def test_a_process_that_is_killed_ends_the_scan(old_folder, monkeypatch) -> None:
    root, paths = old_folder
    monkeypatch.setattr(parallel, "FEW", 2)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    monkeypatch.setattr(scanning, "examine", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="a process that read images was killed"):
        scan(root, paths)


def test_verify_passes_what_is_as_it_was_without_decoding(old_folder, read_paths) -> None:
    root, paths = old_folder
    verify(manifest_of(root, paths))
    scan(root, paths)
    read_paths.clear()
    verify(manifest_of(root, paths))
    assert read_paths == []


@pytest.mark.parametrize("scanned_before", [True, False])
def test_verify_names_what_changed_and_what_is_missing(
    old_folder, write_image, scanned_before: bool
) -> None:
    root, paths = old_folder
    if scanned_before:
        scan(root, paths)
    manifest = manifest_of(root, paths)
    write_image(root / "blue" / "2.png", seed=9)
    (root / "red" / "7.png").unlink()
    with pytest.raises(UserError) as caught:
        verify(manifest)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("2 of 24 images")
    assert lines[1:3] == ["  blue/2.png: changed", "  red/7.png: missing"]


def test_verify_names_ten_and_counts_the_rest(old_folder) -> None:
    root, paths = old_folder
    manifest = manifest_of(root, paths)
    samples = tuple(replace(sample, sha256="0") for sample in manifest.samples)
    with pytest.raises(UserError, match=r"24 of 24(?s:.*)  blue/0.png: changed(?s:.*)and 14 more"):
        verify(replace(manifest, samples=samples))


def test_a_picture_in_memory(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="empty"):
        examine(b"", tmp_path / "a.png", Decoding())
