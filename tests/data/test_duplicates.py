import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tlx.data.duplicates import HASH_DISTANCE, _expanded, _near_hashes, copies
from tlx.data.images import Decoding
from tlx.data.scan import Scanned, examine

ROOT = Path("photographs")


def scanned(image: Image.Image, form: str = "PNG", **options: int) -> Scanned:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return examine(buffer.getvalue(), ROOT, Decoding())


def photograph(seed: int) -> Image.Image:
    """Clouds of colour in several sizes, 300×240: what is left of a photograph without meaning."""
    random = np.random.default_rng(seed)
    total = np.zeros((240, 300, 3))
    for radius in (2, 8, 30):
        noise = Image.fromarray(random.integers(0, 256, (240, 300, 3), dtype=np.uint8))
        layer = np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), float)
        total += (layer - layer.mean()) / layer.std()
    return Image.fromarray(np.clip(128 + 30 * total, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def originals() -> dict[str, Scanned]:
    return {f"{seed}.png": scanned(photograph(seed)) for seed in range(30)}


def test_exact_copies_are_grouped_and_near_ones_only_when_asked_for(originals) -> None:
    found = originals | {"twin.png": originals["3.png"], "triplet.png": originals["3.png"]}
    found["small.png"] = scanned(photograph(3).resize((150, 120)))
    exact = ["3.png", "twin.png", "triplet.png"]
    assert copies(found, near=False) == [exact]
    assert copies(found, near=True) == [[*exact, "small.png"]]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda i: scanned(i, "JPEG", quality=40), id="quality 40"),
        pytest.param(lambda i: scanned(i, "JPEG", quality=90), id="quality 90"),
        pytest.param(lambda i: scanned(i, "WEBP", quality=60), id="another format"),
        pytest.param(lambda i: scanned(i.resize((150, 120))), id="half the size"),
        pytest.param(lambda i: scanned(i.resize((450, 360))), id="larger"),
        pytest.param(lambda i: scanned(i.resize((150, 120)), "JPEG", quality=50), id="both"),
    ],
)
def test_near_copies_are_found_and_nothing_else(originals, change) -> None:
    changed = {f"{seed} again": change(photograph(seed)) for seed in range(10)}
    groups = copies(originals | changed, near=True)
    assert sorted(groups) == [[f"{seed}.png", f"{seed} again"] for seed in range(10)]


def test_another_level_of_grey_is_another_picture(originals) -> None:
    brighter = photograph(0).point(lambda level: level + 12)
    assert copies(originals | {"brighter": scanned(brighter)}, near=True) == []


def test_pictures_without_contrast_are_only_exact_copies() -> None:
    found = {
        f"{level} {side}": scanned(Image.new("RGB", (side, side), (level,) * 3))
        for level in (0, 1, 2, 128, 255)
        for side in (40, 50)
    }
    found["again"] = found["0 40"]
    assert copies(found, near=True) == [["0 40", "again"]]


def test_near_copies_chain() -> None:
    image = photograph(1)
    chain = {str(q): scanned(image, "JPEG", quality=q) for q in (95, 70, 45)}
    assert copies(chain, near=True) == [["95", "70", "45"]]


def test_hashes_within_the_distance_are_all_found() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 2**64, 300, np.uint64)
    turned = base.copy()
    for index, bits in enumerate(random.integers(0, 12, len(base))):
        for bit in random.choice(64, bits, replace=False):
            turned[index] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate([base, turned, base[:5]])
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = set(zip(*np.nonzero(np.triu(distance <= HASH_DISTANCE, 1)), strict=True))
    found = [pair for a, b in _near_hashes(hashes) for pair in zip(a, b, strict=True)]
    pairs = set(found)
    assert len(found) == len(pairs)
    assert pairs == expected
    assert len(expected) > 200


def test_ranges_are_expanded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.data.duplicates.CHUNK", 4)
    start, stop = np.array([5, 0, 3, 9, 2]), np.array([7, 0, 9, 9, 5])
    chunks = [list(zip(*pair, strict=True)) for pair in _expanded(start, stop)]
    plain = [(row, place) for row in range(5) for place in range(start[row], stop[row])]
    assert [pair for chunk in chunks for pair in chunk] == plain
    assert len(chunks) == 3


def test_nothing_to_compare() -> None:
    assert copies({}, near=True) == []
    one = {"a.png": scanned(photograph(0))}
    assert copies(one, near=True) == []
