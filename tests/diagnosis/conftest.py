"""A finished run in which nothing is wrong, made once for all tests that spoil a copy of it."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from planted import COLOURS
from safetensors.torch import save_file

from tlx import train

COUNTS = {"train": 16, "val": 20, "test": 20}
SETTINGS = [
    "backbone=squeezenet1_1", "data=folder", "data.image_size=24", "data.batch_size=16",
    "data.num_workers=0", "data.keep_together=none", "trainer=cpu", "trainer.precision=32",
    "verbosity=quiet", "report=none", "optimizer.lr=1e-1", "stage.head.epochs=8",
    "stage.top.epochs=2", "stage.top.lr=1e-3",
]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, write_image) -> Path:
    """Two stages on a file of weights, so that what they began with is known."""
    folder = tmp_path_factory.mktemp("healthy")
    seed = 0
    for split, count in COUNTS.items():
        for name, colour in COLOURS.items():
            for number in range(count):
                seed += 1
                shade = tuple(max(c - seed % 20, 0) for c in colour)
                write_image(folder / "images" / split / name / f"{number}.png", shade, seed)
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1().state_dict()
    save_file(state, folder / "weights.safetensors")
    arguments = [
        *SETTINGS, f"data.root={folder / 'images'}", f"hydra.run.dir={folder / 'run'}",
        f"backbone.weights={folder / 'weights.safetensors'}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLX_CACHE_DIR", str(folder / "cache"))
        patch.setattr(sys, "argv", ["tlx.train", *arguments])
        train.main(arguments)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")
