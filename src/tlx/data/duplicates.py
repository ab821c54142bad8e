"""Images that are the same: byte for byte, or as copies in another size or compression."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tlx.data.scan import SIDE, Scanned

# These were chosen on ELPV, whose solar cells look much alike: tests/test_check.py.
HASH_DISTANCE = 7  # bits; of four bands of 16 bits, one then differs in at most 1
FLAT = 2.0  # grey levels of deviation below which a picture has no looks of its own
BAND = np.uint64(0xFFFF)
CHUNK = 1 << 20  # pairs of hashes compared at once
COMPARED = 1 << 13  # pairs of thumbnails compared at once: some 100 MB


def copies(scanned: Mapping[str, Scanned], *, near: bool) -> list[list[str]]:
    """Groups of two or more paths that show the same picture; with `near`, not only exactly.

    A near copy is the picture resized or compressed anew. Brighter, cropped, mirrored and turned
    ones are not found, and of pictures without contrast only exact copies are.
    """
    paths_of: defaultdict[str, list[str]] = defaultdict(list)
    for path, found in scanned.items():
        paths_of[found.sha256].append(path)
    groups = [[digest] for digest in paths_of]
    if near:
        distinct = [scanned[paths[0]] for paths in paths_of.values()]
        groups = [[distinct[i].sha256 for i in group] for group in _near_groups(distinct)]
    found_groups = [[path for digest in group for path in paths_of[digest]] for group in groups]
    return [group for group in found_groups if len(group) > 1]


def _near_groups(pictures: Sequence[Scanned]) -> list[list[int]]:
    """Indices of `pictures`, those joined by a chain of near copies together."""
    shown = [index for index, picture in enumerate(pictures) if picture.deviation >= FLAT]
    hashes = np.array([int(pictures[index].phash, 16) for index in shown], np.uint64)
    thumbnails = np.frombuffer(b"".join(pictures[i].thumbnail for i in shown), np.uint8)
    thumbnails = thumbnails.reshape(-1, SIDE, SIDE)
    parent = np.arange(len(shown))
    for left, right in _near_hashes(hashes):
        for start in range(0, len(left), COMPARED):
            a, b = left[start : start + COMPARED], right[start : start + COMPARED]
            parent = _flat(parent)
            apart = parent[a] != parent[b]  # of a burst, most are together by now
            a, b = a[apart], b[apart]
            same = _same_picture(thumbnails[a], thumbnails[b])
            for pair in zip(a[same].tolist(), b[same].tolist(), strict=True):
                low, high = sorted(_first(parent, index) for index in pair)
                parent[high] = low
    members = defaultdict(list)
    for index, group in zip(shown, _flat(parent).tolist(), strict=True):
        members[group].append(index)
    alone = set(range(len(pictures))) - set(shown)
    return [*members.values(), *([index] for index in sorted(alone))]


def _first(parent: NDArray[np.int64], index: int) -> int:
    while (above := int(parent[index])) != index:
        index = above
    return index


def _flat(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every index points at the first of its group."""
    while not np.array_equal(above := parent[parent], parent):
        parent = above
    return parent


def _same_picture(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether thumbnails (n, 32, 32) differ by no more than compression and resizing explain.

    Both leave the grey levels where they are, most of all on average over 4×4 pixels; what two
    photographs of like things share is their structure, not their levels.
    """
    difference = a.astype(np.float32) - b
    blocks = difference.reshape(-1, SIDE // 4, 4, SIDE // 4, 4).mean((2, 4))
    contrast = a.std((1, 2), dtype=np.float32)
    fine = np.sqrt((difference**2).mean((1, 2)))
    coarse = np.sqrt((blocks**2).mean((1, 2)))
    tolerance = np.minimum(1 + contrast / 30, contrast / 5)
    peak = np.abs(difference).max((1, 2))  # one crack more is another solar cell
    same: NDArray[np.bool_] = (
        (fine <= tolerance) & (coarse <= tolerance / 2) & (peak <= 5 * tolerance)
    )
    return same


def _near_hashes(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """All pairs within HASH_DISTANCE, without comparing each with each.

    Of hashes at most 7 bits apart, one of four bands differs by one bit or none (pigeonhole): so
    each band is looked up as it is and with each of its bits turned.
    """
    for shift in range(0, 64, 16):
        band = (hashes >> np.uint64(shift)) & BAND
        order = np.argsort(band, kind="stable")
        for turned in (0, *(1 << bit for bit in range(16))):
            wanted = band ^ np.uint64(turned)
            start = np.searchsorted(band[order], wanted, side="left")
            stop = np.searchsorted(band[order], wanted, side="right")
            for left, places in _expanded(start, stop):
                right = order[places]
                differing = hashes[left] ^ hashes[right]
                close = (np.bitwise_count(differing) <= HASH_DISTANCE) & (left < right)
                for earlier in range(0, shift, 16):  # an earlier band has found the pair
                    close &= np.bitwise_count(differing >> np.uint64(earlier) & BAND) > 1
                yield left[close], right[close]


def _expanded(
    start: NDArray[np.int64], stop: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(row, place) of all places from start to stop of each row, about CHUNK of them at a time."""
    counts = stop - start
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + CHUNK, side="right")), first + 1)
        rows = np.repeat(np.arange(first, last), counts[first:last])
        offsets = np.arange(len(rows)) - (ends[rows] - counts[rows] - done)
        yield rows, start[rows] + offsets
        first = last
