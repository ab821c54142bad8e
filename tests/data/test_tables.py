import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest

from tlx.data.manifest import Record
from tlx.data.tables import read_elpv, read_table
from tlx.errors import UserError

JSON = '"{""cat"": 0.75, ""dog"": 0.25}"'


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "in").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "in/c.jpg", "in/d é.jpg"):
        (root / name).touch()
    return root


def read(root: Path, text: str | bytes, columns: Mapping[str, str] | None = None) -> list[Record]:
    table = root / "photos.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(table, root, columns or {})


def refused(root: Path, text: str | bytes, columns: Mapping[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read(root, text, columns)
    return str(caught.value)


def test_path_and_label(photos: Path) -> None:
    assert read(photos, "path,label\na.jpg,cat\nin/c.jpg,dog\n") == [
        Record("a.jpg", "cat", "cat"),
        Record("in/c.jpg", "dog", "dog"),
    ]


def test_every_column(photos: Path) -> None:
    rows = read(
        photos,
        "label,path,soft,weight,group,split,camera\n"
        f"cat,a.jpg,{JSON},0.5,p 1,Train,x\ndog,b.jpg,,,,validation,y\ndog,in/c.jpg,,0,,TEST,\n",
    )
    assert [row.split for row in rows] == ["train", "val", "test"]
    assert [row.weight for row in rows] == [0.5, 1.0, 0.0]
    assert [row.group for row in rows] == ["p 1", "", ""]
    assert json.loads(rows[0].soft) == {"cat": 0.75, "dog": 0.25}
    assert rows[1].soft == ""


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write(photos: Path, separator: str, mark: bytes, end: str) -> None:
    rows = ["path,label,group", "a.jpg,cat,1", '"b.jpg","a, big; dog",2', "", "in/c.jpg, dog,3"]
    text = end.join(rows[:2] + rows[3:]).replace(",", separator)
    text += f'{end}b.jpg{separator}"a, big; dog"{separator}2'
    labels = [row.label for row in read(photos, mark + text.encode())]
    assert labels == ["cat", "dog", "a, big; dog"]


def test_renamed_columns(photos: Path) -> None:
    text = "label,breed,file\n1,cat,a.jpg\n2,dog,b.jpg\n"
    rows = read(photos, text, {"label": "breed", "path": "file"})
    assert [(row.path, row.label) for row in rows] == [("a.jpg", "cat"), ("b.jpg", "dog")]


def test_windows_unicode_and_absolute_paths(photos: Path) -> None:
    nfd = unicodedata.normalize("NFD", "in\\d é.jpg")
    text = f"path,label\nin\\c.jpg,cat\n{nfd},dog\n{photos}/b.jpg,cat\nphotos/a.jpg,cat\n"
    assert [row.path for row in read(photos, text)] == ["in/c.jpg", "in/d é.jpg", "b.jpg", "a.jpg"]


def test_absolute_paths_and_a_root_that_is_a_link(photos: Path) -> None:
    link = photos.parent / "link"
    link.symlink_to(photos)
    text = f"path,label\n{photos}/a.jpg,cat\n{link}/b.jpg,dog\n"
    assert [row.path for row in read(link, text)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "path", ["../x.jpg", "/etc/passwd", "in/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "\\\\pc\\x.jpg"]
)
def test_a_path_outside_the_root(photos: Path, path: str) -> None:
    (photos.parent / "x.jpg").touch()
    message = refused(photos, f"path,label\na.jpg,cat\n{path},dog\n")
    assert message.endswith(f"line 3: {path} lies outside the folder {photos} (data.root).")


def test_missing_files_are_named(photos: Path) -> None:
    rows = "".join(f"gone {i}.jpg,cat\n" for i in range(12))
    message = refused(photos, f"path,label\na.jpg,dog\n{rows}in,dog\n")
    assert "photos.csv names 13 files not in" in message
    assert "line 3: gone 0.jpg" in message
    assert message.count("gone") == 10
    assert "and 3 more" in message


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        (
            "path,breed\na.jpg,x\n",
            {},
            "has no column 'label' for the label; its columns: path, breed",
        ),
        (
            "path,label\na.jpg,x\n",
            {"label": "bred"},
            "no column 'bred' for the label; its columns: path, label",
        ),
        (
            "path,label\na.jpg,x\n",
            {"lable": "x"},
            "unknown data.columns 'lable'. Did you mean label?",
        ),
        ("path,label,label\na.jpg,x,y\n", {}, "has the column 'label' twice"),
        ("", {}, "its columns: none"),
        ("path,label\n", {}, "has no rows"),
        ("path,label\na.jpg\n", {}, "line 2: 1 values instead of 2"),
        ("path,label\na.jpg,\n", {}, "line 2: a.jpg has no label"),
        ("path,label\n,cat\n", {}, "line 2: the path is empty"),
        ("path,label\na.jpg,cat\na.jpg,cat\n", {}, "line 3: a.jpg is in line 2 already"),
        (
            "path,label\na.jpg,cat\nin/../a.jpg,dog\n",
            {},
            "line 3: a.jpg is labelled 'dog', but 'cat' in line 2",
        ),
        (
            "path,label,split\na.jpg,x,trian\n",
            {},
            "line 2: unknown split 'trian'. Did you mean train",
        ),
        (
            "path,label,split\na.jpg,x,train\nb.jpg,y,\n",
            {},
            "the split is empty for 1 of 2 images, such as b.jpg",
        ),
        (
            "path,label,weight\na.jpg,x,-1\n",
            {},
            "line 2: the weight '-1' is not a number of 0 or more",
        ),
        ("path,label,weight\na.jpg,x,nan\n", {}, "the weight 'nan' is not"),
        ("path,label,weight\na.jpg,x,much\n", {}, "the weight 'much' is not"),
        (
            'path,label,soft\na.jpg,x,"{""x"": 0.5}"\n',
            {},
            "line 2: soft is '{\"x\": 0.5}'; it takes the prob",
        ),
        ("path,label,soft\na.jpg,x,0.5\n", {}, "line 2: soft is '0.5'"),
        ('path,label,soft\na.jpg,x,"{""z"": 1}"\n', {}, "column soft: unknown class 'z'"),
        ('path,label,soft\na.jpg,x,"{""x"": 2, ""y"": -1}"\n', {}, "which sum to 1"),
        (b"path,label\na.jpg,caf\xe9\n", {}, "photos.csv is not UTF-8 (byte 20: 0xe9): save it"),
        ("path,label\na.jpg,cat\n".encode("utf-16"), {}, "photos.csv is not UTF-8 (byte 0: 0xff)"),
    ],
)
def test_bad_tables(
    photos: Path, text: str | bytes, columns: Mapping[str, str], expected: str
) -> None:
    assert expected in refused(photos, text, columns)


def test_elpv_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no labels\.csv in"):
        read_elpv(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "images/a.png  0.3333333333333333  mono\nimages/b.png 1.0 poly\n"
    )
    first, second = read_elpv(tmp_path)
    assert (first.label, first.stratum) == ("functional", "functional mono")
    assert json.loads(first.soft) == {
        "defective": pytest.approx(1 / 3),
        "functional": pytest.approx(2 / 3),
    }
    assert (second.label, json.loads(second.soft)) == (
        "defective",
        {"defective": 1, "functional": 0},
    )
    (tmp_path / "labels.csv").write_text("images/a.png 1.0 mono\nimages/b.png,0.0,poly\n")
    with pytest.raises(UserError, match=r"labels\.csv, line 2: 'images/b\.png,0\.0,poly'"):
        read_elpv(tmp_path)
