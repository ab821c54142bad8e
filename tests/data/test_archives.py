import hashlib
import io
import multiprocessing
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tlx.data import archives
from tlx.data.archives import is_archive, unpacked
from tlx.errors import UserError
from tlx.files import cache_dir

KINDS = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.bz2": "bztar", "tar.xz": "xztar"}


def make_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def make_tar(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """Members as (name, type, link's target or content)."""
    with tarfile.open(path, "w") as file:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            file.addfile(info, io.BytesIO(content))
    return path


def below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(archive: Path) -> str:
    """What is said; nothing may be left, in the cache or beside it."""
    around = set(archive.parent.iterdir())
    with pytest.raises(UserError) as caught:
        unpacked(archive)
    left = [path for path in (cache_dir() / "archives").iterdir() if path.suffix != ".lock"]
    assert left == []
    assert set(archive.parent.iterdir()) == around
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", ["", "one", "one/two"])
def test_class_folders_come_back(image_folder: Path, tmp_path: Path, kind: str, top: str) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(image_folder, packed / top, dirs_exist_ok=True)
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), KINDS[kind], packed))
    assert is_archive(archive)
    folder = unpacked(archive)
    assert below(folder) == below(image_folder)
    assert folder.is_relative_to(cache_dir() / "archives")


def test_one_class_folder_is_not_stepped_into(tmp_path: Path) -> None:
    folder = unpacked(make_zip(tmp_path / "a.zip", ("cats/1.png", b"1"), ("__MACOSX/x", b"")))
    assert (folder / "cats" / "1.png").read_bytes() == b"1"


def test_a_readme_beside_the_only_folder_is_passed_by(tmp_path: Path) -> None:
    pets = (("PetImages/Cat/1.jpg", b"1"), ("PetImages/Dog/1.jpg", b"2"), ("readme[1].txt", b""))
    assert below(unpacked(make_zip(tmp_path / "a.zip", *pets))).keys() == {"Cat/1.jpg", "Dog/1.jpg"}
    folder = unpacked(make_zip(tmp_path / "b.zip", *pets, ("loose.JPG", b"3")))
    assert (folder / "loose.JPG").is_file()


def test_it_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(tmp_path / "a.zip", ("cats/1.png", b"1"))
    first = unpacked(archive)
    monkeypatch.setattr(archives, "_unpack", None)
    assert unpacked(shutil.copy(archive, tmp_path / "b.zip")) == first


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("cats/1.png", b"1"))
    partial = unpacked(archive).rename(cache_dir() / "archives" / "saved")
    left = cache_dir() / "archives" / f"{digest_of(archive)}.partial"
    partial.rename(left)
    (left / "cats" / "half.png").write_bytes(b"")
    assert below(unpacked(archive)) == {"cats/1.png": b"1"}
    assert not left.exists()


def digest_of(archive: Path) -> str:
    return hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_half_an_archive(image_folder: Path, tmp_path: Path, kind: str) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), KINDS[kind], image_folder))
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) - 9 if kind != "tar" else len(data) // 3])
    assert "Nothing was unpacked." in refused(archive)


def test_two_processes_at_once(tmp_path: Path) -> None:
    members = [(f"cats/{i}.png", bytes(1000)) for i in range(300)]
    archive = make_zip(tmp_path / "a.zip", *members)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.map(unpacked, [archive] * 4, chunksize=1)
    assert len(set(folders)) == 1
    assert below(folders[0]) == dict(members)


def test_backslashes_and_names_of_macos(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("xx\\c1.png", b"1"), ("caf\u00e9/2.png", b"2"))
    data = archive.read_bytes()  # the flag for UTF-8 taken away, as macOS packs
    info = zipfile.ZipFile(archive).infolist()[1]
    assert info.flag_bits & 0x800
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.index(mark, data.index(mark) + 1) + at
        flags = int.from_bytes(data[place : place + 2], "little") & ~0x800
        data = data[:place] + flags.to_bytes(2, "little") + data[place + 2 :]
    archive.write_bytes(data)
    assert below(unpacked(archive)) == {"xx/c1.png": b"1", "café/2.png": b"2"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/abs/x.png", "an absolute path is refused"),
        ("\\abs\\x.png", "an absolute path is refused"),
        ("C:\\x.png", "an absolute path is refused"),
        ("../x.png", r"a path with .. is refused"),
        ("a/../../x.png", r"a path with .. is refused"),
        ("a\\..\\..\\x.png", r"a path with .. is refused"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_out(tmp_path: Path, name: str, reason: str, kind: str) -> None:
    if kind == "zip":
        archive = make_zip(tmp_path / "a.zip", ("cats/1.png", b"1"), (name, b"x"))
    else:
        members = [("cats/1.png", tarfile.REGTYPE, b"1"), (name, tarfile.REGTYPE, b"x")]
        archive = make_tar(tmp_path / "a.tar", *members)
    message = refused(archive)
    assert f"{archive}: {reason} at {name!r}. Nothing was unpacked." == message


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes, what: str) -> None:
    archive = make_tar(tmp_path / "a.tar", ("cats/x.png", kind, b"/etc/passwd"))
    assert f"{what} is refused: pack the images themselves at 'cats/x.png'" in refused(archive)


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("cats/x.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "a link is refused" in refused(make_zip(tmp_path / "a.zip", (info, b"/etc/passwd")))


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_FINE", 10_000)
    members = [(f"cats/{i}.png", bytes(2_000_000)) for i in range(3)]
    message = refused(make_zip(tmp_path / "a.zip", *members))
    assert "more than 50 GB or 100 times its size" in message
    fine = [(f"cats/{i}.png", os.urandom(100_000)) for i in range(3)]
    assert below(unpacked(make_zip(tmp_path / "b.zip", *fine))) == dict(fine)


def test_an_archive_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 250_000)
    members = [(f"cats/{i}.png", os.urandom(100_000)) for i in range(3)]
    assert "at 'cats/2.png'" in refused(make_zip(tmp_path / "a.zip", *members))


def test_a_size_that_is_not_true(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("cats/1.png", bytes(100_000)))
    data = archive.read_bytes()
    assert data.count((100_000).to_bytes(4, "little")) == 2
    archive.write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert "Bad CRC-32 for file 'cats/1.png' at 'cats/1.png'" in refused(archive)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    archive = make_zip(tmp_path / "a.zip", *((f"cats/{i}.png", b"") for i in range(4)))
    assert "it has more than 3 members at 'cats/3.png'" in refused(archive)


def test_a_member_twice_and_a_file_as_a_folder(tmp_path: Path) -> None:
    twice = [("cats/1.png", tarfile.REGTYPE, b"1"), ("cats\\1.png", tarfile.REGTYPE, b"2")]
    assert "'cats\\\\1.png' is in it twice" in refused(make_tar(tmp_path / "a.tar", *twice))
    below_file = [("cats", tarfile.REGTYPE, b"1"), ("cats/1.png", tarfile.REGTYPE, b"2")]
    assert "'cats/1.png' is in it twice" in refused(make_tar(tmp_path / "b.tar", *below_file))


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_damaged_archives(image_folder: Path, tmp_path: Path, kind: str) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), KINDS[kind], image_folder))
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 0xFF
    archive.write_bytes(data)
    assert "Nothing was unpacked." in refused(archive)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "File name too long" in refused(make_zip(tmp_path / "a.zip", ("x" * 300, b"")))


def test_an_encrypted_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("cats/1.png", b"1"))
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    assert "is encrypted" in refused(archive)
