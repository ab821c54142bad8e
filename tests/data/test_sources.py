import hashlib
import logging
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tlx.composition import compose
from tlx.config import parse
from tlx.data.images import Decoding
from tlx.data.manifest import Manifest
from tlx.data.scan import Scanned
from tlx.data.sources import build_manifest, data_root, find_images
from tlx.errors import UserError
from tlx.specs import DataSpec

CLASSES = ("blue", "green", "red")
WriteImage = Callable[..., Path]


@cache
def defaults(source: str) -> DataSpec:
    return parse(compose([f"data={source}", "data.root=."])).data


def spec(root: Path | None, source: str = "folder", **settings: Any) -> DataSpec:
    """The settings of data=SOURCE, but unreadable images are skipped and only copies grouped."""
    plain = {"on_error": "skip", "keep_together": "none", "val": 0.2, "test": 0.2, **settings}
    return replace(defaults(source), root=None if root is None else str(root), **plain)


def build(root: Path | None, source: str = "folder", *, seed: int = 0, **settings: Any) -> Manifest:
    return build_manifest(spec(root, source, **settings), seed=seed)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def counts(manifest: Manifest) -> Counter[tuple[str, str]]:
    return Counter((sample.split, sample.label) for sample in manifest.samples)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def split_folder(tmp_path: Path, write_image: WriteImage) -> Path:
    """Train, Valid and TEST with 6, 2 and 2 pictures of each class."""
    root = tmp_path / "split"
    for base, (part, size) in enumerate({"Train": 6, "Valid": 2, "TEST": 2}.items()):
        for index, name in enumerate(CLASSES):
            for number in range(size):
                seed = 100 * base + 10 * index + number
                write_image(root / part / name / f"{number}.png", seed=seed)
    return root


# Class folders


def test_class_folders_are_split(image_folder: Path) -> None:
    manifest = build(image_folder)
    assert manifest.root == image_folder
    assert manifest.classes == ("blue", "green", "red")
    # 24 images: 14.4, 4.8, 4.8, of which the largest remainders make 14, 5, 5
    sizes = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 14, "val": 5, "test": 5}
    assert {sample.path for sample in manifest.samples} == {
        f"{name}/{number}.png" for name in CLASSES for number in range(8)
    }
    for sample in manifest.samples:
        assert sample.label == sample.path.split("/")[0]
        data = (image_folder / sample.path).read_bytes()
        assert sample.sha256 == hashlib.sha256(data).hexdigest()
        assert sample.group == ""


def test_the_seed_and_nothing_else_draws_the_split(image_folder: Path, tmp_path: Path) -> None:
    first = build(image_folder, seed=1)
    moved = shutil.copytree(image_folder, tmp_path / "elsewhere")
    assert build(moved, seed=1).samples == first.samples
    assert build(image_folder, seed=2).samples != first.samples


def test_numbered_classes_are_in_natural_order(tmp_path: Path, write_image: WriteImage) -> None:
    for number in (1, 2, 10):
        for i in range(3):
            write_image(tmp_path / str(number) / f"{i}.png", seed=number * 10 + i)
    assert build(tmp_path).classes == ("1", "2", "10")


@pytest.mark.parametrize("trial", range(8))
def test_random_folders(tmp_path: Path, trial: int, write_image: WriteImage) -> None:
    draw = random.Random(trial)
    sizes = {f"class {i}": draw.randint(3, 12) for i in draw.sample(range(20), draw.randint(2, 4))}
    for name, size in sizes.items():
        for _ in range(size):
            write_image(tmp_path / name / f"{draw.random()}.png", seed=draw.getrandbits(32))
    manifest = build(tmp_path, seed=trial)
    table = counts(manifest)
    for name, size in sizes.items():
        assert sum(table[split, name] for split in ("train", "val", "test")) == size
        assert all(table[split, name] >= 1 for split in ("train", "val", "test"))
    assert manifest.classes == tuple(sorted(sizes, key=lambda name: int(name.split()[1])))
    assert len({sample.path for sample in manifest.samples}) == sum(sizes.values())


# Folders that come split


