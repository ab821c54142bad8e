import hashlib
import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ImageFile

from tlx.data.manifest import Manifest
from tlx.data.sources import build_manifest
from tlx.errors import UserError

CLASSES = ("blue", "green", "red")
WriteImage = Callable[..., Path]


def build(
    root: Path | None,
    source: str = "folder",
    *,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    on_error: str = "skip",
) -> Manifest:
    return build_manifest(source, root=root, val=val, test=test, seed=seed, on_error=on_error)


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


def test_tools_and_other_files_are_no_classes(
    image_folder: Path, caplog: pytest.LogCaptureFixture, write_image: WriteImage
) -> None:
    expected = build(image_folder)
    for folder in (".ipynb_checkpoints", "__MACOSX", ".git", "red/.ipynb_checkpoints"):
        write_image(image_folder / folder / "0.png")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "red/Thumbs.db", "blue/._0.png"):
        (image_folder / name).write_bytes(b"x")
    caplog.clear()
    assert build(image_folder) == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for name in ("readme.txt", "red/notes.TXT", "blue/phone.heic"):
        (image_folder / name).write_bytes(b"x")
    assert build(image_folder) == expected
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage() == "ignored 3 files that are not images: 2 .txt, 1 .heic"


def test_images_below_a_class_folder_and_beside_it(
    image_folder: Path, caplog: pytest.LogCaptureFixture, write_image: WriteImage
) -> None:
    write_image(image_folder / "red" / "camera 2" / "day 1" / "0.PNG")
    write_image(image_folder / "loose.png")
    (image_folder / "red" / "camera 2" / "back").symlink_to(image_folder / "red")  # a loop
    manifest = build(image_folder)
    assert len(manifest.samples) == 25
    assert "red/camera 2/day 1/0.PNG" in {s.path for s in manifest.samples if s.label == "red"}
    assert "ignored 1 images in" in caplog.text


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


def test_split_folders_are_taken_as_they_are(split_folder: Path) -> None:
    manifest = build(split_folder)
    assert manifest.classes == ("blue", "green", "red")
    assert counts(manifest) == {
        (split, name): size
        for split, size in {"train": 6, "val": 2, "test": 2}.items()
        for name in CLASSES
    }
    for sample in manifest.samples:
        folder, label, _ = sample.path.split("/")
        assert (sample.split, sample.label) == (
            {"Train": "train", "Valid": "val", "TEST": "test"}[folder],
            label,
        )


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_names_of_val(split_folder: Path, name: str) -> None:
    (split_folder / "Valid").rename(split_folder / name)
    assert len(build(split_folder).split("val")) == 6


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
    assert "there is no val folder: val is 0.5 of the train images" in caplog.text


def test_without_test_there_is_none(split_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(split_folder / "TEST")
    manifest = build(split_folder)
    assert (len(manifest.split("train")), len(manifest.split("test"))) == (18, 0)
    assert "there is no test folder" in caplog.text


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


def test_a_copied_test_image_is_said_aloud(
    split_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(split_folder / "Train/red/0.png", split_folder / "TEST/red/copy.png")
    build(split_folder)
    assert "1 images are byte for byte the same in two splits" in caplog.text


def test_two_folders_that_mean_val(split_folder: Path) -> None:
    shutil.copytree(split_folder / "Valid", split_folder / "val")
    with pytest.raises(UserError, match="has Valid and val, which both mean val: keep one"):
        build(split_folder)


def test_a_test_folder_without_class_folders(split_folder: Path, write_image: WriteImage) -> None:
    shutil.rmtree(split_folder / "TEST")
    write_image(split_folder / "TEST" / "0.png")
    with pytest.raises(UserError, match=r"no images in class folders in .*TEST"):
        build(split_folder)


def test_val_and_test_without_train(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "Train")
    with pytest.raises(UserError, match="has only TEST and Valid, no folder per class"):
        build(split_folder)


def test_train_alone(split_folder: Path) -> None:
    for name in ("Valid", "TEST"):
        shutil.rmtree(split_folder / name)
    with pytest.raises(UserError, match=r"set data\.root=.*split/Train"):
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


def test_no_images(tmp_path: Path, write_image: WriteImage) -> None:
    with pytest.raises(UserError, match=r"no images in .* \(data\.root\)"):
        build(tmp_path)
    write_image(tmp_path / "loose.png")
    with pytest.raises(UserError, match="takes a folder per class"):
        build(tmp_path)


def test_one_class_only(image_folder: Path) -> None:
    for name in ("blue", "green"):
        shutil.rmtree(image_folder / name)
    with pytest.raises(UserError, match=r"one class only \('red'\)"):
        build(image_folder)


def test_an_empty_class_folder(image_folder: Path) -> None:
    (image_folder / "violet").mkdir()
    (image_folder / "violet" / "notes.txt").write_text("to do")
    with pytest.raises(UserError, match=r"the class folder .*violet has no image"):
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


def test_settings_are_checked_before_images_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data\.on_error 'skp'.*Valid: skip, error"):
        build(tmp_path, on_error="skp")
    with pytest.raises(UserError, match=r"unknown data 'folders'.*Valid: folder, elpv"):
        build(tmp_path, "folders")
    with pytest.raises(UserError, match=r"data\.val=2 is not a fraction"):
        build(tmp_path, val=2)


# ELPV


@pytest.fixture(scope="module")
def elpv() -> dict[int, Manifest]:
    """Manifests for two seeds, without the seconds that decoding the images takes."""
    pytest.importorskip("elpv_dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlx.data.sources.decode_rgb", lambda data, path: None)
        return {seed: build(None, "elpv", test=0.25, seed=seed) for seed in (0, 1)}


@pytest.mark.slow
def test_elpv_images_can_all_be_read(elpv: dict[int, Manifest]) -> None:
    assert build(None, "elpv", test=0.25, seed=1, on_error="error") == elpv[1]


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


def test_elpv_table_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no labels\.csv in"):
        build(tmp_path, "elpv")
    (tmp_path / "labels.csv").write_text("images/a.png 1.0 mono\nimages/b.png,0.0,poly\n")
    with pytest.raises(UserError, match=r"labels\.csv, line 2: 'images/b\.png,0\.0,poly'"):
        build(tmp_path, "elpv")


def test_elpv_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlx.data.sources.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the elpv-dataset package: pip install 'tlx\[demo\]'"
    ):
        build(None, "elpv")
