import json
from dataclasses import replace
from pathlib import Path

import pytest

from tlx.data.checks import Finding, as_json, find_problems, write_findings
from tlx.data.images import UnreadableImage
from tlx.data.manifest import Record
from tlx.data.scan import Result, Scanned

PICTURE = Scanned("", 300, 300, "0" * 16, 128.0, 40.0, False, bytes(1024))


def shown(number: int, **changes: object) -> Scanned:
    """A picture that looks like no other: its hash and its grey level are far from theirs."""
    hashed = f"{0x9E3779B97F4A7C15 * (number + 1) % 2**64:016x}"
    picture = replace(PICTURE, sha256=str(number), phash=hashed, thumbnail=bytes([number]) * 1024)
    return replace(picture, **changes)  # type: ignore[arg-type]


def problems(entries: dict[str, Result], image_size: int = 224) -> dict[str, Finding]:
    """By kind. A path is split/class/name, or class/name when it has no split yet."""
    records = []
    for path in entries:
        *split, label, _ = path.split("/")
        records.append(Record(path, label, label, split[0] if split else ""))
    findings = find_problems(records, entries, image_size=image_size)
    assert len({finding.kind for finding in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


def classes(sizes: dict[str, int], **changes: object) -> dict[str, Result]:
    """So many different pictures in each folder."""
    paths = [f"{folder}/{number}" for folder, size in sizes.items() for number in range(size)]
    return {path: shown(number, **changes) for number, path in enumerate(paths)}


def test_nothing_wrong() -> None:
    assert problems(classes({"a": 12, "b": 12})) == {}


def test_what_cannot_be_read() -> None:
    entries = classes({"a": 12, "b": 12})
    entries |= {f"a/{n}": UnreadableImage(Path(f"a/{n}"), "truncated") for n in (2, 3)}
    found = problems(entries)["unreadable"]
    assert (found.severity, found.paths) == ("error", ("a/2", "a/3"))
    assert "2 images cannot be read in full (2: truncated)" in found.message
    assert "data.on_error=skip" in found.fix


def test_images_that_were_skipped_are_still_said() -> None:
    broken = UnreadableImage(Path("a/1"), "truncated")
    entries: dict[str, Result] = {"a/0": shown(0), "a/1": broken}
    findings = find_problems([Record("a/0", "a", "a")], entries, image_size=224)
    assert findings[0].paths == ("a/1",)


def test_copies_by_what_they_spoil() -> None:
    entries = classes({"train/a": 12, "train/b": 12, "test/a": 12, "test/b": 12})
    entries["train/a/1"] = entries["train/a/0"]  # harmless
    entries["test/a/2"] = entries["train/a/2"]  # leak
    entries["train/b/3"] = entries["train/a/3"]  # conflict
    entries["test/b/4"] = entries["train/a/4"]  # both
    found = problems(entries)
    assert {kind: f.paths for kind, f in found.items()} == {
        "exact_leak": ("train/a/2", "test/a/2", "train/a/4", "test/b/4"),
        "exact_label_conflict": ("train/a/3", "train/b/3", "train/a/4", "test/b/4"),
        "exact_copies": ("train/a/0", "train/a/1"),
    }
    assert [f.severity for f in found.values()] == ["error", "error", "note"]
    assert "data.on_leak=regroup" in found["exact_leak"].fix


def test_near_copies_are_warnings_and_exact_ones_not_named_twice() -> None:
    textured = bytes(range(0, 256, 8)) * 32
    entries = classes({f"{split}/{name}": 12 for split in ("train", "test") for name in "ab"})
    entries["train/a/0"] = shown(0, thumbnail=textured)
    entries["test/a/0"] = shown(0, thumbnail=textured, sha256="compressed again")
    entries["test/a/1"] = entries["train/a/1"]
    found = problems(entries)
    assert set(found) == {"near_leak", "exact_leak"}
    assert found["near_leak"].paths == ("train/a/0", "test/a/0")
    assert found["near_leak"].severity == "warning"


def test_what_training_would_refuse_is_an_error() -> None:
    found = problems(classes({"train/a": 12, "val/a": 12}))
    assert found["one_class"].severity == "error"
    found = problems(classes({f"test/{name}": 12 for name in "ab"}))
    assert found["no_train"].severity == "error"


def test_a_shifted_class_folder() -> None:
    found = problems(classes({f"{s}/{c}": 12 for s in ("train", "val") for c in "abc"}))
    assert found == {}
    entries = classes({"train/a": 12, "train/b": 12, "train/c": 12, "val/a": 12, "val/c": 12})
    found = problems(entries)
    assert set(found) == {"class_missing"}
    assert found["class_missing"].severity == "warning"
    assert "val has no image of the class 'b'" in found["class_missing"].message
    assert "'c' would be class 1, which is 'b'" in found["class_missing"].message


def test_a_missing_last_class_shifts_nothing() -> None:
    found = problems(classes({"train/a": 12, "train/b": 12, "val/a": 12}))
    assert found["class_missing"].message == "val has no image of the class 'b'"


def test_a_class_that_cannot_be_learned_is_an_error() -> None:
    found = problems(classes({"train/a": 12, "train/b": 12, "val/a": 12, "val/b": 12, "val/x": 1}))
    assert found["class_missing"].severity == "error"
    assert found["class_missing"].message == "train has no image of the class 'x'"
    entries = classes({"a": 12, "b": 12})
    entries["c/0"] = UnreadableImage(Path("c/0"), "empty")
    assert problems(entries)["class_missing"].severity == "error"


@pytest.mark.parametrize(
    ("large", "severity"), [(17, None), (18, "note"), (119, "note"), (120, "warning")]
)
def test_imbalance(large: int, severity: str | None) -> None:
    found = problems(classes({"a": large, "b": 12}))
    assert set(found) == ({"imbalance"} if severity else set())
    if severity is not None:
        assert found["imbalance"].severity == severity
        assert f"right in {large / (large + 12):.1%}" in found["imbalance"].message


def test_a_tiny_class_is_counted_where_it_is_learned() -> None:
    entries = classes({"train/a": 12, "train/b": 9, "val/a": 2, "val/b": 2})
    found = problems(entries)
    assert set(found) == {"small_class"}
    assert "'b' (9)" in found["small_class"].message


@pytest.mark.parametrize(
    ("kind", "changes", "severity"),
    [
        ("constant", {"deviation": 1.0, "mean": 0.0}, "warning"),
        ("dark", {"mean": 5.0}, "warning"),
        ("bright", {"mean": 250.0}, "warning"),
        ("mixed_colour", {"is_grey": True}, "note"),
        ("small_image", {"width": 200}, "note"),
        ("long_image", {"height": 600}, "note"),
    ],
)
def test_odd_pictures(kind: str, changes: dict[str, object], severity: str) -> None:
    entries = classes({"a": 12, "b": 12})
    entries["b/3"] = shown(15, **changes)
    found = problems(entries)
    assert set(found) == {kind}
    assert (found[kind].paths, found[kind].severity) == (("b/3",), severity)


def test_sizes_that_matter_are_warnings() -> None:
    found = problems(classes({"a": 12, "b": 12}, width=120, height=240))
    assert {kind: f.severity for kind, f in found.items()} == {
        "small_image": "warning",
        "long_image": "warning",
    }
    assert found["small_image"].fix.startswith("data.image_size=120 ")
    tiny = problems(classes({"a": 12, "b": 12}, width=64, height=64))
    assert tiny["small_image"].fix.startswith("find larger ones")
    assert problems(classes({"a": 12, "b": 12}, width=100, height=100), image_size=100) == {}


def test_the_worst_come_first() -> None:
    entries = classes({"a": 15, "b": 9})
    entries["a/1"] = UnreadableImage(Path("a/1"), "empty")
    entries["a/2"] = shown(2, mean=0.0, is_grey=True)
    severities = [finding.severity for finding in problems(entries).values()]
    assert severities == ["error", "warning", "warning", "note", "note"]


def test_findings_are_written_whatever_the_file_names(tmp_path: Path) -> None:
    finding = Finding("dark", "warning", "1 image is dark", ("a/\udcff 雪.png",), "look")
    write_findings(tmp_path / "findings.json", [finding])
    found = json.loads((tmp_path / "findings.json").read_text("utf-8"))
    assert found == {"findings": json.loads(json.dumps(as_json([finding])))}
    assert found["findings"][0]["paths"] == ["a/\\udcff 雪.png"]
