"""How fast images are read, hashed and compared, and what a hundred thousand of them take.

    OMP_NUM_THREADS=1 python benchmarks/scanning.py          # needs pip install elpv-dataset

The photographs are ELPV's 2,624 PNGs of 300×300 pixels, and JPEGs made of them. Each is scanned
with nothing kept (every file is decoded; the system has the files in memory), then again with the
results of the first time. Then 100,000 paths: links to 1,000 small files, scanned, scanned again,
searched for copies and verified. The best of three repeats is shown, since other programs only
make it slower; memory is the peak of the whole process.
"""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tlx.data.duplicates import copies
from tlx.data.manifest import Manifest, Sample
from tlx.data.scan import Scanned, scan, verify
from tlx.files import cache_dir

REPEATS, PATHS, SMALL = 3, 100_000, 1000
LONG_AGO = 1_700_000_000  # files changed in the last seconds are read again: these were not


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(name: str, root: Path, paths: Sequence[str]) -> None:
    def forget() -> None:
        shutil.rmtree(cache_dir() / "scan", ignore_errors=True)

    cold, warm = [], []
    for _ in range(REPEATS):
        forget()
        cold.append(seconds(lambda: scan(root, paths)))
        warm.append(seconds(lambda: scan(root, paths)))
    for what, times in (("every file decoded", cold), ("nothing changed", warm)):
        print(f"{name:12} {what:20} {len(paths) / min(times):9,.0f} images a second")


def make_jpegs(photographs: Sequence[Path], folder: Path) -> list[str]:
    folder.mkdir()
    for path in photographs:
        target = folder / f"{path.stem}.jpg"
        Image.open(path).convert("RGB").save(target, quality=90)
        os.utime(target, (LONG_AGO, LONG_AGO))
    return sorted(path.name for path in folder.iterdir())


def make_links(folder: Path) -> list[str]:
    """1,000 pictures of 32×32 under 100 names each."""
    random = np.random.default_rng(0)
    for number in range(SMALL):
        first = folder / f"{number:03}" / "0.png"
        first.parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(first)
        os.utime(first, (LONG_AGO, LONG_AGO))
        for link in range(1, PATHS // SMALL):
            os.link(first, first.with_name(f"{link}.png"))
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]


def many(root: Path, paths: list[str]) -> None:
    print(f"{len(paths):,} paths")
    print(f"  scanned        {seconds(lambda: scan(root, paths)):6.1f} s")
    print(f"  scanned again  {seconds(lambda: scan(root, paths)):6.1f} s")
    read = {path: s for path, s in scan(root, paths).items() if isinstance(s, Scanned)}
    print(f"  copies         {seconds(lambda: copies(read, near=True)):6.1f} s")
    samples = [Sample(path, "a", "train", "", s.sha256) for path, s in read.items()]
    manifest = Manifest.of(root, samples)
    print(f"  verified       {seconds(lambda: verify(manifest)):6.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"  peak memory    {peak:6.2f} GB")


def main() -> None:
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the photographs are not installed: pip install elpv-dataset")
    photographs = sorted((Path(spec.submodule_search_locations[0]) / "data/images").glob("*.png"))
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TLX_CACHE_DIR"] = str(Path(temporary) / "cache")
        speed("ELPV, PNG", photographs[0].parent, [path.name for path in photographs])
        jpegs = Path(temporary) / "jpeg"
        speed("ELPV, JPEG", jpegs, make_jpegs(photographs, jpegs))
        links = Path(temporary) / "links"
        many(links, make_links(links))


if __name__ == "__main__":
    main()
