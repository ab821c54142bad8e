"""Pictures small enough to make anew for every test, and tests that leave nothing behind."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.logging import LogCaptureHandler
from PIL import Image

torch.set_num_threads(1)  # the networks here are tiny: more threads would wait for each other

WriteImage = Callable[..., Path]


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets PyTorch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def write_image() -> WriteImage:
    """Writes a 32×24 picture of one colour; its noise differs for every `seed`."""

    def write(path: Path, colour: tuple[int, int, int] = (120, 120, 120), seed: int = 0) -> Path:
        noise = np.random.default_rng(seed).integers(-20, 21, size=(24, 32, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def make_folder(write_image: WriteImage) -> Callable[[Path], Path]:
    """Makes three class folders, blue, green and red, of eight pictures each in their colour."""

    def make(root: Path) -> Path:
        colours = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
        for index, (name, colour) in enumerate(colours.items()):
            for number in range(8):
                write_image(root / name / f"{number}.png", colour, seed=100 * index + number)
        return root

    return make


@pytest.fixture
def image_folder(tmp_path: Path, make_folder: Callable[[Path], Path]) -> Path:
    return make_folder(tmp_path / "photographs")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test computes ends in the user's cache, or comes from there."""
    monkeypatch.setenv("TLX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Hydra sets the root logger's level and handlers for its command; the next test must not find
    them."""
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(before):
        if not isinstance(handler, LogCaptureHandler):
            root.removeHandler(handler)
            handler.close()
