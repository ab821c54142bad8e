"""torchvision's real classes over tiny folders in their documented layouts, not downloaded."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from tlx.data import torchvision_sets
from tlx.data.manifest import Record
from tlx.data.torchvision_sets import ARRAYS, FILES, images_root, read_torchvision
from tlx.errors import UserError
from tlx.files import cache_dir


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rows(records: list[Record]) -> set[tuple[str, str, str]]:
    return {(record.path, record.label, record.split) for record in records}


def test_every_name_is_a_class_of_torchvision() -> None:
    assert len(FILES) + len(ARRAYS) == 25
    for name in {**FILES, **ARRAYS}:
        assert issubclass(getattr(datasets, name), datasets.VisionDataset)


# Sets of image files


def pets(root: Path) -> set[tuple[str, str, str]]:
    base = root / "oxford-iiit-pet"
    names = {"train": ["Abyssinian_1", "great_pyrenees_2"], "test": ["Abyssinian_3"]}
    for name, own in (("trainval", "train"), ("test", "test")):
        lines = [f"{n} {1 if n[0] == 'A' else 2} 1 1\n" for n in names[own]]
        write(base / "annotations" / f"{name}.txt", "".join(lines))
        touch(base, *(f"images/{n}.jpg" for n in names[own]))
    at = "oxford-iiit-pet/images"
    return {
        (f"{at}/Abyssinian_1.jpg", "Abyssinian", "train"),
        (f"{at}/great_pyrenees_2.jpg", "Great Pyrenees", "train"),
        (f"{at}/Abyssinian_3.jpg", "Abyssinian", "test"),
    }


def food(root: Path) -> set[tuple[str, str, str]]:
    for split, number in (("train", 1), ("test", 2)):
        found = {name: [f"{name}/{number}"] for name in ("pizza", "apple_pie")}
        write(root / f"food-101/meta/{split}.json", json.dumps(found))
        touch(root, *(f"food-101/images/{paths[0]}.jpg" for paths in found.values()))
    return {
        (f"food-101/images/{name}/{number}.jpg", name, split)
        for name in ("pizza", "apple_pie")
        for split, number in (("train", 1), ("test", 2))
    }


def flowers(root: Path) -> set[tuple[str, str, str]]:
    from scipy.io import savemat

    base = root / "flowers-102"
    touch(base, *(f"jpg/image_{i:05d}.jpg" for i in range(1, 7)))
    savemat(base / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 2]]})
    savemat(base / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    splits = {1: "train", 2: "train", 3: "val", 4: "val", 5: "test", 6: "test"}
    return {
        (
            f"flowers-102/jpg/image_{i:05d}.jpg",
            ("pink primrose", "hard-leaved pocket orchid")[i % 2 == 0],
            split,
        )
        for i, split in splits.items()
    }


def eurosat(root: Path) -> set[tuple[str, str, str]]:
    paths = [f"eurosat/2750/{name}/{name}_1.jpg" for name in ("Forest", "River")]
    touch(root, *paths)
    return {(path, path.split("/")[2], "") for path in paths}


def textures(root: Path) -> set[tuple[str, str, str]]:
    found = set()
    for number, split in enumerate(("train", "val", "test")):
        paths = [f"{name}/{name}_{number}.jpg" for name in ("banded", "dotted")]
        write(root / f"dtd/dtd/labels/{split}1.txt", "\n".join(paths))
        touch(root / "dtd/dtd/images", *paths)
        found |= {(f"dtd/dtd/images/{path}", path.split("/")[0], split) for path in paths}
    return found


def signs(root: Path) -> set[tuple[str, str, str]]:
    base = "gtsrb/GTSRB"
    touch(root / base, "Training/00000/a.ppm", "Training/00001/b.ppm", "Final_Test/Images/c.ppm")
    write(root / "gtsrb/GT-final_test.csv", "Filename;Width;ClassId\nc.ppm;9;1\n")
    return {
        (f"{base}/Training/00000/a.ppm", "0", "train"),
        (f"{base}/Training/00001/b.ppm", "1", "train"),
        (f"{base}/Final_Test/Images/c.ppm", "1", "test"),
    }


def aircraft(root: Path) -> set[tuple[str, str, str]]:
    base = root / "fgvc-aircraft-2013b/data"
    write(base / "variants.txt", "707-320\nA380\n")
    for number, split in enumerate(("train", "val", "test")):
        write(base / f"images_variant_{split}.txt", f"{number} 707-320\n{number + 5} A380\n")
        touch(base, f"images/{number}.jpg", f"images/{number + 5}.jpg")
    at = "fgvc-aircraft-2013b/data/images"
    return {
        (f"{at}/{number + more}.jpg", name, split)
        for number, split in enumerate(("train", "val", "test"))
        for more, name in ((0, "707-320"), (5, "A380"))
    }


def caltech(root: Path) -> set[tuple[str, str, str]]:
    base = root / "caltech101/101_ObjectCategories"
    (base / "BACKGROUND_Google").mkdir(parents=True)
    for name in ("crab", "ant"):
        (base / name).mkdir()
        Image.new("RGB", (8, 8)).save(base / name / "image_0001.jpg")
    at = "caltech101/101_ObjectCategories"
    return {(f"{at}/{name}/image_0001.jpg", name, "") for name in ("crab", "ant")}


def imagenette(root: Path) -> set[tuple[str, str, str]]:
    found = set()
    for split, own in (("train", "train"), ("val", "test")):
        for wnid, name in (("n01440764", "tench"), ("n03394916", "French horn")):
            path = f"imagenette2/{split}/{wnid}/{split}.jpeg"
            touch(root, path)
            found.add((path, name, own))
    return found


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("OxfordIIITPet", pets),
        ("Food101", food),
        ("Flowers102", flowers),
        ("EuroSAT", eurosat),
        ("DTD", textures),
        ("GTSRB", signs),
        ("FGVCAircraft", aircraft),
        ("Caltech101", caltech),
        ("Imagenette", imagenette),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], set[tuple[str, str, str]]],
    own: bool,
) -> None:
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", {
        key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()
    })  # fmt: skip
    root = tmp_path if own else cache_dir() / "torchvision" / name
    expected = make(root)
    given = tmp_path if own else None
    assert rows(read_torchvision(name, given)) == expected
    folder = images_root(name, given)
    assert folder == root
    assert all((folder / path).is_file() for path, _, _ in expected)


# Sets in arrays


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """CIFAR-10's pickled batches with four images each; by split, (N, 32, 32, 3)."""
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    draw = np.random.default_rng(0)
    pictures = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = draw.integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1, 0, 1]}))
        pictures[name] = data.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["air/plane", "car"]}))
    test = pictures.pop("test_batch")
    return {"train": np.concatenate(list(pictures.values())), "test": test}


