"""The manifest: every image of a data set, its class and its split. A run's ground truth."""

import csv
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tlx.errors import UserError, unknown
from tlx.files import replace_atomically

SPLITS = ("train", "val", "test")
SLACK = 0.0101  # by how much probabilities written with few digits may miss a sum of 1


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key that puts '2' before '10'; otherwise the order of `sorted`."""
    parts = re.split(r"(\d+)", text)  # text and digits alternate, so like meets like
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), text


@dataclass(frozen=True)
class Record:
    """An image before it is read, as a source lists it.

    `split` is '' until one is drawn, within its `stratum`; `group` and `soft` are as in Sample.
    """

    path: str
    label: str
    stratum: str
    split: str = ""
    group: str = ""
    weight: float = 1.0
    soft: str = ""


@dataclass(frozen=True)
class Sample:
    """One image. `path` is POSIX and relative to the root; `group` is '' when there is none.

    `phash` is a perceptual hash, 16 hex digits; `soft` is '' or a JSON object of the probability
    of each class that has one.
    """

    path: str
    label: str
    split: str
    group: str
    sha256: str
    width: int = 0
    height: int = 0
    phash: str = ""
    weight: float = 1.0
    soft: str = ""


COLUMNS = tuple(field.name for field in fields(Sample))


@dataclass(frozen=True)
class Manifest:
    """Images in natural order of their paths, classes in natural order of their names.

    A class's index is its place in `classes`. It follows from the labels alone, never from which
    split a class happens to be in.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, root: Path, samples: Iterable[Sample]) -> "Manifest":
        """Puts samples and classes in their fixed order."""
        ordered = tuple(sorted(samples, key=lambda sample: natural_key(sample.path)))
        labels = {sample.label for sample in ordered} - {""}  # a test image may have none
        classes = tuple(sorted(labels, key=natural_key))
        return cls(root, classes, ordered)

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of train, val or test, in the manifest's order."""
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        return tuple(sample for sample in self.samples if sample.split == name)

    def write(self, path: Path) -> None:
        """As CSV. A reader sees the old file or the whole new one, never a part."""
        # surrogateescape: file names that are not UTF-8 come back as they were
        with (
            replace_atomically(path) as partial,
            partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(astuple(sample) for sample in self.samples)

    @classmethod
    def read(cls, path: Path, root: Path) -> "Manifest":
        """Raises UserError naming the line when a column or a split name is not as written."""
        if not path.is_file():
            raise UserError(f"no manifest at {path}.")
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = tuple(next(reader, ()))
            if header != COLUMNS:
                raise UserError(
                    f"{path} has the columns {','.join(header) or '(none)'}; "
                    f"a manifest has {','.join(COLUMNS)}."
                )
            samples = [_sample(row, f"{path}, line {reader.line_num}") for row in reader]
        paths = {sample.path for sample in samples}
        if len(paths) < len(samples):
            raise UserError(f"{path} names {len(samples) - len(paths)} images more than once.")
        return cls.of(root, samples)


def _sample(row: list[str], where: str) -> Sample:
    if len(row) != len(COLUMNS):
        raise UserError(f"{where}: {len(row)} values instead of {len(COLUMNS)}.")
    try:
        path, label, split, group, sha256, width, height, phash, weight, soft = row
        sample = Sample(
            path, label, split, group, sha256, int(width), int(height), phash, float(weight), soft
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
    if sample.split not in SPLITS:
        raise UserError(f"{where}: {unknown('split', sample.split, SPLITS)}")
    return sample
