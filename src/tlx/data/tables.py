"""Tables of images: a CSV file with a row per image, and ELPV's labels.csv."""

import csv
import io
import json
import logging
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from tlx.data.folders import SPLIT_NAMES, split_named
from tlx.data.manifest import SLACK, Record
from tlx.errors import UserError, unknown

log = logging.getLogger(__name__)

COLUMNS = ("path", "label", "split", "group", "weight", "soft")
REQUIRED = ("path", "label")
ELPV_DEFECTIVE = 0.5  # defect probability from which a cell counts as defective


def read_table(table: Path, root: Path, columns: Mapping[str, str]) -> list[Record]:
    """A row per image: path (below `root`), label, and if there: split, group, weight, soft.

    `columns` says what those are called in the table where they are called otherwise. Values are
    separated by commas, semicolons or tabs. Raises UserError naming the line or the files.
    """
    records: list[Record] = []
    missing: list[str] = []
    lines: dict[str, int] = {}
    for line, row in _rows(table, columns):
        where = f"{table}, line {line}"
        path = find_below(root, row["path"], where)
        if path is None:
            missing.append(f"  line {line}: {row['path']}")
            continue
        record = _record(path, row, where)
        if (first := lines.setdefault(path, line)) != line:
            _refuse_twin(next(r for r in records if r.path == path), record, first, where)
        records.append(record)
    if missing:
        listed = "\n".join(missing[:10])
        more = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(f"{table} names {len(missing)} files not in {root}:\n{listed}{more}\n"
            "Mend the paths, or set data.root to the folder that they start from.")  # fmt: skip
    if not records:
        raise UserError(f"{table} has no rows: it takes one per image.")
    _check_splits(table, records)
    _check_soft(table, records)
    return records


def _rows(table: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and our columns of each row."""
    for key in columns:
        if key not in COLUMNS:
            raise unknown("data.columns", key, COLUMNS)
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{table} is not UTF-8 (byte {error.start}: {error.object[error.start]:#04x}): save it "
            "as CSV in UTF-8."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the table {table}: {error.strerror} (data.table).") from None
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        header = [name.strip() for name in next(reader, [])]
        places = _places(table, header, columns)
        for row in reader:
            if len(row) not in (0, len(header)):
                raise UserError(
                    f"{table}, line {reader.line_num}: {len(row)} values instead of {len(header)}."
                )
            if row:
                yield reader.line_num, {key: row[at].strip() for key, at in places.items()}
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: {error}.") from None


def _places(table: Path, header: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Where in a row each of our columns is."""
    there = ", ".join(header) or "none"
    names = {key: columns.get(key, key) for key in COLUMNS}
    for key, name in names.items():
        if header.count(name) > 1:
            raise UserError(f"{table} has the column {name!r} twice; its columns: {there}.")
        if name not in header and (key in REQUIRED or key in columns):
            raise UserError(
                f"{table} has no column {name!r} for the {key}; its columns: {there}. Say which "
                f"it is: 'data.columns={{{key}: NAME}}'."
            )
    if rest := [name for name in header if name not in names.values()]:
        log.info("columns of %s that are not used: %s", table.name, ", ".join(rest))
    return {key: header.index(name) for key, name in names.items() if name in header}


def find_below(root: Path, text: str, where: str) -> str | None:
    """The POSIX path below `root` of the file that `text` names; None when there is none.

    Takes backslashes, absolute paths, and accents in either form of Unicode. Raises UserError for
    a path outside the root.
    """
    if not text:
        raise UserError(f"{where}: the path is empty.")
    for spelling in (text, text.replace("\\", "/")):
        path = os.path.normpath(spelling)
        if os.path.isabs(path):
            real = os.path.realpath(root)  # of a root that is reached by a link
            base = (
                os.path.abspath(root) if Path(path).is_relative_to(os.path.abspath(root)) else real
            )
            path = os.path.relpath(path, base)
        if path.split("/")[0] == ".." or re.match(r"[A-Za-z]:[\\/]", path):
            raise UserError(f"{where}: {text} lies outside the folder {root} (data.root).")
        inner = path.removeprefix(f"{root.name}/")  # it starts with the root's own name
        for form in (path, *(unicodedata.normalize(f, path) for f in ("NFC", "NFD")), inner):
            if os.path.isfile(os.path.join(root, form)):
                return form
    return None


def _record(path: str, row: Mapping[str, str], where: str) -> Record:
    label = unicodedata.normalize("NFC", row["label"])
    given = row.get("split", "")
    split = split_named(given) if given else ""
    if split is None:
        raise UserError(f"{where}: {unknown('split', given, SPLIT_NAMES)}")
    if not label and split != "test":
        raise UserError(f"{where}: {row['path']} has no label; only a test image may lack one.")
    return Record(
        path,
        label,
        stratum=label,
        split=split,
        group=row.get("group", ""),
        weight=_weight(row.get("weight", ""), where),
        soft=_soft(row.get("soft", ""), where),
    )


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f"{where}: the weight {text!r} is not a number of 0 or more.")
    return weight


def _soft(text: str, where: str) -> str:
    """A JSON object from class to probability, as it was but for spacing."""
    if not text:
        return ""
    try:
        shares = {unicodedata.normalize("NFC", k): float(v) for k, v in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        shares = {}
    sound = all(0 <= share <= 1 for share in shares.values())
    if not sound or abs(sum(shares.values()) - 1) > SLACK:
        raise UserError(
            f"{where}: soft is {text!r}; it takes the probability of each class, which sum to 1, "
            'as JSON: {"cat": 0.75, "dog": 0.25}.'
        )
    return json.dumps(shares, ensure_ascii=False)


def _refuse_twin(first: Record, second: Record, line: int, where: str) -> None:
    if first.label != second.label:
        what = f"labelled {second.label!r}, but {first.label!r} in line {line}"
        raise UserError(f"{where}: {second.path} is {what}. Keep the right one.")
    raise UserError(f"{where}: {second.path} is in line {line} already. Keep one of them.")


def _check_splits(table: Path, records: list[Record]) -> None:
    without = [record.path for record in records if not record.split]
    if 0 < len(without) < len(records):
        raise UserError(
            f"{table}: the split is empty for {len(without)} of {len(records)} images, such as "
            f"{without[0]}. Fill it everywhere, or nowhere, and tlx splits."
        )


def _check_soft(table: Path, records: list[Record]) -> None:
    classes = {record.label for record in records}
    for soft in {record.soft for record in records if record.soft}:
        for name in json.loads(soft):
            if name not in classes:
                raise UserError(f"{table}, column soft: {unknown('class', name, sorted(classes))}")


def read_elpv(root: Path) -> list[Record]:
    """Rows of labels.csv: path, defect probability, cell type (mono or poly)."""
    table = root / "labels.csv"
    if not table.is_file():
        raise UserError(
            f"no labels.csv in {root}: it is not the ELPV data set (data.root); a folder of class "
            "folders is data=folder."
        )
    records = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            path, text, cell = line.split()
            defect = float(text)
        except ValueError as error:
            raise UserError(
                f"{table}, line {number}: {line!r} is not a path, a probability and a cell type."
            ) from error
        label = "defective" if defect >= ELPV_DEFECTIVE else "functional"
        soft = json.dumps({"defective": defect, "functional": 1 - defect})
        records.append(Record(path, label, f"{label} {cell}", soft=soft))
    return records