def test_without_val_it_comes_out_of_train(
    split_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(split_folder / "Valid")
    manifest = build(split_folder, val=0.5)
    assert counts(manifest) == {
        (split, name): size
        for split, size in {"train": 3, "val": 3, "test": 2}.items()
        for name in CLASSES
    }
    assert all(sample.path.startswith("Train/") for sample in manifest.split("val"))
    assert "there is no val split: val is 0.5 of the train images" in caplog.text


def test_without_test_there_is_none(split_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(split_folder / "TEST")
    manifest = build(split_folder)
    assert (len(manifest.split("train")), len(manifest.split("test"))) == (18, 0)
    assert "there is no test split" in caplog.text


@pytest.mark.parametrize("empty", [True, False])
def test_a_class_missing_from_val(
    split_folder: Path, empty: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(split_folder / "Valid" / "blue")
    if empty:
        (split_folder / "Valid" / "blue").mkdir()
    manifest = build(split_folder)
    assert manifest.classes == ("blue", "green", "red")
    assert {sample.label for sample in manifest.split("val")} == {"green", "red"}
    assert "val has no image of the class 'blue'" in caplog.text


@pytest.mark.parametrize("part", ["Valid", "TEST"])
def test_a_class_that_train_does_not_have(
    split_folder: Path, part: str, write_image: WriteImage
) -> None:
    write_image(split_folder / part / "violet" / "0.png")
    name = {"Valid": "val", "TEST": "test"}[part]
    with pytest.raises(UserError, match=f"{name} has the class 'violet', which train does not"):
        build(split_folder)


# Bad input


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder: .*gone \(data\.root\)"):
        build(tmp_path / "gone")
    with pytest.raises(UserError, match=r"set data\.root=DIR"):
        build(None)


def test_a_file_instead_of_a_folder(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is a file"):
        build(path)


def test_one_class_only(image_folder: Path) -> None:
    for name in ("blue", "green"):
        shutil.rmtree(image_folder / name)
    with pytest.raises(UserError, match=r"one class only \('red'\)"):
        build(image_folder)


def test_a_class_folder_with_no_readable_image(image_folder: Path) -> None:
    for path in (image_folder / "red").iterdir():
        truncate(path)
    with pytest.raises(UserError, match="no image of the class 'red' in .* can be read"):
        build(image_folder)


def test_fewer_images_than_splits(image_folder: Path) -> None:
    for number in range(2, 8):
        (image_folder / "red" / f"{number}.png").unlink()
    with pytest.raises(UserError, match="'red' has 2 images, fewer than the 3 splits"):
        build(image_folder)


def test_a_truncated_image_is_skipped_by_name(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(image_folder / "red" / "3.png")
    manifest = build(image_folder, on_error="skip")
    assert len(manifest.samples) == 23
    assert "red/3.png" not in {sample.path for sample in manifest.samples}
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert str(image_folder / "red" / "3.png") in warning.getMessage()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_truncated_images_are_fatal(image_folder: Path) -> None:
    for name in ("blue", "red"):
        for number in range(6):
            truncate(image_folder / name / f"{number}.png")
    with pytest.raises(UserError, match="12 of 24 images cannot be read") as caught:
        build(image_folder, on_error="error")
    message = str(caught.value)
    assert message.count(".png") == 10
    assert str(image_folder / "blue" / "0.png") in message
    assert "and 2 more" in message
    assert "data.on_error=skip" in message


def test_a_link_to_nowhere_is_unreadable(image_folder: Path) -> None:
    (image_folder / "red" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(
        UserError, match=r"1 of 25 images cannot be read:\n.*red/gone\.png: No such"
    ):
        build(image_folder, on_error="error")


def test_settings_that_name_nothing(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.val=2\.0 is not a fraction"):
        build(image_folder, val=2.0)
    with pytest.raises(UserError, match=r"set data\.table=FILE"):
        build(None, "csv")
    with pytest.raises(UserError, match=r"no such file: .*gone\.csv \(data\.table\)"):
        build(None, "csv", table=str(image_folder / "gone.csv"))
    with pytest.raises(UserError, match=r"set data\.name"):
        build(None, "torchvision")
    with pytest.raises(UserError, match=r"labels\.csv in"):
        build(image_folder, "elpv")


# Leaving out, keeping together, leaks


def test_exclude(image_folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "out.txt"
    listed.write_text(f"\ufeffred/0.png\n\nred\\1.png\n{image_folder}/blue/7.png\n", "utf-8")
    left = {s.path for s in build(image_folder).samples} - {
        s.path for s in build(image_folder, exclude=str(listed)).samples
    }
    assert left == {"red/0.png", "red/1.png", "blue/7.png"}
    listed.write_text("red/0.png\nred/44.png\n")
    with pytest.raises(
        UserError, match=r"out\.txt, line 2: no image red/44\.png .*Did you mean red/4"
    ):
        build(image_folder, exclude=str(listed))
    with pytest.raises(UserError, match=r"cannot read .*gone\.txt: No such file"):
        build(image_folder, exclude=str(tmp_path / "gone.txt"))


def test_a_group_is_in_one_split(image_folder: Path) -> None:
    manifest = build(image_folder, group=r"/([0-3])\.png|/(4)")
    splits = {group: set() for group in ("0", "1", "2", "3", "")}
    for sample in manifest.samples:
        splits[sample.group].add(sample.split)
        assert sample.group == (number if (number := Path(sample.path).stem) in "0123" else "")
    assert all(len(splits[group]) == 1 for group in "0123")


def test_copies_are_in_one_split(image_folder: Path) -> None:
    for number in range(8):
        shutil.copy(image_folder / f"red/{number}.png", image_folder / f"red/copy {number}.png")
    manifest = build(image_folder, keep_together="exact")
    split = {sample.path: sample.split for sample in manifest.samples}
    assert all(split[f"red/{n}.png"] == split[f"red/copy {n}.png"] for n in range(8))
    with pytest.raises(UserError, match=r"images or groups are in two splits"):
        build(image_folder, keep_together="none")
    warned = build(image_folder, keep_together="none", on_leak="warn")
    apart = {sample.path: sample.split for sample in warned.samples}
    assert any(apart[f"red/{n}.png"] != apart[f"red/copy {n}.png"] for n in range(8))


@pytest.fixture
def leaking_folder(split_folder: Path) -> Path:
    shutil.copy(split_folder / "TEST/red/0.png", split_folder / "Train/red/copy.png")
    return split_folder


def test_a_leak_is_an_error_by_default(leaking_folder: Path) -> None:
    assert defaults("folder").on_leak == "error"
    with pytest.raises(UserError, match=r"Train/red/copy\.png \(train\)"):
        build(leaking_folder)


def test_a_leak_is_regrouped_or_warned_of(
    leaking_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    regrouped = counts(build(leaking_folder, on_leak="regroup"))
    assert (regrouped["train", "red"], regrouped["test", "red"]) == (6, 3)
    caplog.clear()
    warned = counts(build(leaking_folder, on_leak="warn"))
    assert (warned["train", "red"], warned["test", "red"]) == (7, 2)
    (warning,) = warnings(caplog)
    assert warning.startswith("1 images or groups are in two splits:\n")


def test_a_test_folder_that_is_the_train_folder(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "TEST")
    shutil.copytree(split_folder / "Train", split_folder / "TEST")
    with pytest.raises(UserError, match="18 images or groups are in two splits") as caught:
        build(split_folder)
    assert "and 8 more" in str(caught.value)
    with pytest.raises(
        UserError, match="are for (val and test|test and val): there is none to train on"
    ):
        build(split_folder, on_leak="regroup")


def test_val_out_of_train_keeps_copies_together(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "Valid")
    for number in range(6):
        source = split_folder / f"Train/red/{number}.png"
        shutil.copy(source, source.with_name(f"copy {number}.png"))
    manifest = build(split_folder, val=0.5, keep_together="exact")
    split = {sample.path: sample.split for sample in manifest.samples}
    assert all(split[f"Train/red/{n}.png"] == split[f"Train/red/copy {n}.png"] for n in range(6))
    assert len(manifest.split("test")) == 6


def test_a_near_copy_in_a_test_folder_stops_nothing(split_folder: Path) -> None:
    """Only exact ones do, whether val comes too or is drawn."""
    shutil.rmtree(split_folder / "Valid")
    picture = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
    large = Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC)
    large.save(split_folder / "Train/red/large.png")
    large.resize((48, 48)).save(split_folder / "TEST/red/small.png")
    manifest = build(split_folder, val=0.5, keep_together="near")
    assert manifest.split("test")[-1].path == "TEST/red/small.png"


def test_folds_of_a_folder_that_comes_split(split_folder: Path) -> None:
    folds = [build(split_folder, folds=4, fold=fold) for fold in range(4)]
    assert {fold.split("test") for fold in folds} == {folds[0].split("test")}
    held = [sample.path for fold in folds for sample in fold.split("val")]
    assert sorted(held) == sorted(s.path for s in folds[0].samples if "TEST" not in s.path)


def test_few_shot(image_folder: Path) -> None:
    whole, few = build(image_folder), build(image_folder, per_class=2)
    assert set(few.split("train")) < set(whole.split("train"))
    assert Counter(sample.label for sample in few.split("train")) == dict.fromkeys(CLASSES, 2)
    assert (few.split("val"), few.split("test")) == (whole.split("val"), whole.split("test"))


# Tables, archives and torchvision's sets


def test_a_table_beside_its_images(image_folder: Path) -> None:
    rows = [f"{name}\\{i}.png;{name};{i};{i / 4}\n" for name in CLASSES for i in range(8)]
    table = image_folder / "photos.csv"
    table.write_text("file;label;burst;weight\n" + "".join(rows))
    settings = {"table": str(table), "columns": {"path": "file", "group": "burst"}}
    manifest = build(None, "csv", **settings)
    assert manifest.root == image_folder
    assert [(s.group, s.weight) for s in manifest.samples] == [
        (str(i), i / 4) for _ in CLASSES for i in range(8)
    ]
    for burst in map(str, range(8)):
        assert len({s.split for s in manifest.samples if s.group == burst}) == 1
    assert build(image_folder, "csv", **settings) == manifest


def test_a_table_that_comes_split(image_folder: Path, tmp_path: Path) -> None:
    splits = ["train"] * 5 + ["valid", "Test", "Test"]
    rows = [f"{n}/{i}.png,{n},{splits[i]}\n" for n in CLASSES for i in range(8)]
    table = tmp_path / "photos.csv"
    table.write_text("path,label,split\n" + "".join(rows))
    found = counts(build(image_folder, "csv", table=str(table)))
    assert found == {(s, n): k for n in CLASSES for s, k in (("train", 5), ("val", 1), ("test", 2))}
    table.write_text("path,label,split\nred/0.png,red,test\nblue/0.png,blue,val\n")
    with pytest.raises(
        UserError, match="are for (val and test|test and val): there is none to train on"
    ):
        build(image_folder, "csv", table=str(table))


def test_a_label_that_occurs_once(image_folder: Path) -> None:
    table = image_folder / "photos.csv"
    rows = [f"{n}/{i}.png,{n}\n" for n in ("red", "blue") for i in range(8)]
    table.write_text("path,label\ngreen/0.png,moss\n" + "".join(rows))
    with pytest.raises(UserError, match="'moss' has 1 image, fewer than the 3 splits"):
        build(None, "csv", table=str(table))


def test_an_archive_is_as_its_folder(image_folder: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photographs"))
    manifest = build(archive)
    assert manifest.samples == build(image_folder).samples
    assert manifest.root == data_root(spec(archive))
    table = tmp_path / "photos.csv"  # names the images as the archive does
    names = [name for name in zipfile.ZipFile(archive).namelist() if name.endswith(".png")]
    table.write_text("path,label\n" + "".join(f"{n},{n.split('/')[1]}\n" for n in names))
    assert build(archive, "csv", table=str(table)) == manifest


def test_a_set_of_torchvision(image_folder: Path) -> None:
    shutil.copytree(image_folder, image_folder / "eurosat" / "2750", ignore=lambda *_: ["eurosat"])
    manifest = build(image_folder, "torchvision", name="EuroSAT")
    assert manifest.root == image_folder
    assert {s.path.removeprefix("eurosat/2750/") for s in manifest.samples} == {
        f"{name}/{number}.png" for name in CLASSES for number in range(8)
    }
    assert sorted(len(manifest.split(name)) for name in ("train", "val", "test")) == [5, 5, 14]
    assert defaults("torchvision").on_leak == "warn"


# Images to predict


def test_find_images(image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (image_folder / "red" / "new.HEIC").touch()
    truncate(image_folder / "red" / "3.png")
    root, paths = find_images(image_folder, "skip", Decoding())
    assert root == image_folder
    assert len(paths) == 23
    assert image_folder / "red" / "3.png" not in paths
    assert "ignored 1 files that are not images: 1 .heic" in caplog.text
    assert find_images(paths[0], "error", Decoding()) == (paths[0].parent, [paths[0]])
    with pytest.raises(UserError, match=r"1 of 24 images cannot be read"):
        find_images(image_folder, "error", Decoding())
    with pytest.raises(UserError, match="no such file or folder: .*gone"):
        find_images(tmp_path / "gone", "skip", Decoding())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in .*empty"):
        find_images(tmp_path / "empty", "skip", Decoding())


# ELPV


@pytest.fixture(scope="module")
def elpv() -> dict[int, Manifest]:
    """Manifests for two seeds, without the seconds that decoding the images takes."""
    pytest.importorskip("elpv_dataset")
    found = Scanned("", 300, 300, "0" * 16, 0.0, 0.0, True, b"")

    def unread(root: Path, paths: list[str], decode: object) -> dict[str, Scanned]:
        return {path: replace(found, sha256=path) for path in paths}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlx.data.sources.scan", unread)
        return {seed: build(None, "elpv", test=0.25, seed=seed) for seed in (0, 1)}


@pytest.mark.slow
def test_elpv_images_can_all_be_read(elpv: dict[int, Manifest]) -> None:
    manifest = build(None, "elpv", test=0.25, seed=1, on_error="error")
    assert [(s.path, s.label, s.split, s.soft) for s in manifest.samples] == [
        (s.path, s.label, s.split, s.soft) for s in elpv[1].samples
    ]
    assert {(s.width, s.height) for s in manifest.samples} == {(300, 300)}


def test_elpv_labels(elpv: dict[int, Manifest]) -> None:
    manifest = elpv[0]
    assert manifest.classes == ("defective", "functional")
    expected = {}
    for line in (manifest.root / "labels.csv").read_text().splitlines():
        path, probability, _ = line.split()
        expected[path] = "functional" if probability.startswith(("0.0", "0.33")) else "defective"
    assert {sample.path: sample.label for sample in manifest.samples} == expected
    assert Counter(expected.values()) == {"functional": 1803, "defective": 821}


def test_elpv_test_is_a_quarter_of_every_stratum(elpv: dict[int, Manifest]) -> None:
    manifest = elpv[0]
    rows = (manifest.root / "labels.csv").read_text().splitlines()
    cell = {path: kind for path, _, kind in map(str.split, rows)}
    strata = Counter((sample.label, cell[sample.path]) for sample in manifest.split("test"))
    # a quarter of 369, 452, 705 and 1098 is 92.25, 113, 176.25 and 274.5: 655 and the largest
    # remainder, which makes 656
    assert strata == {
        ("defective", "mono"): 92,
        ("defective", "poly"): 113,
        ("functional", "mono"): 176,
        ("functional", "poly"): 275,
    }
    sizes = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 1443, "val": 525, "test": 656}  # val: 2624 × 0.2 = 524.8


def test_elpv_test_is_the_same_for_every_seed_and_val_is_not(elpv: dict[int, Manifest]) -> None:
    assert elpv[0].split("test") == elpv[1].split("test")
    assert elpv[0].split("val") != elpv[1].split("val")


def test_elpv_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.data.sources.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the elpv-dataset package: pip install elpv-dataset"
    ):
        build(None, "elpv")