def test_arrays_become_files_once(
    tmp_path: Path, cifar: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_torchvision("CIFAR10", tmp_path)
    folder = images_root("CIFAR10", tmp_path)
    assert folder == cache_dir() / "torchvision" / "CIFAR10" / "images"
    assert Counter((r.split, r.label) for r in records) == {
        ("train", "air/plane"): 10,
        ("train", "car"): 10,
        ("test", "air/plane"): 2,
        ("test", "car"): 2,
    }
    for record in records:
        number = int(Path(record.path).stem)
        assert record.label == ("air/plane", "car")[number % 2]
        picture = np.asarray(Image.open(folder / record.path))
        np.testing.assert_array_equal(picture, cifar[record.split][number])
    monkeypatch.setattr(torchvision_sets, "_load", None)
    assert read_torchvision("CIFAR10", tmp_path) == records


def test_a_write_that_broke_off_leaves_nothing(
    tmp_path: Path, cifar: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda self, path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read_torchvision("CIFAR10", tmp_path)
    assert not images_root("CIFAR10", tmp_path).exists()
    assert len(read_torchvision("CIFAR10", tmp_path)) == 24


def test_digits_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.SVHN, "download", lambda self: None)
    for split in ("train", "test"):
        data = np.zeros((32, 32, 3, 2), np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": data, "y": [[10], [3]]})
    found = Counter((r.split, r.label) for r in read_torchvision("SVHN", tmp_path))
    assert found == {(split, label): 1 for split in ("train", "test") for label in "03"}


# What goes wrong


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"unknown data\.name 'CIFAR'\. Did you mean CIFAR10"):
        images_root("CIFAR", None)
    with pytest.raises(UserError, match=r"set data\.name, one of CIFAR10, .*USPS"):
        images_root(None, None)


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", unreachable)
    with pytest.raises(UserError) as caught:
        read_torchvision("OxfordIIITPet", tmp_path)
    message = str(caught.value)
    assert "data.name=OxfordIIITPet can be neither read nor downloaded" in message
    assert "Name or service not known" in message
    assert "torchvision.datasets.OxfordIIITPet(FOLDER, download=True, split='test')" in message
