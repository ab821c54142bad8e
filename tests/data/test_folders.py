import logging
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tlx.data.folders import images_below, scan_folder
from tlx.errors import UserError

CLASSES = ("blue", "green", "red")
WriteImage = Callable[..., Path]


def fill(root: Path, *paths: str) -> Path:
    """Empty files: listing does not read them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """Train, Valid and TEST with 6, 2 and 2 files of each class."""
    sizes = {"Train": 6, "Valid": 2, "TEST": 2}
    return fill(
        tmp_path / "split",
        *(
            f"{part}/{name}/{i}.png"
            for part, n in sizes.items()
            for name in CLASSES
            for i in range(n)
        ),
    )


def test_tools_and_other_files_are_no_classes(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = scan_folder(image_folder)
    assert Counter(record.label for record in expected) == dict.fromkeys(CLASSES, 8)
    fill(image_folder, *(f"{d}/0.png" for d in (".git", "__MACOSX", "red/.ipynb_checkpoints")))
    fill(image_folder, "Thumbs.db", "desktop.ini", ".DS_Store", "red/Thumbs.db", "blue/._0.png")
    assert scan_folder(image_folder) == expected
    assert warnings(caplog) == []
    fill(image_folder, "readme.txt", "red/notes.TXT", "blue/phone.heic")
    assert scan_folder(image_folder) == expected
    assert warnings(caplog) == ["ignored 3 files that are not images: 2 .txt, 1 .heic"]


def test_images_below_a_class_folder_and_beside_it(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(image_folder, "red/camera 2/day 1/0.PNG", "loose.png")
    records = scan_folder(image_folder)
    assert len(records) == 25
    assert "red/camera 2/day 1/0.PNG" in {r.path for r in records if r.label == "red"}
    assert warnings(caplog) == [f"ignored 1 images in {image_folder} that lie in no class folder"]


def test_links_that_loop_are_walked_once(tmp_path: Path) -> None:
    fill(tmp_path, "red/0.png", "red/deep/1.png", "blue/0.png")
    (tmp_path / "red" / "deep" / "back").symlink_to(tmp_path / "red")
    (tmp_path / "red" / "out").symlink_to(tmp_path)
    (tmp_path / "red" / "twin").symlink_to(tmp_path / "red" / "deep")
    (tmp_path / "blue" / "linked.png").symlink_to(tmp_path / "red" / "0.png")
    found = sorted(images_below(tmp_path / "red"))
    assert [path for path in found if not path.startswith("out/")] == ["0.png", "deep/1.png"]
    assert len(found) == len({os.path.realpath(tmp_path / "red" / path) for path in found}) + 1
    assert [r.path for r in scan_folder(tmp_path) if r.label == "blue"] == [
        "blue/0.png",
        "blue/linked.png",
    ]


@pytest.mark.parametrize("target", ["gone", "cats"])  # nowhere, and to itself
def test_a_class_folder_that_is_a_link_to_nowhere(tmp_path: Path, target: str) -> None:
    fill(tmp_path, "red/0.png", "blue/0.png")
    (tmp_path / "cats").symlink_to(target)
    with pytest.raises(UserError, match=rf"cats is a link to {target}, which is not there"):
        scan_folder(tmp_path)


def test_a_pipe_named_like_an_image_is_not_read(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(image_folder / "red" / "pipe.png")
    assert len(scan_folder(image_folder)) == 24
    assert warnings(caplog) == ["ignored 1 files that are not images: 1 .png"]


def test_a_folder_without_permission(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: str | Path):  # the tests may run as root, who may list everything
        if str(path).endswith("green"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", guarded)
    with pytest.raises(UserError, match=r"cannot list the folder .*green: Permission denied"):
        scan_folder(image_folder)


def test_names_in_any_script_and_form(tmp_path: Path) -> None:
    cafe = unicodedata.normalize("NFD", "café")
    fill(tmp_path, f"{cafe}/0.png", "кошка/0.png", "猫/ねこ 1.png", "10/a.png", "2/a.png")
    raw = os.fsencode(tmp_path / "2") + b"/\xff\xfe.png"
    open(raw, "wb").close()
    records = scan_folder(tmp_path)
    assert [r.label for r in records] == ["2", "2", "10", "café", "кошка", "猫"]
    assert all((tmp_path / r.path).is_file() for r in records)  # as the file system spells them
    assert records[1].path.encode(errors="surrogateescape") == b"2/\xff\xfe.png"


def test_two_class_names_that_look_the_same(tmp_path: Path) -> None:
    fill(tmp_path, "red/0.png", *(unicodedata.normalize(f, "café/0.png") for f in ("NFC", "NFD")))
    with pytest.raises(UserError, match=r"looks the same \('caf\\xe9' and 'cafe\\u0301'"):
        scan_folder(tmp_path)


def test_a_class_name_that_is_no_utf8(image_folder: Path) -> None:
    os.mkdir(os.fsencode(image_folder) + b"/\xff")
    with pytest.raises(UserError, match="the class folder '.*udcff' is not UTF-8"):
        scan_folder(image_folder)


# Folders that come split


def test_split_folders_are_taken_as_they_are(split_folder: Path) -> None:
    records = scan_folder(split_folder)
    assert Counter((r.split, r.label) for r in records) == {
        (split, name): size
        for split, size in {"train": 6, "val": 2, "test": 2}.items()
        for name in CLASSES
    }
    folders = {"train": "Train", "val": "Valid", "test": "TEST"}
    assert all(r.path.startswith(f"{folders[r.split]}/{r.label}/") for r in records)


@pytest.mark.parametrize(
    "name", ["val", "valid", "validation", "Validation", "validation_set", "val2017", "Val Data"]
)
def test_names_of_val(split_folder: Path, name: str) -> None:
    (split_folder / "Valid").rename(split_folder / name)
    assert sum(record.split == "val" for record in scan_folder(split_folder)) == 6


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("training_set", "test_set"), ("train1", None)]
)
def test_names_of_train_and_test(split_folder: Path, train: str, test: str | None) -> None:
    (split_folder / "Train").rename(split_folder / train)
    (split_folder / "TEST").rename(split_folder / (test or "TEST"))
    if test is None:  # a class, perhaps of trains
        assert "train1" in {record.label for record in scan_folder(split_folder)}
    else:
        assert Counter(r.split for r in scan_folder(split_folder)) == {
            "train": 18, "val": 6, "test": 6,
        }  # fmt: skip


def test_folders_that_may_be_splits_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, *(f"{a}/{b}/{i}.png" for a in ("old", "new") for b in CLASSES for i in (1, 2)))
    scan_folder(tmp_path)
    (said,) = warnings(caplog)
    assert "the classes are taken to be new, old. Each of them has the folders blue, gr" in said
    caplog.clear()
    fill(tmp_path, "old/0.png")  # a class with folders in it
    scan_folder(tmp_path)
    assert not warnings(caplog)


def test_folders_called_like_splits_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "seg_train/seg_train/red/0.png", "pred/0.png", "bullet train/0.png")
    scan_folder(tmp_path)
    assert not warnings(caplog)
    fill(tmp_path, "seg_test/seg_test/red/0.png", *(f"{number}/0.png" for number in range(9)))
    scan_folder(tmp_path)
    (said,) = warnings(caplog)
    assert "taken to be 0, 1, 2, 3, 4, 5, 6, 7, 8, bullet train and 3 more. If those are" in said


def test_two_folders_that_mean_val(split_folder: Path) -> None:
    shutil.copytree(split_folder / "Valid", split_folder / "val")
    with pytest.raises(UserError, match="has Valid and val, which both mean val: put them"):
        scan_folder(split_folder)


def test_a_test_folder_without_class_folders(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "TEST")
    fill(split_folder, "TEST/0.png")
    with pytest.raises(UserError, match=r"no images in class folders in .*TEST"):
        scan_folder(split_folder)


def test_val_and_test_without_train(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "Train")
    with pytest.raises(UserError, match="has only TEST and Valid, no folder per class"):
        scan_folder(split_folder)


def test_train_alone(split_folder: Path) -> None:
    for name in ("Valid", "TEST"):
        shutil.rmtree(split_folder / name)
    with pytest.raises(UserError, match=r"set data\.root=.*split/Train"):
        scan_folder(split_folder)


# Bad input


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images in .* \(data\.root\)"):
        scan_folder(tmp_path)
    fill(tmp_path, "loose.png")
    with pytest.raises(UserError, match="takes a folder per class"):
        scan_folder(tmp_path)


def test_an_empty_class_folder(image_folder: Path) -> None:
    fill(image_folder, "violet/notes.txt")
    with pytest.raises(UserError, match=r"the class folder .*violet has no image"):
        scan_folder(image_folder)
