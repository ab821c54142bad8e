import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tlx import split
from tlx.data.manifest import Manifest


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        split.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_copies_every_image_once(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "split"
    split.main([f"source={image_folder}", f"output={output}", "val=0.25", "test=0.125"])
    assert "3 classes; images: 15 train, 6 validation, 3 test" in capsys.readouterr().out
    written = files(output)
    assert written.pop(written.index("manifest.csv"))
    counts = Counter(tuple(name.split("/")[:2]) for name in written)
    assert counts == {
        (part, colour): n
        for part, n in (("train", 5), ("validation", 2), ("test", 1))
        for colour in ("blue", "green", "red")
    }
    for name in written:
        _, colour, file = name.split("/")
        assert (output / name).read_bytes() == (image_folder / colour / file).read_bytes()
    assert sorted(name.partition("/")[2] for name in written) == files(image_folder)
    manifest = Manifest.read(output / "manifest.csv", output)
    assert sorted(sample.path for sample in manifest.samples) == written
    assert {(s.split, s.path.split("/")[0]) for s in manifest.samples} == {
        ("train", "train"), ("val", "validation"), ("test", "test")
    }  # fmt: skip
    assert os.listdir(output.parent) == ["split"]


@pytest.mark.parametrize("mode", ["hardlink", "symlink"])
def test_links(image_folder: Path, tmp_path: Path, mode: str) -> None:
    output = tmp_path / "split"
    output.mkdir()  # an empty folder serves
    split.main([f"source={image_folder}", f"output={output}", f"mode={mode}"])
    pictures = [output / name for name in files(output) if name.endswith(".png")]
    assert len(pictures) == 24
    for picture in pictures:
        assert picture.samefile(image_folder / picture.parent.name / picture.name)
        assert picture.is_symlink() == (mode == "symlink")


def test_the_manifest_alone_names_the_source(image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "split"
    split.main([f"source={image_folder}", f"output={output}", "mode=manifest", "seed=3"])
    assert files(output) == ["manifest.csv"]
    manifest = Manifest.read(output / "manifest.csv", image_folder)
    assert sorted(sample.path for sample in manifest.samples) == files(image_folder)


def test_the_copy_trains_with_the_same_splits(image_folder: Path, tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    split.main([f"source={image_folder}", f"output={once}", "group=([0-7])\\.png"])
    split.main([f"source={once}", f"output={again}"])
    assert files(once) == files(again)
    by_number = {(Path(name).stem, name.split("/")[0]) for name in files(once) if "/" in name}
    assert len(by_number) == 8  # a number is a group, and in one split only


def test_an_archive(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "photographs.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in files(image_folder):
            packed.write(image_folder / name, name)
    output = tmp_path / "split"
    assert "take mode=copy" in refused(
        capsys, f"source={archive}", f"output={output}", "mode=symlink"
    )
    split.main([f"source={archive}", f"output={output}"])
    assert len(files(output)) == 25


def test_places_that_are_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    source = f"source={image_folder}"
    assert "output is not given" in refused(capsys, source)
    assert "source is not given" in refused(capsys, "output=x")
    assert "exists already" in refused(capsys, source, f"output={image_folder}")
    assert "lies in the source" in refused(capsys, source, f"output={image_folder / 'new'}")
    assert "Valid: copy, hardlink" in refused(capsys, source, "output=x", "mode=move")
    assert "data.val='half'" in refused(capsys, source, f"output={tmp_path / 'x'}", "val=half")
    assert "no such folder" in refused(capsys, "source=/nowhere", f"output={tmp_path / 'x'}")
    assert "unknown key 'vall'" in refused(capsys, source, f"output={tmp_path / 'x'}", "vall=0.1")
    assert files(tmp_path) == before


def test_two_images_of_one_name(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):  # the same names a folder deeper: some pair meets in a split
        (image_folder / "red" / "more").mkdir(exist_ok=True)
        data = (image_folder / "red" / f"{number}.png").read_bytes()
        (image_folder / "red" / "more" / f"{number}.png").write_bytes(data)
    output = tmp_path / "split"
    assert "would both become" in refused(capsys, f"source={image_folder}", f"output={output}")
    assert not output.exists()


def test_test_images_without_labels_lie_in_the_test_folder(
    image_folder: Path, tmp_path: Path
) -> None:
    table = image_folder / "t.csv"
    table.write_text("path,label,split\nred/0.png,red,train\nred/1.png,red,val\n"
        "blue/0.png,blue,train\nblue/1.png,blue,val\nblue/2.png,,test\n")  # fmt: skip
    split.main(["data=csv", f"data.table={table}", f"output={tmp_path / 'split'}"])
    assert (tmp_path / "split/test/2.png").is_file()
    assert "\ntest/2.png,,test," in (tmp_path / "split/manifest.csv").read_text()


def test_nothing_is_left_when_writing_fails(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(source: Path, place: Path) -> None:
        place.write_bytes(b"")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(split.PUT, "copy", full)
    error = refused(capsys, f"source={image_folder}", f"output={tmp_path / 'split'}")
    assert "No space left on device" in error
    assert os.listdir(tmp_path) == [image_folder.name]
