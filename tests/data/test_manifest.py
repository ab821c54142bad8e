from dataclasses import replace
from pathlib import Path

import pytest

from tlx.data.manifest import Manifest, Sample, natural_key
from tlx.errors import UserError

ROOT = Path("photographs")
HEADER = "path,label,split,group,sha256,width,height,phash,weight,soft\n"


def sample(path: str, split: str = "train") -> Sample:
    return Sample(path, path.split("/", maxsplit=1)[0], split, "", "0" * 64)


def test_natural_order_counts_and_otherwise_is_sorted() -> None:
    names = ["10", "2", "1", "b2", "b10", "a", "B", "b02", ""]
    assert sorted(names, key=natural_key) == ["", "1", "2", "10", "B", "a", "b02", "b2", "b10"]


def test_order_does_not_depend_on_the_listing() -> None:
    samples = [sample("10/a.png"), sample("2/10.png"), sample("2/9.png"), sample("1/a.png", "val")]
    manifest = Manifest.of(ROOT, samples)
    assert manifest.classes == ("1", "2", "10")
    assert [s.path for s in manifest.samples] == ["1/a.png", "2/9.png", "2/10.png", "10/a.png"]
    assert Manifest.of(ROOT, reversed(samples)) == manifest


def test_a_class_keeps_its_index_when_a_split_lacks_it() -> None:
    manifest = Manifest.of(
        ROOT, [sample("a/1"), sample("b/1"), sample("c/1"), sample("c/2", "val")]
    )
    assert {s.label for s in manifest.split("val")} == {"c"}
    assert manifest.classes.index("c") == 2


def test_split_names_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown split 'valid'.*Valid: train, val, test"):
        Manifest.of(ROOT, []).split("valid")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    odd = ['a/with, comma "and" quotes.png', "b/Zürich 雪.png", "b/line\nbreak.png", "c/\udcff.png"]
    samples = [sample(path) for path in odd] + [sample("a/z.png", "test")]
    full = Sample("a/y.png", "a", "val", "g", "1", 640, 480, "f" * 16, 0.1, '{"a": 0.5, "b": 0.5}')
    manifest = Manifest.of(ROOT, [*samples, full])
    path = tmp_path / "manifest.csv"
    manifest.write(path)
    assert Manifest.read(path, ROOT) == manifest
    assert path.read_bytes().splitlines()[0] == HEADER.strip().encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    manifest = Manifest.of(ROOT, [sample("a/1.png")])
    manifest.write(path)
    broken = replace(manifest, samples=(*manifest.samples, "not a sample"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        broken.write(path)
    assert Manifest.read(path, ROOT) == manifest


def row(path: str, split: str = "train") -> str:
    return f"{path},a,{split},,0,32,24,,1.0,\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns \(none\); a manifest has path,label"),
        ("path,label\na/1,a\n", r"has the columns path,label; a manifest has path,label,split"),
        (HEADER + row("a/1") + row("a/2", "training"), r"line 3: unknown split 'training'"),
        (HEADER + "a/1,a,train\n", "line 2: 3 values instead of 10"),
        (HEADER + row("a/1").replace("32", "wide"), "line 2: invalid literal.*'wide'"),
        (HEADER + row("a/1") + row("a/1", "test"), "names 1 images more than once"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Manifest.read(path, ROOT)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest at .*gone\.csv"):
        Manifest.read(tmp_path / "gone.csv", ROOT)
